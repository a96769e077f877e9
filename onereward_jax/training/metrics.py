"""Metrics of a run: metrics.jsonl, one JSON object a step, and the same numbers for TensorBoard."""

import contextlib
import json
import math
import multiprocessing
import os
import re
import resource
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onereward_jax import buckets
from onereward_jax.atomic_files import make_directory, sync, write_bytes
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_bytes

_SYNC_SECONDS = 60.0  # that a line may wait before it is on the disk


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard files in `workdir/tensorboard`.

    A run that goes on from step s first drops every line of a later step, and what is no line after that of step s,
    torn when the run was killed or the power failed; so the file has neither gaps nor repeats, whatever happened
    between.

    A line is in the file at once, and on the disk, or in the bucket of a local copy, within a minute.

    Lines that can't be written (a full disk, a mount that is gone) are kept and written once it is possible again, with
    one warning. TensorBoard loses them, and gets a new file after that. A file that was removed or replaced is written
    again before the next checkpoint.

    Args:
      workdir: a local or mounted directory; made when missing.
      resume_step: the step the run goes on from; 0 starts the file anew.
      tensorboard: whether to write TensorBoard files too.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0, tensorboard: bool = True):
        directory = Path(workdir)
        make_directory(directory)
        self.path = directory / "metrics.jsonl"
        _truncate(self.path, resume_step)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        sync(directory)  # its name is there after a power cut, as its lines are after `sync`
        self._closed = threading.Event()
        self._lock = threading.RLock()  # of all below: lines are written by one thread and synced by another, too
        self._unsynced = False
        self._waiting = b""  # lines, or the rest of one, that are not in the file yet
        self._reopen = self._failing = False
        self._warned: set[str] = set()
        self._tensorboard = tensorboard
        self._events: _TensorBoard | None = None
        if tensorboard:
            (directory / "tensorboard").mkdir(exist_ok=True)
            self._events = _TensorBoard(directory / "tensorboard", resume_step)
        self._syncing = threading.Thread(target=self._sync_now_and_then, name="metrics", daemon=True)
        self._syncing.start()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line to the operating system.

        Args:
          step: number of the step; each step is written once, in order.
          metrics: {"learning/loss": number or scalar array}. What is not finite is written as null (JSON has no
            NaN), with one warning per key.
        """
        line: dict[str, Any] = {"step": int(step)}
        for key, value in metrics.items():
            number = _number(value)
            if not math.isfinite(number):
                if key not in self._warned:
                    self._warned.add(key)
                    warnings.warn(f"{key} is {number} at step {step}: written as null", RuntimeWarning, stacklevel=2)
                line[key] = None
                continue
            line[key] = number
        with self._lock:
            self._unsynced = True
            self._waiting += json.dumps(line).encode() + b"\n"
            failure = None
            try:
                self._write_waiting()
            except OSError as error:
                failure, self._reopen = error, True
            try:
                if self._tensorboard:
                    self._add_events(line)
            except OSError as error:
                failure = failure or error
            failed_before, self._failing = self._failing, failure is not None
        if failure is not None and not failed_before:
            warnings.warn(
                f"metrics can't be written in {self.path.parent} ({failure.strerror}): lines wait until they can",
                RuntimeWarning,
                stacklevel=2,
            )

    def sync(self) -> None:
        """Forces all lines onto the disk, or from a local copy into the bucket; call before a checkpoint, so that it
        never knows more than the file.

        Raises:
          OSError: it can't be done now.
        """
        with self._lock:
            self._write_waiting()
            if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file))):
                write_bytes(self.path, os.pread(self._file, os.fstat(self._file).st_size, 0))
                self._open_again()
                warnings.warn(f"{self.path} was removed or replaced: it is written again", RuntimeWarning, stacklevel=2)
            self._force()
        buckets.push(self.path.parent)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._syncing.join()
        with contextlib.suppress(OSError):  # what is lost is newer than every checkpoint: it will be computed again
            self.sync()
        os.close(self._file)
        self._end_events()

    def _sync_now_and_then(self) -> None:
        while not self._closed.wait(_SYNC_SECONDS):
            with contextlib.suppress(OSError):  # `write` says it, or `sync` before the next checkpoint
                with self._lock:
                    if self._unsynced:
                        self._write_waiting()
                        self._force()
                buckets.push(self.path.parent)

    def _force(self) -> None:
        """Force what was written onto the disk."""
        os.fsync(self._file)
        try:
            if self._events is not None:
                self._events.flush()
        except OSError:
            self._end_events()
        self._unsynced = False

    def _write_waiting(self) -> None:
        if self._reopen:  # a mount that came back knows nothing of the old descriptor
            self._open_again()
            self._reopen = False
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]

    def _open_again(self) -> None:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        os.close(self._file)
        self._file = file

    def _add_events(self, line: Mapping[str, Any]) -> None:
        try:
            if self._events is None:
                self._events = _TensorBoard(self.path.parent / "tensorboard", line["step"] - 1)
            self._events.add(line["step"], {key: number for key, number in line.items() if key != "step"})
        except OSError:
            self._end_events()
            raise

    def _end_events(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
        self._events = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _TensorBoard:
    """One file of events.

    tensorboardX's `SummaryWriter` writes in a thread, which a full disk ends; the next ones who add wait for ever.
    """

    def __init__(self, directory: Path, last_step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._event, self._scalar, now = Event, scalar, time.time()
        # No two files have one name, however soon a run is started again.
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{last_step}.{os.getpid()}"
        self._file = RecordWriter(str(directory / name))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        # TensorBoard hides what an earlier file says of steps from here on.
        self._write(Event(wall_time=now, step=last_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, numbers: Mapping[str, float | None]) -> None:
        now = time.time()
        for name, number in numbers.items():
            if number is not None:
                self._write(self._event(wall_time=now, step=step, summary=self._scalar(name, number)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._file.write(event.SerializeToString())


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; a torn last line (of a run that is being written) is left out.

    Raises:
      FileNotFoundError: no such file.
      UserError: a line other than the last is not a JSON object with a step.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the training that writes it first")
    found = [line for line, _ in _lines(path)]
    if found and found[-1] is None:
        found.pop()
    if None in found:
        raise _bad_line(path, found.index(None))
    return [line for line in found if line is not None]


def _number(value: Any) -> float | int:
    if isinstance(value, bool | int | float):
        return value
    number = value.item()
    # A float32 prints as itself (0.1), not as the float64 beside it (0.10000000149011612).
    return float(str(value)) if isinstance(number, float) and getattr(value, "dtype", None) == "float32" else number


def _lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """(the line, None where it is none; the byte at which it ends) of each."""
    end = 0
    for text in read_bytes(path).splitlines(keepends=True):
        end += len(text)
        try:
            line = json.loads(text)
            yield (line if text.endswith(b"\n") and isinstance(line["step"], int) else None), end
        except (ValueError, KeyError, TypeError, RecursionError):
            yield None, end


def _bad_line(path: Path, index: int) -> UserError:
    return UserError(f"line {index + 1} of {path} is not a line of metrics: remove it, or the file")


def _truncate(path: Path, last_step: int) -> None:
    """Drops the lines after a step, be they whole or not.

    Raises:
      UserError: a line before it is none.
    """
    if not path.exists():
        return
    kept, bad = 0, None
    for index, (line, end) in enumerate(_lines(path)):
        if line is None:
            bad = index if bad is None else bad
        elif line["step"] <= last_step:
            if bad is not None:
                raise _bad_line(path, bad)
            kept = end
    os.truncate(path, kept)


def training_seconds(metrics_jsonl: str | Path) -> float:
    """Time spent in steps, compilation included; 0 before the first."""
    path = Path(metrics_jsonl)
    seconds, before = 0.0, 0
    for record in read_metrics(path) if path.exists() else []:
        seconds += record["perf/step_time_seconds"] * (record["step"] - before)
        before = record["step"]
    return seconds


def peak_memory_gib() -> float:
    """The most memory that this process and the ones it started have held, in GiB; the sum of each one's peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = peak / 2**30 if sys.platform == "darwin" else peak / 2**20
    return own + sum(_peak_of(child.pid) for child in multiprocessing.active_children())


def _peak_of(pid: int | None) -> float:
    """GiB; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(peak[1]) / 2**20 if peak else 0.0
