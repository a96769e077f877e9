"""Exposure, contrast, colour, noise and evenness of the whole image."""

import numpy as np
from scipy import ndimage

from onereward_jax.proving_ground.scorer.measures import bell, fine_structure, mean_where, moments_where, to_opponent
from onereward_jax.proving_ground.scorer.observation import Observation, painted_over
from onereward_jax.proving_ground.scorer.photograph import FEW
from onereward_jax.proving_ground.scorer.truth import Truth


def aesthetics_of(truth: Truth, image: np.ndarray, observed: Observation) -> float:
    return tone_factor(truth, image, observed) * cleanness(truth, image, observed) * _evenness(observed)


def tone_factor(truth: Truth, image: np.ndarray, observed: Observation) -> float:
    """Compare exposure, contrast, cast and saturation with the photograph's, more leniently in the hole."""
    mean, spread = moments_where(to_opponent(image), truth.kept)
    true_mean, true_spread = moments_where(truth.opponent, truth.kept)
    drift = mean - true_mean
    contrast = np.log((spread[0] + 0.02) / (true_spread[0] + 0.02))
    strength, true_strength = (
        np.sqrt(((m**2 + s**2)[1:]).mean()) for m, s in ((mean, spread), (true_mean, true_spread))
    )
    saturation = np.log((strength + 0.03) / (true_strength + 0.03))
    value = bell(abs(float(drift[0])), 0.03, 0.2) * bell(abs(float(contrast)), 0.12, 0.75)
    value *= bell(float(np.linalg.norm(drift[1:])), 0.03, 0.22) * bell(abs(float(saturation)), 0.12, 0.7)
    if observed.plain.sum() >= FEW:
        inside, expected = (
            mean_where(planes, observed.plain) for planes in (to_opponent(observed.image), truth.opponent)
        )
        around = mean_where(to_opponent(observed.image), truth.ring)
        off = np.minimum(np.abs(inside - expected), np.abs(inside - around))
        value *= bell(float(off[0]), 0.26, 0.25) * bell(float(np.linalg.norm(off[1:])), 0.26, 0.3)
    return value


def cleanness(truth: Truth, image: np.ndarray, observed: Observation) -> float:
    """Ask for no more noise than the photograph has, in luma and chroma, in the hole and around it."""
    drawn = np.zeros(truth.hole.shape, bool)  # not by the ink: to the eye of this scorer, colour noise is ink
    if observed.form.extent is not None:
        drawn = ndimage.maximum_filter(observed.form.extent, 5 if truth.scene.spec.word else 9) > 0.05
    free = ndimage.binary_erosion(truth.hole, border_value=1) & ~drawn
    seen = fine_structure(painted_over(image, drawn)) ** 2
    usual_around = mean_where(truth.band, truth.ring)
    excess = np.zeros(3, np.float32)
    for where in (free, truth.kept):
        if where.sum() >= FEW:
            usual = np.maximum(mean_where(truth.band, where), usual_around)
            excess = np.maximum(excess, np.sqrt(np.maximum(mean_where(seen, where) - usual, 0)))
    return bell(float(excess[0]), 0.012, 0.06) * bell(float(np.linalg.norm(excess[1:])), 0.02, 0.1)


def _evenness(observed: Observation) -> float:
    """Ask for an even colour of the object, without blotches."""
    weight = observed.form.interior
    total = float(weight.sum())
    if total < FEW:
        return 1.0
    rough = float(np.sqrt((weight[..., None] * fine_structure(observed.image) ** 2).sum() / total))
    return bell(rough, 0.08, 0.2)
