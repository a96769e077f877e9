"""Measurements on an image, shared by all dimensions."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from onereward_jax.data import masks
from onereward_jax.proving_ground.scene_spec import PALETTE_CHROMA
from onereward_jax.proving_ground.scorer.measures import (
    SIDE,
    TO_CHROMA,
    Form,
    chroma_bins,
    colour_residual_where,
    fine_structure,
    moments_where,
    smooth,
    to_opponent,
    to_rgb,
)
from onereward_jax.proving_ground.scorer.shapes import shape_form
from onereward_jax.proving_ground.scorer.truth import Truth
from onereward_jax.proving_ground.scorer.words import word_form


class Observation(NamedTuple):
    image: np.ndarray  # (64, 64, 3), with the tone change of the kept part undone
    ink: np.ndarray  # (64, 64) in [0, 1]: drawn rather than photographed
    covered: np.ndarray  # bool, ink and its rim
    plain: np.ndarray  # bool, photograph inside the hole, clear of ink and border
    form: Form
    bare: np.ndarray  # (64, 64, 3), the image with the ink painted over by what is around it
    band: np.ndarray  # (64, 64, 3), fine structure of `bare`, squared


def observe(truth: Truth, image: np.ndarray) -> Observation:
    spec = truth.scene.spec
    corrected = _undo_tone(truth, image)
    colours = smooth(corrected @ TO_CHROMA, 0.55)
    distance = truth.distance_table[chroma_bins(colours)]
    distance = distance * truth.near_hole
    named = named_distance(truth)
    if spec.side and truth.scene.sample.task == "image_extend":
        where = distance * _strip(truth)
    else:
        where = distance
    peak = float(np.sort(where, axis=None)[-24:].mean())
    reference = max(0.45 * named, 0.9 * peak)
    threshold = 0.08 + 1.5 * _colour_noise(truth, colours)
    ink = np.clip((where - threshold) / max(reference - threshold, 0.05), 0, 1)
    any_ink = np.clip((distance - threshold) / max(reference - threshold, 0.05), 0, 1)
    if truth.scene.sample.task == "object_removal" or not spec.colour:
        form = Form(1.0, 1.0, 0.0, np.zeros_like(ink), None)
    elif spec.word:
        form = word_form(truth, corrected, ink, where, named)
    else:
        form = shape_form(truth, corrected, ink, where, named)
    covered = _covered(truth, any_ink, form)
    plain = ndimage.binary_erosion(truth.hole, border_value=1) & ~covered
    bare = painted_over(corrected, covered)
    return Observation(corrected, any_ink, covered, plain, form, bare, fine_structure(bare) ** 2)


_ONE_OBJECT = 260.0  # pixels of ink
_LARGEST_DRAWING = 480.0  # a large shape has 330


def _covered(truth: Truth, ink: np.ndarray, form: Form) -> np.ndarray:
    """Where the photograph is not to be measured: the drawing, and as much ink elsewhere as one stray object has.

    More than that, or any where nothing is to be drawn, is a photograph of the wrong colour.
    """
    if form.extent is None:
        return np.zeros(ink.shape, bool)
    drawing_itself = form.extent > 0.1
    elsewhere = float(ink[ndimage.maximum_filter(form.extent, 5) <= 0.1].sum())
    if truth.scene.spec.shape and float(ink.sum()) > _LARGEST_DRAWING:
        return np.zeros(ink.shape, bool)
    if float(ink.sum()) > 2 * float(form.extent.sum()) + 60 or elsewhere > min(_ONE_OBJECT, 0.25 * truth.hole.sum()):
        return drawing_itself
    return drawing_itself | (ndimage.maximum_filter(ink, 3) > 0.2)


def painted_over(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Replace ink by a blur of its surroundings, so that it does not affect measurements of the photograph."""
    clear = (~covered).astype(np.float32)[..., None]
    planes = smooth(np.concatenate([image * clear, clear], axis=-1), 3.0)
    return image * clear + (planes[..., :3] / (planes[..., 3:] + 1e-4)) * (1 - clear)


def _undo_tone(truth: Truth, image: np.ndarray) -> np.ndarray:
    """Estimate the tone change on the kept pixels (means, contrast, saturation) and invert it.

    Moments and not a regression, so that kept pixels that have moved are not taken for another contrast.
    """
    seen = to_opponent(image)
    mean, spread = moments_where(smooth(seen, 2.0), truth.kept)
    true_mean, true_spread = truth.softer
    contrast = (spread[0] + 0.01) / (true_spread[0] + 0.01)
    colourful, true_colourful = np.hypot(*spread[1:]), np.hypot(*true_spread[1:])
    # Where the photograph is nearly grey, its saturation says little: lean on the contrast.
    saturation = (colourful + 0.03 * contrast) / (true_colourful + 0.03)
    gain = np.array([np.clip(contrast, 0.2, 3), *[np.clip(saturation, 0.2, 1.8)] * 2], np.float32)
    return to_rgb((seen - mean) / gain + true_mean)


def _colour_noise(truth: Truth, colours: np.ndarray) -> float:
    """Return the colour noise of the kept part beyond the photograph's own (root mean square)."""
    return float(np.sqrt(max(0.0, colour_residual_where(colours, truth.soft, truth.kept) - truth.colour_residual)))


def named_distance(truth: Truth) -> float:
    """Return how far the scene's colour stands out from its photograph."""
    colour = truth.scene.spec.colour
    if not colour:
        return 0.5
    return max(0.2, float(truth.distance_table[chroma_bins(PALETTE_CHROMA[colour])]))


def _strip(truth: Truth) -> np.ndarray:
    """Return the border on the named side, where the prompt wants the object."""
    spec = truth.scene.spec
    scale = SIDE / truth.scene.sample.image.shape[0]
    x, y = spec.centre[0] * scale, spec.centre[1] * scale
    slack = 3
    bounds = {
        "left": (0, 0, 2 * x + slack, SIDE),
        "right": (2 * x - SIDE - slack, 0, SIDE, SIDE),
        "top": (0, 0, SIDE, 2 * y + slack),
        "bottom": (0, 2 * y - SIDE - slack, SIDE, SIDE),
    }[spec.side]
    return masks.box(SIDE, SIDE, bounds).astype(np.float32)
