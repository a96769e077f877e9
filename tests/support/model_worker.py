"""A process that loads models on request, with little memory beyond what it starts with: a load that grows without end
fails there, and a crash ends that process alone.

Requests and answers are lines of JSON: {"kind": ..., "path": ...} -> {"error": class or null, "users": bool, "text"}.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onereward_jax.errors import UserError

MEMORY = 4 * 2**30  # bytes beyond the start


class Worker:
    """The process, as its parent sees it; it is started anew after it has crashed or was ended."""

    def __init__(self, models: Path):
        self._models, self._process = models, None

    def load(self, kind: str, path: Path) -> None:
        """Load something in the process.

        Raises:
          UserError: it was refused in one sentence.
          RuntimeError: another error, or the process crashed; says which.
        """
        if self._process is None:
            command = [sys.executable, "-m", "tests.support.model_worker", str(self._models)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._process.stdout.readline()  # it has started
        done = False
        try:
            self._process.stdin.write(json.dumps({"kind": kind, "path": str(path)}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            done = bool(line)
        except BrokenPipeError:
            line = ""
        finally:
            if not done:  # crashed, or not waited for any longer
                self.close()
        if not line:
            raise RuntimeError(f"loading a {kind} crashed the process")
        answer = json.loads(line)
        if answer["error"] is not None:
            raise (UserError if answer["users"] else RuntimeError)(f"{answer['text']}")

    def start(self) -> None:
        """Start the process, which takes longer than a load may."""
        with contextlib.suppress(UserError):
            self.load("nothing", self._models)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def loaders(models: Path) -> dict[str, Callable[[Path], Any]]:
    """Return {kind: function that loads what is at a path, and uses a tokenizer once}."""
    import numpy as np

    from onereward_jax.cli import main as cli
    from onereward_jax.fill.diffusers_io import read_shift
    from onereward_jax.fill.pipeline import FillPipeline
    from onereward_jax.fill.prompts import _padding_tokenizer, _tokenize
    from onereward_jax.flow.schedule import sigmas
    from onereward_jax.judge.judge import Judge
    from onereward_jax.weights.bfl import open_bfl
    from onereward_jax.weights.hub import _is_whole
    from onereward_jax.weights.load import load_component, module_from_directory, param_shapes
    from onereward_jax.weights.peft_adapters import load_adapters
    from tests.support.tiny_judge import QUESTIONS

    shapes = {
        kind: param_shapes(module_from_directory(models / at, kind), kind)
        for kind, at in (("transformer", "fill/transformer"), ("judge", "judge"))
    }

    def tokenizer(path: Path, name: str) -> None:
        vocab_size = module_from_directory(models / "fill" / name, name).vocab_size
        _tokenize(_padding_tokenizer(path, vocab_size), ["a small red circle", ""], 8, "CLIP")

    def judge(path: Path) -> None:
        Judge.from_pretrained(path, "float32").encode_questions(QUESTIONS)

    def command(*arguments: str) -> None:
        code = cli.main(list(arguments))
        if code == 2:
            raise UserError("refused by the command")
        if code:
            raise RuntimeError(f"exit code {code}")

    def component(path: Path, kind: str) -> None:
        _is_whole(path)
        load_component(path, kind)

    return {
        **{
            kind: lambda path, kind=kind: component(path, kind)
            for kind in ("transformer", "vae", "text_encoder", "text_encoder_2")
        },
        "tokenizer": lambda path: tokenizer(path, "text_encoder"),
        "tokenizer_2": lambda path: tokenizer(path, "text_encoder_2"),
        "scheduler": lambda path: sigmas(4, 100, read_shift(path.parent)),
        "judge": judge,
        "adapter": lambda path: load_adapters("transformer", shapes["transformer"], [(path, 1.0)]),
        "judge_adapter": lambda path: load_adapters("judge", shapes["judge"], [(path, 1.0)]),
        "single_file": lambda path: open_bfl(path / "transformer.safetensors", shapes["transformer"]).read(),
        "fill": lambda path: FillPipeline.from_pretrained(path, dtype="float32"),
        "fill_command": lambda path: command(
            "fill", f"--model={path}", f"--image={models / 'image.png'}", f"--mask={models / 'mask.png'}",
            "--prompt=a small red circle", f"--out={path.parent / 'out.png'}", "--num_inference_steps=1",
            "--max_sequence_length=9", "--dtype=float32",
        ),
        "judge_command": lambda path: command(
            "judge", f"--model={path}", "--dtype=float32", f"--first={models / 'image.png'}",
            f"--second={models / 'image.png'}", "--task=image_fill", "--dimension=structure",
        ),
        "nothing": lambda path: np.zeros(1),
    }  # fmt: skip


def main(models: Path) -> None:
    from onereward_jax.cli.exit_codes import is_users_error, sentence

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    known = loaders(models)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"error": None, "users": False, "text": ""}
        try:
            known[request["kind"]](Path(request["path"]))
        except BaseException as error:  # whatever a load may raise is the parent's to judge
            users = is_users_error(error)
            text = sentence(error) if users else f"{type(error).__name__}: {error} ({_place(error)})"
            answer |= {"error": type(error).__name__, "users": users, "text": text}
        print(json.dumps(answer), file=answers, flush=True)


def _place(error: BaseException) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
