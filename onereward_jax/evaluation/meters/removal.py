"""What is left of an object that was to be removed."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from onereward_jax.data.sample import Sample
from onereward_jax.evaluation.meters.meter import Measured, Meter


def residue(source: np.ndarray, image: np.ndarray, mask: np.ndarray, target: np.ndarray | None = None) -> float:
    """Measure how much of the object is still seen, from 0 (nothing) to 1 (all).

    With the right answer t, the coefficient of the object s − t in the error x − t inside the mask, by least squares.
    Without it, the correlation of edges (gradient magnitudes) of x and s inside the mask, which of unrelated images is
    about 0.

    Args:
      source: s, with the object; image: x; target: t, without it: uint8 (H, W, 3). mask: (H, W), 1 = generated.
    """
    inside = mask > 0
    if target is not None:
        thing, error = ((x.astype(np.float64) - target)[inside].ravel() for x in (source, image))
        power = float(thing @ thing)
        return float(np.clip(thing @ error / power, 0, 1)) if power else 0.0
    a, b = (_edges(x)[inside] for x in (source, image))
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / power, 0, 1)) if power else 0.0


def _edges(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float64).mean(axis=-1)
    return np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))


def _measure(samples: Sequence[Sample], images: Sequence[np.ndarray]) -> Measured:
    return [
        {"residue": residue(sample.image, image, sample.mask, sample.target)}
        for sample, image in zip(samples, images, strict=True)
    ]


REMOVAL = Meter(
    name="removal",
    tasks=("object_removal",),
    measure=_measure,
    about={"version": 1},
    values={"residue": ("what is left of the removed object, 0 to 1", False)},
)
