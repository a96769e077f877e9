"""The scorer's knowledge of a scene before it sees an image."""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from onereward_jax.proving_ground.scene_spec import Scene
from onereward_jax.proving_ground.scorer.measures import (
    SIDE,
    at_scoring_size,
    border_pairs,
    border_step,
    colour_residual_where,
    direction_of,
    distance_table,
    fine_structure,
    moments_where,
    smooth,
    to_opponent,
)


class Truth(NamedTuple):
    """A scene at scoring size with all derived measurements; planes are (64, 64) or (64, 64, channels)."""

    scene: Scene
    background: np.ndarray  # the photograph, RGB
    opponent: np.ndarray  # its luma and chroma
    soft: np.ndarray  # the same, blurred
    softer: tuple[np.ndarray, np.ndarray]  # means and deviations of the kept part, more blurred
    band: np.ndarray  # its fine structure, squared
    hole: np.ndarray  # bool
    near_hole: np.ndarray  # bool, the hole and two pixels around it
    kept: np.ndarray  # bool, at least a pixel away from the hole
    ring: np.ndarray  # bool, kept and near the hole
    distance_table: np.ndarray  # over chroma: distance to what the photograph holds
    colour_residual: float  # mean square of fine chroma in the kept part
    border: tuple[np.ndarray, ...]  # pairs of pixels across the mask's border
    border_step: np.ndarray
    ring_direction: np.ndarray  # of the photograph's forms around the hole
    alpha: np.ndarray  # the drawing's coverage
    radius: float  # and its radius or letter height


@functools.lru_cache(maxsize=16)
def truth_of(scene: Scene) -> Truth:
    spec = scene.spec
    background = at_scoring_size(spec.background.astype(np.float32) / 255)
    opponent = to_opponent(background)
    soft = smooth(opponent, 1.0)
    hole = at_scoring_size(scene.sample.mask.astype(np.float32)) > 0.5
    kept = ~ndimage.binary_dilation(hole)
    kept = kept if kept.any() else ~hole
    ring = kept & ndimage.binary_dilation(hole, iterations=8)
    ring = ring if ring.any() else kept
    border = border_pairs(hole)
    return Truth(
        scene=scene,
        background=background,
        opponent=opponent,
        soft=soft,
        softer=moments_where(smooth(opponent, 2.0), kept),
        band=fine_structure(background) ** 2,
        hole=hole,
        near_hole=ndimage.binary_dilation(hole, iterations=2),
        kept=kept,
        ring=ring,
        distance_table=distance_table(background, spec.colour),
        colour_residual=colour_residual_where(smooth(opponent[..., 1:], 0.55), soft, kept),
        border=border,
        border_step=border_step(background, border, np.ones((SIDE, SIDE), np.float32)),
        ring_direction=direction_of(background, ring),
        alpha=at_scoring_size(spec.alpha),
        radius=spec.radius * SIDE / scene.sample.image.shape[0],
    )
