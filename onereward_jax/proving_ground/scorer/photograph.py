"""How well the photograph continues in the hole."""

from typing import NamedTuple

import numpy as np

from onereward_jax.proving_ground.scorer.measures import (
    alternation,
    bell,
    border_step,
    coarsen,
    direction_of,
    mean_where,
    ramp,
    smooth,
)
from onereward_jax.proving_ground.scorer.observation import Observation
from onereward_jax.proving_ground.scorer.truth import Truth


class Photograph(NamedTuple):
    consistency: float
    structure: float


FEW = 24  # pixels: fewer say nothing about the photograph


def match_photograph(truth: Truth, observed: Observation) -> Photograph:
    clear = (~observed.covered).astype(np.float32)
    seam = _seam(truth, observed, clear)
    kept = _kept(truth, observed)
    if observed.plain.sum() < FEW:
        return Photograph(seam * kept, _no_checkerboard(truth, observed, truth.hole))
    colour = _colour_agreement(truth, observed)
    grain = _grain_agreement(truth, observed)
    structure = (
        _no_checkerboard(truth, observed, observed.plain) * _no_streaks(truth, observed) * _no_void(truth, observed)
    )
    return Photograph(seam * kept * colour * grain, structure)


def _seam(truth: Truth, observed: Observation, clear: np.ndarray) -> float:
    step = border_step(observed.image, truth.border, clear)
    if not len(step):
        return 1.0
    excess = np.linalg.norm(step, axis=-1) - np.linalg.norm(truth.border_step, axis=-1)
    weight = np.minimum(clear.reshape(-1)[truth.border[0]], clear.reshape(-1)[truth.border[1]])
    return bell(float((np.maximum(excess, 0) * weight).sum() / (weight.sum() + 1e-6)), 0.025, 0.14)


def _kept(truth: Truth, observed: Observation) -> float:
    residual = smooth(observed.image - truth.background, 1.5)
    return bell(float(np.sqrt(mean_where(residual**2, truth.kept).mean())), 0.014, 0.05)


def _colour_agreement(truth: Truth, observed: Observation) -> float:
    """Ask for a mean colour between that of the surroundings and that of the original photograph."""
    seen, true = mean_where(observed.image, observed.plain), mean_where(truth.background, observed.plain)
    return bell(_distance_to_way(seen, true, mean_where(observed.image, truth.ring)), 0.06, 0.22)


def _grain_agreement(truth: Truth, observed: Observation) -> float:
    """Ask for grain between that of the surroundings and that of the original photograph."""
    inside, around = (float(mean_where(observed.band[..., 0], where)) for where in (observed.plain, truth.ring))
    true_inside, true_around = (float(mean_where(truth.band[..., 0], where)) for where in (observed.plain, truth.ring))
    floor = 0.006**2
    noise = max(0.0, around - true_around)  # noise of the whole image is a matter of aesthetics
    blur = min(1.0, (around + floor) / (true_around + floor))  # and so is its softness
    expected = true_inside * blur + noise
    low, high = min(expected, around) + floor, max(expected, around) + floor
    inside += floor
    off = max(np.log(low / inside), np.log(inside / high), 0.0)
    return bell(float(off), 0.35, 1.6)


def _no_checkerboard(truth: Truth, observed: Observation, where: np.ndarray) -> float:
    amplitude = alternation(observed.bare)[where].mean() - alternation(truth.background)[where].mean()
    return bell(float(amplitude), 0.008, 0.045)


def _no_streaks(truth: Truth, observed: Observation) -> float:
    """Ask for a direction of edges between none, that of the surroundings and that of the original photograph."""
    seen = direction_of(observed.bare, observed.plain)
    usual = [np.zeros(2), direction_of(truth.background, observed.plain), truth.ring_direction]
    return bell(min(_distance_to_way(seen, usual[i], usual[j]) for i, j in ((0, 1), (0, 2), (1, 2))), 0.14, 0.32)


def _distance_to_way(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Return the distance of a point from the segment between two others."""
    way = end - start
    share = np.clip((point - start) @ way / max(float(way @ way), 1e-6), 0, 1)
    return float(np.linalg.norm(point - start - share * way))


def _no_void(truth: Truth, observed: Observation) -> float:
    """Ask for edges in a hole that is surrounded by photograph."""
    coarse_seen, coarse_true = coarsen(observed.bare), coarsen(truth.background)
    expected = min(float(mean_where(coarse_true, observed.plain)), float(mean_where(coarse_true, truth.ring)))
    floor = 0.008**2
    ratio = (float(mean_where(coarse_seen, observed.plain)) + floor) / (expected + floor)
    return 0.2 + 0.8 * ramp(np.log(ratio), np.log(0.05), np.log(0.3))
