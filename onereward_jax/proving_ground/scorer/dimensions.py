"""Scores an image in every dimension."""

import numpy as np

from onereward_jax.errors import UserError
from onereward_jax.proving_ground.scene_spec import Scene
from onereward_jax.proving_ground.scorer.aesthetics import aesthetics_of
from onereward_jax.proving_ground.scorer.measures import at_scoring_size
from onereward_jax.proving_ground.scorer.observation import observe
from onereward_jax.proving_ground.scorer.photograph import match_photograph
from onereward_jax.proving_ground.scorer.removal import removal_quality
from onereward_jax.proving_ground.scorer.truth import truth_of


def score(scene: Scene, image: np.ndarray) -> dict[str, float]:
    """Score an image in [0, 1] in the dimensions of the scene's task and prompt; higher is better.

    Args:
      image: (H, W, 3) of the scene's size; uint8, or floats in [0, 1] (values beyond are clipped).

    Raises:
      UserError: the image has another size or holds numbers that are not finite.
    """
    truth = truth_of(scene)
    image = at_scoring_size(_as_float(scene, image))
    observed = observe(truth, image)
    values: dict[str, float] = {}
    photograph = match_photograph(truth, observed)
    for dimension in scene.sample.dimensions:
        if dimension == "text_alignment":
            value = observed.form.alignment
        elif dimension == "consistency":
            value = photograph.consistency
        elif dimension == "structure":
            value = observed.form.structure * photograph.structure
        elif dimension == "aesthetics":
            value = aesthetics_of(truth, image, observed)
        else:
            value = removal_quality(truth, image, observed, photograph)
        values[dimension] = float(np.clip(value, 0.0, 1.0))
    return values


def _as_float(scene: Scene, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.shape != scene.sample.image.shape:
        raise UserError(f"image {image.shape} for a scene of {scene.sample.image.shape}: give the scene's size")
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise UserError("the image holds NaN or infinity: check what generated it")
    return np.clip(image, 0, 1)
