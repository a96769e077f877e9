"""Clusters, near-duplicates and even draws: bounded memory, and the same whatever the number of threads."""

import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from onereward_jax.candidates import clusters


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """float16 unit vectors around 50 centres; each of the second tenth nearly repeats one of the first."""
    draw = np.random.default_rng(seed)
    centres = unit(draw.standard_normal((50, dimension), np.float32))
    noise = draw.standard_normal((count, dimension), np.float32) / np.float32(np.sqrt(dimension))
    found = unit(centres[draw.integers(50, size=count)] + 0.9 * noise)
    tenth = count // 10
    found[tenth : 2 * tenth] = unit(found[:tenth] + 0.1 * noise[:tenth][:, ::-1])
    return found.astype(np.float16)


def exact(found: np.ndarray, cosine: float) -> np.ndarray:
    """By the n x n matrix."""
    near = np.tril(found.astype(np.float32) @ found.astype(np.float32).T > cosine, -1)
    repeated = np.zeros(len(found), bool)
    for row in range(len(found)):
        repeated[row] = (near[row] & ~repeated).any()
    return repeated


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.2, 0.8, 0.95]), st.integers(0, 2**32 - 1), st.booleans()
)
def test_few_vectors_are_compared_with_all_others(count, dimension, cosine, seed, alike):
    found = unit(np.random.default_rng(seed).standard_normal((count, dimension)))
    found = np.repeat(found[:1], count, axis=0) if alike else found
    repeated = clusters.duplicates(found, cosine, seed)
    np.testing.assert_array_equal(repeated, exact(found, cosine))
    assert not repeated[0]


def test_blocks_and_cells_find_what_the_matrix_does(monkeypatch):
    monkeypatch.setattr(clusters, "_BLOCK", 256)
    monkeypatch.setattr(clusters, "_CELL", 100)
    found = vectors(3000, 32)
    repeated, expected = clusters.duplicates(found, 0.95, 0), exact(found, 0.95)
    assert expected.sum() >= 290
    assert not (repeated & ~expected).any()
    assert (expected & ~repeated).sum() <= 0.03 * expected.sum()
    monkeypatch.setattr(clusters, "_CELL", 10_000)
    np.testing.assert_array_equal(clusters.duplicates(found, 0.95, 0), expected)


def test_cells_stay_small_where_there_are_more_groups_than_cells(monkeypatch):
    monkeypatch.setattr(clusters, "_CELL", 50)
    draw = np.random.default_rng(0)
    groups = unit(draw.standard_normal((400, 64)))
    found = unit(groups[draw.integers(400, size=4000)] + 0.9 * draw.standard_normal((4000, 64)) / 8)
    cells = clusters._cells(found, 0)
    assert sorted(np.concatenate(cells).tolist()) == list(range(4000))
    assert max(map(len, cells)) <= 200
    alike = np.repeat(found[:1], 1000, axis=0)
    assert clusters.duplicates(alike, 0.95, 0).sum() == 999


def test_a_hundred_thousand_within_memory_whatever_the_threads(monkeypatch, tmp_path):
    count, dimension = 100_000, 32
    np.save(tmp_path / "vectors.npy", vectors(count, dimension))
    found = np.load(tmp_path / "vectors.npy", mmap_mode="r")

    def run(threads: int) -> tuple[np.ndarray, ...]:
        monkeypatch.setattr(os, "cpu_count", lambda: threads)
        with threadpool_limits(threads):
            repeated = clusters.duplicates(found, 0.95, 7)
            left = clusters.Rows(found, np.flatnonzero(~repeated))
            centres = clusters.fit_centres(left, 50, 7, passes=2)
            return repeated, centres, clusters.nearest_centres(left, centres)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = run(2)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB
    assert grown < 400  # an n x n matrix, of bits alone, would take 1200
    for one, other in zip(first, run(1), strict=True):
        np.testing.assert_array_equal(one, other)
    repeated, centres, labels = first
    tenth = count // 10
    assert repeated[tenth : 2 * tenth].mean() > 0.97
    assert repeated[:tenth].sum() + repeated[2 * tenth :].sum() == 0
    assert len(np.unique(labels)) == len(centres) == 50


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 2**32 - 1), st.data())
def test_an_even_draw(labels, seed, data):
    names = [f"{number}.png" for number in range(len(labels))]
    order = list(clusters.even_order(np.array(labels, np.int32), names, seed))
    assert sorted(order) == list(range(len(labels)))
    sizes = {label: labels.count(label) for label in labels}
    first = data.draw(st.integers(0, len(labels)))
    drawn = [labels[row] for row in order[:first]]
    for label, size in sizes.items():  # one may be behind another by a turn, or because it has no more
        assert drawn.count(label) >= min(size, max(map(drawn.count, sizes), default=0) - 1)


def test_fewer_vectors_than_clusters_and_all_alike():
    found = np.repeat(unit(np.ones((1, 4))), 5, axis=0)
    centres = clusters.fit_centres(found, 100, 0)
    assert set(clusters.nearest_centres(found, centres).tolist()) == {0}
    assert list(clusters.even_order(np.zeros(0, np.int32), [], 0)) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_the_draw_depends_on_the_seed(seed):
    names = [str(number) for number in range(50)]
    draw = lambda seed: list(clusters.even_order(np.arange(50) % 3, names, seed))
    assert draw(seed) == draw(seed) != draw(seed + 2)
