"""Batches read and prepared ahead of the step, in a background thread."""

import contextlib
import copy
import queue
import threading
from collections.abc import Callable
from typing import Any

from onereward_jax.errors import UserError

Batch = Any

PREFETCHED = 2  # batches ready ahead of the step


class Prefetcher:
    """Prepared batches with the data state after each, read ahead in a background thread.

    Args:
      timeout: seconds that a batch may take; 0: any time.
    """

    def __init__(self, batches: Any, prepare: Callable[[Batch], Batch], timeout: float):
        self._batches, self._prepare, self._timeout = batches, prepare, timeout
        self._ready: queue.Queue = queue.Queue(maxsize=PREFETCHED)
        self._closing = threading.Event()
        self._hangs = False
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)

    def __enter__(self) -> "Prefetcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if not self._hangs:
            self._thread.join()

    def next(self) -> tuple[Batch, Any]:
        """(prepared batch, state of the iterator right after it was drawn).

        Raises:
          queue.Empty: none came in time.
        """
        try:
            item = self._ready.get(timeout=self._timeout or None)
        except queue.Empty:
            self._hangs = True
            raise
        if isinstance(item, StopIteration):
            raise UserError("the data ended before the last step: lower num_steps, or repeat the data")
        if isinstance(item, BaseException):
            raise item
        return item

    def _read(self) -> Any:
        try:
            batch = next(self._batches)
            # A copy: an iterator may go on writing to the state that it gave.
            data_state = copy.deepcopy(self._batches.get_state())
            return self._prepare(batch), data_state
        except BaseException as error:  # of the thread; `next` raises it where the loop is
            return error

    def _fill(self) -> None:
        while not self._closing.is_set():
            item = self._read()
            while not self._closing.is_set():
                with contextlib.suppress(queue.Full):
                    self._ready.put(item, timeout=0.1)
                    break
            if isinstance(item, BaseException):
                return
