"""A command killed at random moments of its life, and what has to be there in the end.

The life is measured once, undisturbed: which files appear, and when. A killed run waits for one of them, or only for a
while if it shall die as it starts, and is killed some time after that.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.training.metrics import read_metrics
from tests.support.compiler import xla_flags
from tests.support.multiprocess_run import MEET, ROOT

LIMIT = 300.0  # seconds that a command may take
_NOT_WATCHED = re.compile(r"\.tmp\b|orbax-checkpoint-tmp")  # what comes and goes, under random names
_NOT_COMPARED = re.compile(r"tensorboard/|(checkpoints|best)/[^/]+/")  # names by the time of day or at random
_ONLY_THERE = re.compile(r"(checkpoints|best)/|\.lock$|\.processes$")  # what such files hold is different every time
_AT_START = 0.25  # share of the kills at some time before the first file appears
_ALL = 0.4  # share of the other kills that end all of several processes


class Place:
    """A directory in which a command runs again and again.

    Attributes:
      root: what the command knows of it.
      temporary: the system's temporary folder, as the command sees it.
    """

    def __init__(self, directory: Path):
        self._said, self.root, self.temporary = (directory / name for name in ("said", "root", "temporary"))
        for folder in (self.root, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)

    def said(self) -> str:
        """The last of what was said on stderr."""
        return self._said.read_text(errors="replace")[-3000:]

    def start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen:
        """A Python command; "{root}" in it becomes the directory."""
        command = [sys.executable, *(word.replace("{root}", str(self.root)) for word in words)]
        environment = os.environ | {"TMPDIR": str(self.temporary)} | environment
        with self._said.open("ab") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )

    def names(self) -> Iterator[str]:
        """Of all files and directories below the root, without those that have other names every time."""
        for directory, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                found = os.path.relpath(os.path.join(directory, name), self.root)
                if not _NOT_COMPARED.search(found):
                    yield found

    def result(self) -> dict[str, Any]:
        """{name: content} of all that is there; lines of metrics without times."""
        return {name: self._content(name) for name in sorted(self.names())}

    def _content(self, name: str) -> Any:
        path = self.root / name
        if path.name == "metrics.jsonl":
            without_times = lambda line: {key: value for key, value in line.items() if not key.startswith("perf/")}
            return [json.dumps(without_times(line)) for line in read_metrics(path)]
        return path.read_bytes() if path.is_file() and not _ONLY_THERE.search(name) else None


@dataclass(frozen=True)
class Command:
    """A command of one process, or of several that meet over the loopback.

    Attributes:
      words: after "python".
      count: processes, which share two devices.
    """

    words: list[str]
    count: int = 1

    def start(self, place: Place) -> list[subprocess.Popen]:
        environment = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(1),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if self.count == 1:
            return [place.start(self.words, environment)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        meet = lambda index: {name: value.format(index=index, port=port) for name, value in MEET.items()}
        return [place.start(self.words, environment | meet(index)) for index in range(self.count)]


@dataclass(frozen=True)
class Life:
    """An undisturbed run of a command.

    Attributes:
      marks: names of what appears below the root, in this order, and the seconds from one to the next.
      start: seconds before the first.
      result: of `Place.result`.
    """

    marks: list[tuple[str, float]]
    start: float
    result: dict[str, Any]


def live(command: Command, place: Place) -> Life:
    """Run a command to its end, and watch."""
    there, appeared = set(place.names()), {}
    began, processes = time.monotonic(), command.start(place)
    while any(process.poll() is None for process in processes):
        for name in place.names():
            appeared.setdefault(name, time.monotonic() - began)
        time.sleep(0.005)
    assert all(process.returncode == 0 for process in processes), place.said()
    marks = [name for name in appeared if name not in there and not _NOT_WATCHED.search(name)]
    times = [appeared[name] for name in marks] + [time.monotonic() - began]
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return Life(list(zip(marks, gaps, strict=True)), times[0], place.result())


def kill(command: Command, place: Place, life: Life, rng: np.random.Generator) -> None:
    """Start a command and kill it at a random moment, one of its processes or all of them.

    One that ends before its moment is started again, to be killed as it starts: it has nothing left to do.
    """
    at_start, where, when, whom = rng.random(4)
    left = [(name, gap) for name, gap in life.marks if not (place.root / name).exists()]
    if at_start < _AT_START or not left:
        number, seconds = None, when * life.start
    else:
        number = int(where * len(left))
        seconds = when * left[number][1]
    # The first of the names that are awaited may soon be gone again.
    awaited = [] if number is None else [place.root / name for name, _ in left[number : number + 3]]
    index = None if number is None or whom < _ALL else int(command.count * (whom - _ALL) / (1 - _ALL))
    codes = _killed(command, place, awaited, seconds, index)
    if 0 in codes:  # all was done before one of them was killed, if any was
        assert differences(place.result(), life.result) == []
    if not any(codes):
        codes = _killed(command, place, [], when * life.start, None)
    assert -signal.SIGKILL in codes, (codes, place.said())


def _killed(command: Command, place: Place, awaited: list[Path], seconds: float, index: int | None) -> list[int]:
    """Kill one or all of a command's processes so long after a file appeared: the exit codes of all of them."""
    processes = command.start(place)
    is_time = lambda: not awaited or any(path.exists() for path in awaited)
    try:
        _until(lambda: is_time() or any(process.poll() is not None for process in processes))
        time.sleep(seconds)
        for process in processes if index is None else [processes[index]]:
            process.kill()
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        _end(processes)
    # The other of two processes ends by itself, and what a process has started ends with it.
    _until(lambda: not any(_group_lives(process.pid) for process in processes))
    assert {*codes} <= {0, -signal.SIGKILL, -signal.SIGABRT, 75}, (codes, place.said())
    return codes


def finish(command: Command, place: Place) -> None:
    """Give the command again: it must end with 0."""
    processes = command.start(place)
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        _end(processes)
    assert not any(codes), (codes, place.said())


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What two results differ in, in words."""

    def word(name: str) -> str:
        return "is missing" if name not in found else "is left over" if name not in expected else "differs"

    return [
        f"{name} {word(name)}" for name in sorted({*found, *expected}) if found.get(name, 0) != expected.get(name, 0)
    ]


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
