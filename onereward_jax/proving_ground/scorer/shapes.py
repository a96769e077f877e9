"""Finds the shape drawn in an image, and how well it is drawn."""

import functools
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from onereward_jax.proving_ground import drawing
from onereward_jax.proving_ground.scene_spec import PALETTE_CHROMA, chroma
from onereward_jax.proving_ground.scorer.measures import SIDE, Form, bell, ramp, sigmoid, smooth
from onereward_jax.proving_ground.scorer.truth import Truth

_RADII = tuple(np.exp(np.linspace(np.log(4.6), np.log(12.5), 9)))


class _Bank(NamedTuple):
    """Prepare templates of every shape at every radius for matching."""

    alpha: np.ndarray  # (shapes, radii, 64, 64)
    spectra: np.ndarray  # conjugate spectra
    squares: np.ndarray  # (shapes, radii), sums of squares
    soft_spectra: np.ndarray  # the same of the blurred templates
    soft_squares: np.ndarray


@functools.cache
def _shape_bank() -> _Bank:
    centre = (SIDE / 2, SIDE / 2)
    drawn = [[drawing.shape_alpha(s, r, centre, SIDE, SIDE) for r in _RADII] for s in drawing.SHAPES]
    sharp = np.array([[smooth(alpha, 0.45) for alpha in row] for row in drawn])
    soft = np.array([[smooth(alpha, _SOFT) for alpha in row] for row in sharp])
    spectra = [np.conj(fft.rfft2(bank)).astype(np.complex64) for bank in (sharp, soft)]
    return _Bank(sharp, spectra[0], (sharp**2).sum(axis=(2, 3)), spectra[1], (soft**2).sum(axis=(2, 3)))


_SOFT = 1.4  # pixels: a blur that hides ragged edges, to tell which shape is meant


def _dice(ink: np.ndarray, spectra: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the position of best overlap 2·Σab / (Σa² + Σb²) of the ink with each template."""
    match = fft.irfft2(fft.rfft2(ink) * spectra, s=(SIDE, SIDE)).reshape(*squares.shape, -1)
    position = match.argmax(axis=-1)
    best = np.take_along_axis(match, position[..., None], axis=-1)[..., 0]
    return 2 * best / ((ink**2).sum() + squares + 1e-6), position


def shape_form(truth: Truth, image: np.ndarray, ink: np.ndarray, distance: np.ndarray, named: float) -> Form:
    spec = truth.scene.spec
    bank = _shape_bank()
    ink = ink.astype(np.float32)
    dice, position = _dice(ink, bank.spectra, bank.squares)
    best = np.unravel_index(dice.argmax(), dice.shape)
    template = np.roll(bank.alpha[best], divmod(int(position[best]), SIDE), axis=(0, 1))
    standing_out = float((template**2 * distance).sum() / (template**2).sum()) / named
    enough = ramp(float(ink.sum()), 25, 70)

    # Any clean outline is well-formed, the named one or not; nothing drawn is nothing ill-formed.
    well_formed = ramp(float(dice.max()), 0.70, 0.975)
    weight = ramp(standing_out, 0.1, 0.45) * enough
    structure = 1 - weight * (1 - well_formed)

    colour_right = hue_agreement(image, template * ink**2, spec.colour)
    near = slice(max(0, int(best[1]) - 1), int(best[1]) + 2)
    soft, _ = _dice(smooth(ink, _SOFT), bank.soft_spectra[:, near], bank.soft_squares[:, near])
    own = drawing.SHAPES.index(spec.shape)
    lead = soft[own].max() - np.delete(soft, own, axis=0).max()
    doubt = 0.008 + 0.08 * max(0.0, 0.96 - float(dice.max()))  # of a ragged form, the benefit
    shape_right = sigmoid((lead + doubt) / 0.006)
    size_right = 1.0
    if spec.names_size:
        radius = _RADII[int(best[1])]
        nearby = ndimage.maximum_filter(template, 5) > 0.2
        area = float((ink * nearby).sum()) / float(template.sum())
        radius *= np.sqrt(min(max(area, 0.5), 2.0))
        off = abs(np.log(radius / drawing.SIZES[spec.size])) / np.log(drawing.SIZES["large"] / drawing.SIZES["small"])
        size_right = bell(off, 0.18 + max(0.0, 0.96 - float(dice.max())), 0.5)
    presence = ramp(standing_out, 0.02, 0.65) * enough
    alignment = presence * (0.04 + 0.96 * colour_right) * (0.25 + 0.75 * shape_right) * (0.3 + 0.7 * size_right)
    interior = np.clip(ndimage.minimum_filter(template, 3) * ink, 0, 1) * (presence > 0.2)
    return Form(alignment, structure, presence, interior, template * (presence > 0.05))


def hue_agreement(image: np.ndarray, weight: np.ndarray, colour: str) -> float:
    """Return how close the weighted pixels are to a colour of the palette: three quarters hue, one quarter chroma."""
    seen = (weight[..., None] * chroma(image)).sum(axis=(0, 1)) / (weight.sum() + 1e-6)
    own = PALETTE_CHROMA[colour]
    turn = np.arctan2(seen[1], seen[0]) - np.arctan2(own[1], own[0])
    turn = abs((np.degrees(turn) + 180) % 360 - 180)
    return 0.75 * bell(float(turn), 9, 27) + 0.25 * bell(float(np.linalg.norm(seen - own)), 0.25, 0.45)
