"""The checkpoints of a run, while it trains."""

import warnings
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
        reason = error.strerror if isinstance(error, OSError) else error
        self._failure = f"the state of step {step} could not be saved in {self._checkpointer.directory} ({reason})"
        if hosts.count() > 1:  # the others would wait for this one
            raise Fault(f"{self._failure}: put it right, and the same command goes on from the newest checkpoint")
        if not last:
            warnings.warn(
                f"{self._failure}: the training goes on, the next checkpoint is tried", CheckpointWarning, stacklevel=4
            )
