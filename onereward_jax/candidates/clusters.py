"""Clusters of many vectors, and those that nearly repeat another, in memory that is bounded and without an n² matrix.

Vectors are rows of length 1, float16 or float32, in memory or in a file. Everything is a function of them and of the
seed, whatever the number of threads.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

_SAMPLE = 2**18  # vectors that centres are fitted to: 256 a centre suffice (as in FAISS) for a thousand centres
_BATCH = 8192  # of them, in a step of k-means
_BLOCK = 8192  # vectors that are read and compared at once
_CELL = 1024  # vectors of a cell in which duplicates are looked for, about
_DEPTH = 4  # of splits: what no split divides is alike, and then few are left to compare with
_CELL_PASSES, _PASSES = 2, 10  # of k-means over the sample


class Rows:
    """Some rows of an array, read as they are asked for."""

    def __init__(self, vectors: "Vectors", rows: np.ndarray):
        self._vectors, self._rows = vectors, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        return self._vectors[self._rows[key]]


Vectors = np.ndarray | Rows


def fit_centres(vectors: Vectors, count: int, seed: int, passes: int = _PASSES) -> np.ndarray:
    """Fit the centres of clusters by scikit-learn's MiniBatchKMeans: float32 (K, P).

    Args:
      count: of clusters; fewer where there are fewer vectors.
      passes: over a random sample of at most `_SAMPLE` vectors.
    """
    count = min(count, len(vectors))
    chosen = np.arange(len(vectors))
    if len(vectors) > max(_SAMPLE, count):
        chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), max(_SAMPLE, count), replace=False))
    sample = np.asarray(vectors[chosen], np.float32)
    means = MiniBatchKMeans(
        count,
        random_state=seed,
        batch_size=min(_BATCH, len(sample)),
        init_size=min(max(_BATCH, 3 * count), len(sample)),
        max_iter=passes,
        max_no_improvement=None,  # the sum it looks at is rounded as the number of threads will have it
        n_init=1,
    )
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        return means.fit(sample).cluster_centers_.astype(np.float32)


def nearest_centres(vectors: Vectors, centres: np.ndarray) -> np.ndarray:
    """Find each vector's nearest centre: int32 (N,)."""
    bias = 0.5 * np.sum(centres**2, axis=1)
    found = np.empty(len(vectors), np.int32)

    def assign(start: int) -> None:
        block = np.asarray(vectors[start : start + _BLOCK], np.float32)
        found[start : start + _BLOCK] = np.argmax(block @ centres.T - bias, axis=1)

    _in_threads(assign, range(0, len(vectors), _BLOCK))
    return found


def duplicates(vectors: Vectors, cosine: float, seed: int) -> np.ndarray:
    """Find vectors that nearly repeat an earlier one: boolean (N,), of which an earlier one is always left.

    They are looked for inside cells of about a thousand neighbours. Two that lie on both sides of a border are missed,
    so those that are left are looked at a second time, in other cells.

    Args:
      cosine: what is above it is a repetition.
    """
    left = np.arange(len(vectors))
    for number in range(2):
        cells = _cells(Rows(vectors, left), seed + number)
        left = left[~_repeated_in_cells(Rows(vectors, left), cells, cosine)]
        if len(cells) <= 1:  # all were compared with all
            break
    found = np.ones(len(vectors), bool)
    found[left] = False
    return found


def members_of(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each label that occurs, rows and labels in ascending order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _cells(vectors: Vectors, seed: int, depth: int = 0) -> list[np.ndarray]:
    """Split vectors into cells of neighbours: the rows of each.

    A cell that is too large is split again, since comparing takes the square of its size. Centres have length 1: a mean
    of much that is unlike is short, and would be the nearest to all that no other centre is close to.
    """
    if len(vectors) <= 4 * _CELL or depth == _DEPTH:
        return [np.arange(len(vectors))] if len(vectors) else []
    centres = fit_centres(vectors, max(2, len(vectors) // _CELL), seed, _CELL_PASSES)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    cells = members_of(nearest_centres(vectors, centres))
    return [rows[inner] for rows in cells for inner in _cells(Rows(vectors, rows), seed, depth + 1)]


def _repeated_in_cells(vectors: Vectors, cells: list[np.ndarray], cosine: float) -> np.ndarray:
    found = np.zeros(len(vectors), bool)

    def mark(members: np.ndarray) -> None:
        found[members] = _repeated(Rows(vectors, members), cosine)

    _in_threads(mark, cells)
    return found


def _repeated(vectors: Vectors, cosine: float) -> np.ndarray:
    """Of one cell, the rows that are above `cosine` with an earlier one that is none of these itself."""
    found = np.zeros(len(vectors), bool)
    kept: list[np.ndarray] = []  # blocks of those that are none
    size = _BLOCK // 4
    for start in range(0, len(vectors), size):
        block = np.asarray(vectors[start : start + size], np.float32)
        repeats = np.zeros(len(block), bool)
        for earlier in kept:
            repeats |= (block @ earlier.T > cosine).any(axis=1)
        rest = np.flatnonzero(~repeats)
        near = np.tril(block[rest] @ block[rest].T > cosine, -1)
        for row in np.flatnonzero(near.any(axis=1)):
            repeats[rest[row]] = (near[row] & ~repeats[rest]).any()
        found[start : start + size] = repeats
        kept.append(block[~repeats])
    return found


def _in_threads(function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call a function for all items; BLAS has one thread in each, which makes a product's rounding its own."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(function, items):
            pass


def even_order(labels: np.ndarray, names: Sequence[str], seed: int) -> Iterator[int]:
    """Yield all rows in the order of an even draw: in every round, one of each cluster that has some left.

    Of a cluster they come at random, not nearest to its centre first: those are its most usual ones, and the rare ones
    at its rim would never be drawn. Their order is that of digests of seed and name.
    """
    digest = lambda text: hashlib.sha256(f"{seed} {text}".encode(errors="surrogateescape")).digest()
    clusters = [sorted(rows.tolist(), key=lambda row: digest(names[row])) for rows in members_of(labels)]
    order = np.random.default_rng(seed).permutation(len(clusters)).tolist()
    for turn in range(max(map(len, clusters), default=0)):
        yield from (clusters[cluster][turn] for cluster in order if turn < len(clusters[cluster]))
