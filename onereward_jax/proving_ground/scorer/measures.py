"""Measurements on images, and their conversion to factors in [0, 1]."""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from onereward_jax.proving_ground.scene_spec import PALETTE_CHROMA, chroma

SIDE = 64  # pixels: everything is measured at this size
_LUMA = np.array([0.3, 0.59, 0.11], np.float32)
_TO_OPPONENT = np.stack([_LUMA, [1, -1, 0], [-0.5, -0.5, 1]], axis=-1).astype(np.float32)
TO_CHROMA = np.ascontiguousarray(_TO_OPPONENT[:, 1:])
_FROM_OPPONENT = np.linalg.inv(_TO_OPPONENT)
_BIN = 0.03  # of the table over chroma
_BINS = 76
_OWN_COLOUR = 0.3  # chroma this close to the object's is never taken for photograph


class Form(NamedTuple):
    """The drawing in the hole."""

    alignment: float
    structure: float
    presence: float
    interior: np.ndarray  # float (64, 64), the inside of the drawn object
    extent: np.ndarray | None  # float (64, 64), where the drawing is; None where nothing is to be drawn


def bell(excess: float, tolerance: float, scale: float) -> float:
    """Return 1 up to the tolerance, then fall smoothly."""
    return float(np.exp(-((max(0.0, excess - tolerance) / scale) ** 2)))


def ramp(value: float, low: float, high: float) -> float:
    """Step smoothly from 0 at low to 1 at high."""
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3 - 2 * t)


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(value, -30, 30))))


def mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Average over the pixels of a mask: (channels,), or a number for a plane without channels."""
    weight = where.reshape(-1).astype(np.float32)
    return weight @ values.reshape(weight.size, -1).squeeze() / max(float(weight.sum()), 1.0)


def moments_where(values: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means and standard deviations of the channels over the pixels of a mask."""
    mean = mean_where(values, where)
    centred = values - mean
    return mean, np.sqrt(mean_where(centred * centred, where))


def colour_residual_where(colours: np.ndarray, soft: np.ndarray, where: np.ndarray) -> float:
    """Return the mean square difference from the blurred photograph's chroma."""
    off = colours - soft[..., 1:]
    return float(mean_where(off * off, where).mean())


def chroma_bins(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.clip(np.round(values / _BIN).astype(np.int32) + _BINS // 2, 0, _BINS - 1)
    return index[..., 0], index[..., 1]


def distance_table(background: np.ndarray, colour: str) -> np.ndarray:
    """Return the distance of every chroma from those of the photograph; distant ones were drawn."""
    counts = np.zeros((_BINS, _BINS), np.float32)
    np.add.at(counts, chroma_bins(chroma(background)), 1)
    photographic = ndimage.uniform_filter(counts, 3) * 9 >= 3
    if colour:
        axis = (np.arange(_BINS) - _BINS // 2) * _BIN
        own = PALETTE_CHROMA[colour]
        photographic &= (axis[:, None] - own[0]) ** 2 + (axis[None, :] - own[1]) ** 2 > _OWN_COLOUR**2
    if not photographic.any():
        photographic[_BINS // 2, _BINS // 2] = True
    return ndimage.distance_transform_edt(~photographic).astype(np.float32) * _BIN


@functools.cache
def _blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Return the Gaussian blur along an axis of `side` pixels, with edges repeated, as a matrix."""
    return ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="nearest", truncate=3.0)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur (H, W) or (H, W, C) over the first two axes with a Gaussian."""
    down = _blur_matrix(image.shape[0], sigma)
    across = _blur_matrix(image.shape[1], sigma)
    image = image.astype(np.float32, copy=False)
    if image.ndim == 2:
        return down @ image @ across.T
    height, width, channels = image.shape
    rows = (down @ image.reshape(height, -1)).reshape(image.shape)
    columns = across @ rows.swapaxes(0, 1).reshape(width, -1)
    return np.ascontiguousarray(columns.reshape(width, height, channels).swapaxes(0, 1))


def to_opponent(image: np.ndarray) -> np.ndarray:
    """Convert RGB to luma and two chroma channels."""
    return image @ _TO_OPPONENT


def to_rgb(opponent: np.ndarray) -> np.ndarray:
    """Invert `to_opponent`."""
    return opponent @ _FROM_OPPONENT


def fine_structure(image: np.ndarray) -> np.ndarray:
    """Return the fine structure of luma and chroma, without the finest scale, where checkerboards are."""
    fine = smooth(to_opponent(image), 0.6)
    return fine - smooth(fine, 1.5)


def border_pairs(hole: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the flat indices (inside, outside) of neighbours across the mask's border."""
    index = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    inside, outside = [], []
    for first, second in (((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
                          ((slice(1, None), slice(None)), (slice(None, -1), slice(None)))):  # fmt: skip
        for one, other in ((first, second), (second, first)):
            crossing = hole[one] & ~hole[other]
            inside.append(index[one][crossing])
            outside.append(index[other][crossing])
    return np.concatenate(inside), np.concatenate(outside)


def border_step(image: np.ndarray, border: tuple[np.ndarray, ...], weight: np.ndarray) -> np.ndarray:
    """Return the step from outside to inside, smoothed along the border: (pairs, 3)."""
    inside, outside = border
    if not len(inside):
        return np.zeros((0, 3), np.float32)
    flat = image.reshape(-1, 3)
    weights = np.minimum(weight.reshape(-1)[inside], weight.reshape(-1)[outside])
    step = (flat[inside] - flat[outside]) * weights[:, None]
    plane = np.stack(
        [np.bincount(inside, values, SIDE * SIDE) for values in (*step.T, weights)], axis=-1
    ).reshape(SIDE, SIDE, 4)  # fmt: skip
    plane = smooth(plane.astype(np.float32), 2.0).reshape(-1, 4)[inside]
    return plane[:, :3] / (plane[:, 3:] + 1e-3)


_CHECKERS = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 2 == 0, 1.0, -1.0).astype(np.float32)


def alternation(image: np.ndarray) -> np.ndarray:
    """Return the local amplitude of a pattern that changes sign from pixel to pixel."""
    luma = image @ _LUMA
    luma = luma - smooth(luma, 1.0)
    return np.abs(smooth(luma * _CHECKERS, 1.5))


def direction_of(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the main direction of the fine luma: (cos 2a, sin 2a) times its strength, 0 (none) to 1 (parallel)."""
    gy, gx = np.gradient(smooth(image @ _LUMA, 0.6))
    gy, gx = gy[where], gx[where]
    xx, yy, xy = float(gx @ gx), float(gy @ gy), float(gx @ gy)
    return np.array([xx - yy, 2 * xy]) / (xx + yy + 2e-4 * len(gx))


def coarsen(image: np.ndarray) -> np.ndarray:
    gy, gx = np.gradient(smooth(image @ _LUMA, 1.5))
    return gx * gx + gy * gy


def at_scoring_size(image: np.ndarray) -> np.ndarray:
    """Average (H, W) or (H, W, 3) to `SIDE`, as floats."""
    if image.shape[0] == SIDE:
        return image
    if image.ndim == 2:
        resized = Image.fromarray(image.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(resized, np.float32)
    return np.stack([at_scoring_size(image[..., channel]) for channel in range(3)], axis=-1)
