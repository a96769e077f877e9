"""The checkpoints of a run, while it trains."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from onereward_jax.errors import Fault
from onereward_jax.parallel import hosts
from onereward_jax.training.checkpoint import Checkpointer, CheckpointWarning, SaveError
from onereward_jax.training.metrics import MetricsWriter


class Saving:
    """The checkpoints of a run. One that can't be written is a warning; the next is tried."""

    def __init__(self, checkpointer: Checkpointer, writer: MetricsWriter | None, step: int):
        self._checkpointer, self._writer = checkpointer, writer
        self.newest = step  # whose state is saved; 0 needs no checkpoint
        self._running: int | None = None
        self._failure: str | None = None

    def __enter__(self) -> "Saving":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, step: int, state: Any, data_state: Any, last: bool) -> None:
        """Starts to save. With `last`, it is `finish` that says that it failed."""
        self.wait()
        try:
            if self._writer is not None:
                self._writer.sync()
            self._checkpointer.save(step, state, data_state)
        except (SaveError, OSError) as error:
            self._fail(step, error, last)
        else:
            self._running = step

    def check(self) -> None:
        """Warns, without waiting, of a save that has failed meanwhile."""
        if self._running is not None and not self._checkpointer.saving:
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is running."""
        self._wait(last=False)

    def finish(self) -> None:
        """Waits for the save that is running.

        Raises:
          Fault: the newest state could not be saved.
        """
        self._wait(last=True)
        if self._failure is not None:
            before = f"the newest checkpoint is of step {self.newest}" if self.newest else "there is no checkpoint"
            raise Fault(f"{self._failure}: {before}; put it right, and the same command goes on from there")

    def _wait(self, last: bool) -> None:
        step, self._running = self._running, None
        try:
            self._checkpointer.wait()
        except SaveError as error:
            self._fail(step, error, last)
        else:
            if step is not None:
                self.newest, self._failure = step, None

    def _fail(self, step: int | None, error: Exception, last: bool) -> None:
        reason = getattr(error, "strerror", None) or error  # gcsfs raises OSError with a text alone
        self._failure = f"the state of step {step} could not be saved in {self._checkpointer.directory} ({reason})"
        if hosts.count() > 1:  # the others would wait for this one
            raise Fault(f"{self._failure}: put it right, and the same command goes on from the newest checkpoint")
        if not last:
            warnings.warn(
                f"{self._failure}: the training goes on, the next checkpoint is tried", CheckpointWarning, stacklevel=4
            )


class ByTime:
    """Says when a checkpoint is due by time: at the same step in every process, by the primary's clock.

    The others wait for the primary's answer, so they ask at few steps. Each answer says after how many steps to ask
    again: half of those that fit into the time left at the pace of late. So a checkpoint every N steps costs about
    log2(N) answers, and is due with the step in which its time is over, also when steps take half as long from now on.

    Args:
      seconds: between checkpoints; 0 for never.
      step: where the run starts.
      checkpointer: while it saves, nothing is due.
      clock: seconds from any moment on.
    """

    def __init__(
        self, seconds: float, step: int, checkpointer: Checkpointer, clock: Callable[[], float] = time.monotonic
    ):
        self._seconds, self._checkpointer, self._clock = seconds, checkpointer, clock
        self.restart(step)

    def restart(self, step: int) -> None:
        """Counts the time from now on: a checkpoint is being written."""
        self._began = self._clock()
        self._asked = self._began, step
        self._next = step + 1

    def due(self, step: int) -> bool:
        """Whether to save after this step; every process calls this at every step."""
        if not self._seconds or step < self._next:
            return False
        wait = hosts.on_primary(lambda: self._steps_to_wait(step))
        self._next = step + wait
        return wait == 0

    def _steps_to_wait(self, step: int) -> int:
        now = self._clock()
        (before, at), self._asked = self._asked, (now, step)
        left = self._seconds - (now - self._began)
        if left <= 0 and not self._checkpointer.saving:
            return 0
        pace = max((now - before) / max(1, step - at), 1e-9)
        return max(1, int(left / pace / 2))
