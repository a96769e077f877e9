"""Reads the word written in an image, and how well it is written."""

import functools

import numpy as np
from scipy import fft, ndimage

from onereward_jax.proving_ground import drawing
from onereward_jax.proving_ground.scorer.measures import SIDE, Form, bell, ramp, sigmoid, smooth
from onereward_jax.proving_ground.scorer.shapes import hue_agreement
from onereward_jax.proving_ground.scorer.truth import Truth

_LETTER_HEIGHT = 12.0
_SHIFTS = np.arange(-2.0, 2.01, 0.5)
_SOFT_LETTER = 0.8  # pixels: a blur that hides ragged strokes, to tell which letter is meant
_WINDOW = (8, 5)  # half height and half width of a letter's window, pixels


@functools.cache
def _letter_bank(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Prepare blurred templates (letters, shifts, pixels) in a letter's window, and the sums of their squares."""
    rows, columns = _WINDOW
    side = 32
    bank = []
    for letter in drawing.ALPHABET:
        shifted = []
        for dy in _SHIFTS:
            for dx in _SHIFTS:
                alpha = drawing.letter_alpha(letter, _LETTER_HEIGHT, (side / 2 + dx, side / 2 + dy), side, side)
                alpha = smooth(alpha, sigma)
                half = side // 2
                shifted.append(alpha[half - rows : half + rows, half - columns : half + columns].reshape(-1))
        bank.append(shifted)
    templates = np.asarray(bank, np.float32)
    return templates, (templates**2).sum(axis=-1)


def word_form(truth: Truth, image: np.ndarray, ink: np.ndarray, distance: np.ndarray, named: float) -> Form:
    spec = truth.scene.spec
    centre = (spec.centre[0] * truth.radius / spec.radius, spec.centre[1] * truth.radius / spec.radius)
    dx, dy = _offset(smooth(truth.alpha, 0.45), ink)
    rows, columns = _WINDOW
    sharp, soft = np.pad(ink, 16), np.pad(smooth(ink, _SOFT_LETTER), 16)
    right, formed = [], []
    for letter, (x, y) in zip(spec.word, drawing.letter_centres(len(spec.word), truth.radius, centre), strict=True):
        x0, y0 = x + dx, y + dy
        # The window starts at a whole pixel; the shifts of the bank cover the rest.
        i, j = int(np.clip(round(y0), 0, SIDE)) + 16, int(np.clip(round(x0), 0, SIDE)) + 16
        window = (slice(i - rows, i + rows), slice(j - columns, j + columns))
        formed.append(_letter_dice(sharp[window], 0.45).max())
        dice = _letter_dice(soft[window], np.hypot(0.45, _SOFT_LETTER))
        own = drawing.ALPHABET.index(letter)
        doubt = 0.03 + 0.25 * max(0.0, 0.95 - float(formed[-1]))
        right.append(sigmoid((dice[own] - np.delete(dice, own).max() + doubt) / 0.02))
    placed = np.roll(truth.alpha, (round(dy), round(dx)), axis=(0, 1))
    standing_out = float((placed**2 * distance).sum() / (placed**2).sum()) / named
    presence = ramp(standing_out, 0.03, 0.5)
    colour_right = 1.0
    if spec.names_colour:
        colour_right = hue_agreement(image, placed**2 * ink**2, spec.colour)
    stray = float((ink * (ndimage.maximum_filter(placed, 5) < 0.05)).sum() / (ink.sum() + 1e-6))
    spelt = float(np.mean(right)) ** 1.5 * ramp(float(np.mean(formed)), 0.4, 0.65)
    alignment = presence * (0.2 + 0.8 * colour_right) * spelt * bell(stray, 0.15, 0.5)
    well_formed = float(np.mean([ramp(float(value), 0.6, 0.96) for value in formed]))
    weight = ramp(standing_out, 0.12, 0.4)
    return Form(alignment, 1 - weight * (1 - well_formed), presence, np.zeros_like(ink), placed)


def _letter_dice(window: np.ndarray, sigma: float) -> np.ndarray:
    """Return the best overlap of a window with each letter of the alphabet, over small shifts."""
    bank, squares = _letter_bank(float(sigma))
    return (2 * (bank @ window.reshape(-1)) / (squares + (window**2).sum() + 1e-6)).max(axis=1)


def _offset(template: np.ndarray, ink: np.ndarray, reach: int = 8) -> tuple[int, int]:
    """Return the (x, y) shift that places the template best over the ink."""
    match = fft.irfft2(fft.rfft2(ink) * np.conj(fft.rfft2(template)), s=(SIDE, SIDE))
    match = np.fft.fftshift(match)
    half = SIDE // 2
    window = match[half - reach : half + reach + 1, half - reach : half + reach + 1]
    y, x = np.unravel_index(window.argmax(), window.shape)
    return int(x) - reach, int(y) - reach
