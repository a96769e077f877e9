"""What a person sees of a training: a line of metrics a step, and a progress bar."""

import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from onereward_jax.errors import UserError
from onereward_jax.training.metrics import MetricsWriter

Metrics = Mapping[str, Any]

_QUIET_SECONDS = 30.0  # between two lines of progress when no one watches a bar
_ALARMS = "alarms/"  # metrics: evaluations in a row that are beyond a limit


class StepLog:
    """Holds the metrics of the newest step back until the next one is launched; writes and shows them then."""

    def __init__(
        self,
        writer: MetricsWriter | None,
        bar: "Progress",
        optional: tuple[str, ...],
        step: int,
        max_skipped: int,
    ):
        self._writer, self._bar, self._optional, self._max_skipped = writer, bar, optional, max_skipped
        self.good = step  # the newest step that is known not to have been skipped
        self.skipped = 0  # since then
        self.lost = False  # whether ever too many in a row were skipped; the steps launched since don't count
        self.reason = ""  # why the newest of those was
        self._number: int | None = None
        self._metrics: Metrics = {}
        self._written = False
        self._steps = 0  # since the line before
        self._seconds = 0.0
        self._clock = time.perf_counter()

    def add(self, number: int, metrics: Metrics, written: bool) -> None:
        self._number, self._metrics, self._written = number, metrics, written

    def join(self, more: Metrics) -> None:
        """Adds an evaluation's numbers to the line that is held back, which is then written."""
        self._metrics = {**self._metrics, **more}
        self._written = True
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what was done since the last step (an evaluation, a save) out of the step time."""
        self._clock = time.perf_counter()

    def flush(self, hold: bool = False) -> None:
        """Waits for the step whose metrics are held, and writes its line (or, with `hold`, keeps it for `join`)."""
        if self._number is None:
            return
        if "perf/step_time_seconds" not in self._metrics:
            values = {name: np.asarray(value) for name, value in jax.device_get(dict(self._metrics)).items()}
            now = time.perf_counter()
            self._steps, self._seconds, self._clock = self._steps + 1, self._seconds + now - self._clock, now
            self._metrics = {**values, "perf/step_time_seconds": round(self._seconds / self._steps, 6)}
            self._judge(self._number, values)
        if hold:
            return
        shown = {name: value for name, value in self._metrics.items() if not self._is_absent(name, value)}
        self._bar.update(self._number, shown)
        if self._written:
            if self._writer is not None:
                self._writer.write(self._number, shown)
            self._steps, self._seconds = 0, 0.0
        self._number = None

    def _judge(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Counts a skipped update; ends a training whose state was not kept from a loss or gradient that is none."""
        watched = [name for name in ("learning/loss", "learning/grad_norm") if name in values]
        wrong = next((f"{name} is {values[name]}" for name in watched if not np.isfinite(values[name])), "")
        if values.get("learning/skipped", 0):
            self._written = True
            if not self.lost:
                self.skipped, self.reason = self.skipped + 1, f"{wrong} at step {number}"
                self.lost = self.skipped > self._max_skipped
            warnings.warn(f"{wrong} at step {number}: the update is skipped", RuntimeWarning, stacklevel=4)
        elif wrong:
            raise UserError(
                f"the training has diverged: {wrong} at step {number}. Lower the learning rate and start in another"
                " --workdir; the checkpoints before this step are kept"
            )
        else:
            self.good = number
            self.skipped = self.skipped if self.lost else 0

    def _is_absent(self, name: str, value: Any) -> bool:
        if self.skipped and not np.all(np.isfinite(value)):
            return True  # what a skipped update had instead of numbers
        return name.startswith(self._optional) and bool(np.isnan(value))


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, description: str, start: int, end: int, words: Mapping[str, str], shown: bool):
        self._words, self._shown = words, shown
        self._description, self._start, self._end = description, start, end
        self._began = self._last = time.perf_counter()
        self._first_seconds = 0.0
        self._alarms = ""  # of the newest evaluation
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(total=end, initial=start, desc=description, unit="step", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int, metrics: Metrics) -> None:
        shown = {word: f"{float(metrics[name]):.4g}" for word, name in self._words.items() if name in metrics}
        seconds = float(metrics["perf/step_time_seconds"])
        alarms_before = self._alarms
        if counts := {name: float(value) for name, value in metrics.items() if name.startswith(_ALARMS)}:
            self._alarms = ", ".join(f"{name.removeprefix(_ALARMS)} ({n:.0f})" for name, n in counts.items() if n)
        if self._alarms:
            shown["beyond limits"] = self._alarms
        if self._bar is not None:
            self._bar.set_postfix({**shown, "step": f"{seconds:.3g}s"}, refresh=False)
            self._bar.update(number - self._bar.n)
            return
        now = time.perf_counter()
        done = number - self._start
        if done == 1:
            self._first_seconds = now - self._began  # compilation, mostly: no measure of the time left
        quiet = done > 1 and number < self._end and now - self._last < _QUIET_SECONDS
        if not self._shown or (quiet and self._alarms == alarms_before):
            return
        self._last = now
        left = ""
        if done > 1:
            rate = (now - self._began - self._first_seconds) / (done - 1)
            left = f" · {tqdm.format_interval(int(rate * (self._end - number)))} left"
        numbers = "".join(f" · {word} {value}" for word, value in shown.items())
        print(
            f"{self._description}: step {number}/{self._end}{numbers} · {seconds:.3g} s a step{left}", file=sys.stderr
        )
