"""Fidelity outside the mask, where nothing was to change, and the seam at its border."""

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity

from onereward_jax.data.sample import Sample
from onereward_jax.evaluation.meters.meter import Measured, Meter
from onereward_jax.tasks import TASKS

_MAX_PSNR = 100.0  # dB, of images that are the same: else there were no mean
_WINDOW = 7  # pixels of a side, scikit-image's default
_BAND = 4  # pixels at each side of the border


def _measure(samples: Sequence[Sample], images: Sequence[np.ndarray]) -> Measured:
    return [_of_image(sample, image) for sample, image in zip(samples, images, strict=True)]


def _of_image(sample: Sample, image: np.ndarray) -> dict[str, float]:
    outside = sample.mask == 0
    found = {"seam": seam(image, sample.mask, sample.image)}
    if outside.any():
        found |= {"psnr_outside": psnr(sample.image[outside], image[outside])}
        if min(image.shape[:2]) >= _WINDOW:
            # A window at the border shall not see the inside.
            untouched = np.where(outside[..., None], image, sample.image)
            found |= {"ssim_outside": ssim(sample.image, untouched, outside)}
    if sample.target is not None:
        found |= {"psnr_target": psnr(sample.target, image)}
        if (sample.mask > 0).any():
            found |= {"psnr_target_inside": psnr(sample.target[~outside], image[~outside])}
        if min(image.shape[:2]) >= _WINDOW:
            found |= {"ssim_target": ssim(sample.target, image)}
    return found


def psnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels in dB, at most 100."""
    error = float(np.mean(np.square(expected.astype(np.float64) - found)))
    return min(_MAX_PSNR, 10 * float(np.log10(255**2 / error))) if error else _MAX_PSNR


def ssim(expected: np.ndarray, found: np.ndarray, where: np.ndarray | None = None) -> float:
    """Structural similarity (Wang et al. 2004, scikit-image's), mean over the pixels `where`, (H, W)."""
    mean, of_pixels = structural_similarity(
        expected, found, win_size=_WINDOW, channel_axis=-1, data_range=255, full=True
    )
    return float(mean if where is None else of_pixels[where].mean())


def seam(image: np.ndarray, mask: np.ndarray, original: np.ndarray) -> float:
    """Measure how visible the mask's border is: the mean step between neighbouring pixels across it, minus that
    between neighbours near it which lie on one side, in shares of the full scale. Around 0 where nothing shows.

    The step across it goes from the original's pixel outside to the generated one inside, as in an image whose
    untouched pixels are put back.

    Args:
      image, original: uint8 (H, W, 3); mask: (H, W), 1 = generated.
    """
    inside = mask > 0
    pasted = np.where(inside[..., None], image, original).astype(np.float64) / 255
    across, beside = [], []
    near = _near_border(inside)
    for axis in (0, 1):
        step = np.abs(np.diff(pasted, axis=axis)).mean(axis=-1)
        crosses = np.diff(inside.astype(np.int8), axis=axis) != 0
        close = np.logical_and(*(np.take(near, range(s, near.shape[axis] - 1 + s), axis=axis) for s in (0, 1)))
        across.append(step[crosses])
        beside.append(step[close & ~crosses])
    steps, others = np.concatenate(across), np.concatenate(beside)
    if not steps.size:
        return 0.0  # the mask covers everything, or nothing
    return float(steps.mean() - (others.mean() if others.size else 0.0))


def _near_border(inside: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    grown = ndimage.binary_dilation(inside, iterations=_BAND)
    shrunk = ndimage.binary_erosion(inside, iterations=_BAND, border_value=1)
    return grown & ~shrunk


OUTSIDE = Meter(
    name="outside",
    tasks=TASKS,
    measure=_measure,
    about={"version": 1, "window": _WINDOW, "band": _BAND},
    values={
        "psnr_outside": ("PSNR outside the mask, dB", True),
        "ssim_outside": ("SSIM outside the mask", True),
        "seam": ("seam at the mask's border", False),
        "psnr_target": ("PSNR with the right answer, dB", True),
        "psnr_target_inside": ("PSNR with the right answer inside the mask, dB", True),
        "ssim_target": ("SSIM with the right answer", True),
    },
)
