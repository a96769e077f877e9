"""A command in two processes on this machine, which share simulated devices and meet over the loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds
MEET = {
    "JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "{index}",
}


class Run:
    """The same Python command in both processes.

    Args:
      command: "{index}" in it becomes the number of the process.
      devices: of both together.
      meet: environment that tells each of the other, with "{index}" and "{port}".

    Attributes:
      said: what each has said on stderr, once `ended`.
    """

    def __init__(self, *command: str, devices: int = 8, meet: Mapping[str, str] = MEET):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._processes = []
        for index in range(2):
            of_process = {name: value.format(index=index, port=port) for name, value in meet.items()}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, *(word.replace("{index}", str(index)) for word in command)],
                    cwd=ROOT,
                    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices // 2)} | of_process,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        self.said = ["", ""]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def ended(self) -> list[int]:
        """The exit codes of both, which end by themselves."""
        for index, process in enumerate(self._processes):
            self.said[index] += process.communicate(timeout=LIMIT)[1]
        return [process.returncode for process in self._processes]

    def signal_after(self, workdir: Path, step: int, index: int, number: int) -> None:
        """Sends one of them a signal as soon as there is a checkpoint of `step` or later."""
        deadline = time.monotonic() + LIMIT
        while newest(workdir) < step:
            assert all(process.poll() is None for process in self._processes), (self.ended(), self.said)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self._processes[index].send_signal(number)


def newest(workdir: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    manifests = (workdir / "checkpoints").glob("step_*.json")
    return max((int(path.stem.removeprefix("step_")) for path in manifests), default=0)
