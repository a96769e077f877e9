"""Scoring of many images on all processor cores."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker

import numpy as np
from threadpoolctl import threadpool_limits

from onereward_jax.data.proving_ground.scorer import score
from onereward_jax.data.proving_ground.truth import Scene

_WORTH_A_PROCESS = 32  # images: below, starting the processes takes longer than they save


def score_all(scenes: Sequence[Scene], images: Iterable[Iterable[np.ndarray]]) -> list[list[dict[str, float]]]:
    """`score` of several images of each scene, in their order: images[s][k] is the k-th image of scenes[s].

    Many images are shared out to as many processes as there are cores; a script that calls this needs the usual
    `if __name__ == "__main__"`.
    """
    rows = [list(row) for row in images]
    if sum(map(len, rows)) < _WORTH_A_PROCESS:
        return [_score_row(scene, row) for scene, row in zip(scenes, rows, strict=True)]
    if len(scenes) != len(rows):
        raise ValueError(f"{len(rows)} rows of images for {len(scenes)} scenes: give each scene its row")
    # Processes that this starts are born with the mask: a Ctrl-C in their first seconds is not theirs either. The
    # tracker that comes with the first of them would lift it.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        scores = _processes().map(_score_row, scenes, rows, chunksize=4)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return list(scores)


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
