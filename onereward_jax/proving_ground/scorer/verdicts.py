"""Verdicts between two images, from their scores."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from onereward_jax.proving_ground.scene_spec import Scene
from onereward_jax.proving_ground.scorer.dimensions import score

# Fixed before any model was trained, and not to be moved. The margin is on the mean over a scene's dimensions: .04 is
# one dimension of four falling by .16, or removal quality, the only one of its scenes, by .04. What a person would not
# tell apart stays below it (a target blurred by .8 pixels or with noise of 4 grey levels moves by less than .02, and a
# defect of a fifth of the gross strength by about as much); most kinds at half the gross strength move it by more.
TIE_MARGIN = 0.04

Verdict = Literal["good", "same", "bad"]


def compare(scene: Scene, image_a: np.ndarray, image_b: np.ndarray) -> Verdict:
    """Compare `image_a` with `image_b` by ground truth: "good", "same" or "bad".

    The means of `score` over the scene's dimensions are compared, each dimension counting alike; a difference of at
    most `TIE_MARGIN` is "same".
    """
    return verdict(score(scene, image_a), score(scene, image_b))


def verdict(scores_a: Mapping[str, float], scores_b: Mapping[str, float]) -> Verdict:
    """Compare scores that are already known; see `compare`."""
    difference = overall(scores_a) - overall(scores_b)
    if abs(difference) <= TIE_MARGIN:
        return "same"
    return "good" if difference > 0 else "bad"


def overall(scores: Mapping[str, float]) -> float:
    """Average an image's scores over its dimensions."""
    return float(np.mean(list(scores.values())))
