"""`onereward collect` on a tiny model, in processes that start at once and can be killed.

    python -m tests.support.collecting    reads a line of JSON, an argument list, and runs it in a process of its own

The modules are imported once: every process is a fork from before JAX has a device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from onereward_jax.images.grid import write_png
from tests.support import tiny_fill
from tests.support.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
ARGUMENTS = [
    "collect",
    f"--resolution={SIDE}",
    "--bucket_step=8",
    "--max_aspect=1",
    "--min_steps=1",
    "--max_steps=6",
    "--part_size=2",
    "--batch_size=2",
    "--dtype=float32",
    f"--max_sequence_length={tiny_fill.T5_LENGTH}",
]


def make(root: Path, count: int = 4) -> None:
    """A model in root/base, and requests in root/requests."""
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base")
    draw, lines = np.random.default_rng(0), []
    for number in range(count):
        write_png(root / "requests" / f"{number}.png", draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[4:12, 4:14] = 255
        write_png(root / "requests" / f"mask{number}.png", mask)
        line = {
            "id": f"r{number}",
            "image": f"{number}.png",
            "mask": f"mask{number}.png",
            "prompt": "a large blue square",
        }
        lines.append(json.dumps(line | {"notes": {"photographer": number}}))
    (root / "requests" / "requests.jsonl").write_text("\n".join(lines))


def contents(directory: Path) -> dict[str, bytes]:
    """{path: content} of all files but the lock."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if name != ".lock"}


class Processes:
    """Starts commands in processes with one device each; ends with its context."""

    def __enter__(self) -> "Processes":
        environment = os.environ | {"XLA_FLAGS": xla_flags(1), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "tests.support.collecting"]
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def start(self, arguments: list[str]) -> int:
        """Start a command; its process's number."""
        self._say(arguments)
        return int(self._hear())

    def ended(self) -> int:
        """The exit code of the command started last, −9 if it was killed."""
        return int(self._hear())

    def _say(self, value: object) -> None:
        assert self._server.stdin is not None
        print(json.dumps(value), file=self._server.stdin, flush=True)

    def _hear(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve() -> None:
    """Run commands as they come in, one after the other."""
    from transformers import AutoTokenizer, CLIPTokenizer, T5Tokenizer  # noqa: F401 (for the processes)

    import onereward_jax.candidates.collect
    import onereward_jax.proving_ground.source  # noqa: F401
    from onereward_jax.cli.main import main

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            os._exit(main(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
