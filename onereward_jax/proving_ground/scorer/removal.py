"""Whether the object to be removed is gone."""

import numpy as np

from onereward_jax.proving_ground.scene_spec import chroma
from onereward_jax.proving_ground.scorer.aesthetics import cleanness, tone_factor
from onereward_jax.proving_ground.scorer.measures import bell, chroma_bins
from onereward_jax.proving_ground.scorer.observation import Observation, named_distance
from onereward_jax.proving_ground.scorer.photograph import Photograph
from onereward_jax.proving_ground.scorer.truth import Truth


def removal_quality(truth: Truth, image: np.ndarray, observed: Observation, photograph: Photograph) -> float:
    passes = photograph.consistency * photograph.structure
    return _gone(truth, observed) * passes * cleanness(truth, image, observed) * tone_factor(truth, image, observed)


def _gone(truth: Truth, observed: Observation) -> float:
    """Return the share of the object's colourfulness that is left in the hole."""
    table, margin = truth.distance_table, 0.06
    left = np.maximum(table[chroma_bins(chroma(observed.image))] - margin, 0)[truth.hole].sum()
    native = np.maximum(table[chroma_bins(chroma(truth.background))] - margin, 0)[truth.hole].sum()
    object_own = max(named_distance(truth) - margin, 0.1) * max(float(truth.alpha.sum()), 1.0)
    return bell(float((left - native) / object_own), 0.02, 0.45)
