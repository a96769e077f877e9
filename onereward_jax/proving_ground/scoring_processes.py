"""Scores many images on all processor cores."""

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

from onereward_jax.errors import Fault, UserError
from onereward_jax.proving_ground.scene_spec import Scene
from onereward_jax.proving_ground.scorer import score

_MIN_IMAGES = 32  # for fewer, starting the processes takes longer than they save
_CHUNK = 4  # scenes per work item
_TIMEOUT = 600.0  # seconds: a process that takes longer over a chunk hangs


def score_all(scenes: Sequence[Scene], images: Iterable[Iterable[np.ndarray]]) -> list[list[dict[str, float]]]:
    """Score several images of each scene, in order: images[s][k] is the k-th image of scenes[s].

    Many images are shared among one process per core; a script that calls this needs the usual
    `if __name__ == "__main__"`. If a process dies or hangs, all are replaced, once; the scores stay the same.

    Raises:
      Fault: a new process dies or hangs as well.
    """
    rows = [list(row) for row in images]
    if sum(map(len, rows)) < _MIN_IMAGES:
        return _score_rows(scenes, rows)
    if len(scenes) != len(rows):
        raise UserError(f"{len(rows)} rows of images for {len(scenes)} scenes: give each scene its row")
    for attempt in (1, 2):
        try:
            return _score_in_processes(scenes, rows)
        except (BrokenProcessPool, TimeoutError) as error:
            what = "died" if isinstance(error, BrokenProcessPool) else f"took more than {_TIMEOUT:g} s"
            _end_processes()
        if attempt == 1:
            warnings.warn(f"a scoring process {what}: starting new ones", RuntimeWarning, stacklevel=2)
    raise Fault(f"a scoring process {what}, and so did a new one: give the machine more memory, then the same command")


def _score_in_processes(scenes: Sequence[Scene], rows: list[list[np.ndarray]]) -> list[list[dict[str, float]]]:
    # New processes inherit this mask, so that Ctrl-C does not reach them in their first seconds either. Starting the
    # resource tracker, which comes with the first process, would lift the mask.
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
        return [row for chunk in chunks for row in chunk.result(_TIMEOUT)]
    except (BrokenProcessPool, TimeoutError):
        raise
    except BaseException:  # otherwise the program would score the rest before it ends
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
    # Spawned, not forked: JAX has threads by now, and a fork would copy their locks.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Prepare a process for scoring."""
    # A thread per core in a process per core would mostly wait.
    threadpool_limits(1)
    # A terminal's Ctrl-C reaches all processes; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
