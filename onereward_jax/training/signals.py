"""SIGTERM and SIGINT: finish the running step, save, stop."""

import os
import signal
import sys
import threading
from typing import Any

from jax.experimental import multihost_utils

from onereward_jax.parallel import hosts


class StopSignals:
    """SIGTERM and SIGINT ask the loop to stop after the running step; a second one stops at once.

    Of several processes one may get it alone. JAX then finds a step that none has reached, after which all stop; it
    looks out for SIGTERM, as which the first SIGINT counts.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT) if hosts.count() == 1 else (signal.SIGINT,):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def at(self, step: int) -> int:
        """The signal to stop for after this step, or 0."""
        if hosts.count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received

    def _receive(self, number: int, _: Any) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = number
        if hosts.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        print(f"\n{signal.Signals(number).name}: finishing this step and saving", file=sys.stderr)
