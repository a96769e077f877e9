"""Scoring of many images on all processor cores."""

import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

import numpy as np
from threadpoolctl import threadpool_limits

from onereward_jax.errors import Fault
from onereward_jax.proving_ground.scorer import score
from onereward_jax.proving_ground.spec import Scene

_WORTH_A_PROCESS = 32  # images: below, starting the processes takes longer than they save
_CHUNK = 4  # scenes that a process is given at a time
_PATIENCE = 600.0  # seconds: a process that takes longer over a chunk hangs


def score_all(scenes: Sequence[Scene], images: Iterable[Iterable[np.ndarray]]) -> list[list[dict[str, float]]]:
    """`score` of several images of each scene, in their order: images[s][k] is the k-th image of scenes[s].

    Many images are shared out to as many processes as there are cores; a script that calls this needs the usual
    `if __name__ == "__main__"`. Processes of which one dies or hangs are replaced, once; scores depend on nothing else.

    Raises:
      Fault: the new ones die or hang as well.
    """
    rows = [list(row) for row in images]
    if sum(map(len, rows)) < _WORTH_A_PROCESS:
        return _score_rows(scenes, rows)
    if len(scenes) != len(rows):
        raise ValueError(f"{len(rows)} rows of images for {len(scenes)} scenes: give each scene its row")
    for attempt in (1, 2):
        try:
            return _score_in_processes(scenes, rows)
        except (BrokenProcessPool, TimeoutError) as error:
            what = "died" if isinstance(error, BrokenProcessPool) else f"took more than {_PATIENCE:g} s"
            _end_processes()
        if attempt == 1:
            warnings.warn(f"a scoring process {what}: new ones are started", RuntimeWarning, stacklevel=2)
    raise Fault(f"a scoring process {what}, and so did a new one: give the machine more memory, then the same command")


def _score_in_processes(scenes: Sequence[Scene], rows: list[list[np.ndarray]]) -> list[list[dict[str, float]]]:
    # Processes that this starts are born with the mask: a Ctrl-C in their first seconds is not theirs either. The
    # tracker that comes with the first of them would lift it.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        starts = range(0, len(scenes), _CHUNK)
        chunks = [
            _processes().submit(_score_rows, scenes[start : start + _CHUNK], rows[start : start + _CHUNK])
            for start in starts
        ]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return [row for chunk in chunks for row in chunk.result(_PATIENCE)]
    except (BrokenProcessPool, TimeoutError):
        raise
    except BaseException:  # what is left would be scored before the program ends
        for chunk in chunks:
            chunk.cancel()
        raise


def _end_processes() -> None:
    pool = _processes()
    _processes.cache_clear()
    for process in list((pool._processes or {}).values()):  # kill_workers() comes with Python 3.14
        process.kill()
    pool.shutdown(wait=False)


def _score_rows(scenes: Sequence[Scene], rows: Sequence[Sequence[np.ndarray]]) -> list[list[dict[str, float]]]:
    return [_score_row(scene, row) for scene, row in zip(scenes, rows, strict=True)]


def _score_row(scene: Scene, images: Sequence[np.ndarray]) -> list[dict[str, float]]:
    return [score(scene, image) for image in images]


@functools.cache
def _processes() -> ProcessPoolExecutor:
    # Not forked: JAX has threads by now, and a fork would copy their locks.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """What a process does before its first image."""
    # As many threads as cores in each of as many processes would spend most of their time waiting.
    threadpool_limits(1)
    # A terminal's Ctrl-C reaches all processes; what it means is decided by the one that started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
