"""Metrics of a run: metrics.jsonl, one JSON object a step, and the same numbers for TensorBoard."""

import json
import math
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard files in `workdir/tensorboard`.

    A run that goes on from step s first drops every line of a later step, and a last line that was torn when the
    run was killed; so the file has neither gaps nor repeats, whatever happened between.

    Args:
      workdir: a local or mounted directory; made when missing.
      resume_step: the step the run goes on from; 0 starts the file anew.
      tensorboard: whether to write TensorBoard files too.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0, tensorboard: bool = True):
        directory = Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        _truncate(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._warned: set[str] = set()
        self._summary = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard hides what an earlier file says of steps from `purge_step` on.
            # Its file names are unique to the second only, so the suffix has to tell a quick restart apart.
            self._summary = SummaryWriter(
                str(directory / "tensorboard"),
                purge_step=resume_step + 1,
                flush_secs=30,
                filename_suffix=f".{resume_step}.{os.getpid()}",
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line and flushes it to the operating system.

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
            if self._summary is not None:
                self._summary.add_scalar(key, number, step)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces all lines onto the disk; call before a checkpoint, so that it never knows more than the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._summary is not None:
            self._summary.flush()

    def close(self) -> None:
        if self._file.closed:
            return
        self.sync()
        self._file.close()
        if self._summary is not None:
            self._summary.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; a torn last line (of a run that is being written) is left out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line other than the last is not a JSON object with a step.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the training that writes it first")
    lines, _ = _whole_lines(path)
    return lines


def _number(value: Any) -> float | int:
    if isinstance(value, bool | int | float):
        return value
    number = value.item()
    # A float32 prints as itself (0.1), not as the float64 beside it (0.10000000149011612).
    return float(str(value)) if isinstance(number, float) and getattr(value, "dtype", None) == "float32" else number


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Parsed lines, and the byte offset of the end of each."""
    lines: list[dict[str, Any]] = []
    ends: list[int] = []
    offset = 0
    raw = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(raw, start=1):
        offset += len(text)
        try:
            line = json.loads(text)
            if not text.endswith(b"\n") or not isinstance(line["step"], int):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number == len(raw):
                break
            raise ValueError(f"line {number} of {path} is not a line of metrics: remove it, or the file") from None
        lines.append(line)
        ends.append(offset)
    return lines, ends


def _truncate(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    lines, ends = _whole_lines(path)
    kept = [end for line, end in zip(lines, ends, strict=True) if line["step"] <= last_step]
    os.truncate(path, kept[-1] if kept else 0)


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
