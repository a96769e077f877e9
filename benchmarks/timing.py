"""Compares wall times of functions."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def median_seconds(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the median wall time of each function; calls alternate, after one call each that compiles."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            if turn:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]
