"""What shows that a policy exploits its judge: one function for each, of the judge's answers or of images.

Answers are P(policy's image better than the base's), the mean of both orders. Images are uint8 (H, W, 3), masks
(H, W) with 1 = generated. What is compared with the base is of its images of the same requests, from the same noise.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from onereward_jax.rl.reward_metrics import SURE

REENCODINGS = ("jpeg", "shift", "noise")
JPEG_QUALITY = 75
NOISE = 0.05  # standard deviation, as a share of the full scale
_LUMA = np.array([0.299, 0.587, 0.114])


# -------------------------------------------------------------------------------------------------- the judge's answers


def deviation(p_better: np.ndarray) -> float:
    """Standard deviation over a batch; near 0 where the judge says the same of every image."""
    return float(np.std(p_better))


def sure(p_better: np.ndarray) -> float:
    """Share of answers above .95."""
    return float(np.mean(np.asarray(p_better) > SURE))


def judge_gap(p_training: np.ndarray, p_other: np.ndarray) -> float:
    """Mean P of the judge that training follows above that of one it never sees."""
    return float(np.mean(p_training) - np.mean(p_other))


def disagreement(p_members: np.ndarray) -> float:
    """Standard deviation over an ensemble's judges, mean over the answers.

    Args:
      p_members: (members, answers).
    """
    return float(np.std(p_members, axis=0).mean())


def lost(p_better: np.ndarray, p_after: np.ndarray) -> float:
    """Mean P that is lost when both images are changed as `reencoded` does; a win that this takes away was none."""
    return float(np.mean(p_better) - np.mean(p_after))


# -------------------------------------------------------------------------------------------------------- re-encodings


def reencoded(images: np.ndarray, how: str, shift: int) -> np.ndarray:
    """Change images, uint8 (S, H, W, 3), in a way that no person would mind.

    Args:
      how: "jpeg", as a file of quality 75; "shift", down and to the right by `shift` pixels, with the border mirrored;
        "noise", of a deviation of .05, the same for equal shapes, so that both images of a pair get the same.
    """
    if how == "jpeg":
        return np.stack([_jpeg(image) for image in images])
    if how == "shift":
        padded = np.pad(images, ((0, 0), (shift, 0), (shift, 0), (0, 0)), mode="reflect")
        return padded[:, : images.shape[1], : images.shape[2]]
    noise = np.random.default_rng(0).normal(0, 255 * NOISE, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer))


# -------------------------------------------------------------------------------------------------------------- images


def grid_energy(image: np.ndarray, mask: np.ndarray, period: float) -> float | None:
    """Share of the edges' variance inside the mask that has a period: that of a judge's patches, or of latents.

    An edge is the step between two neighbouring pixels, across or down. The variance at the period and all its
    harmonics is that of the mean over the places with the same phase; what chance gives to such means is taken off. Of
    signed steps it shows a texture that repeats with the period, of steps without their sign the borders of patches
    whose contents differ: the larger one counts.

    Args:
      period: in pixels, 2 or more; need not be whole.

    Returns:
      at most 1, about 0 where nothing has the period; None where no side of the mask is two periods long, or nothing
      varies.
    """
    grey, inside, shares = image @ _LUMA, mask > 0, []
    for axis in (0, 1):
        steps = np.diff(grey, axis=axis)
        both = np.delete(inside, 0, axis) & np.delete(inside, -1, axis)
        place = np.nonzero(both)[axis] + 1
        if place.size and np.ptp(place) + 2 >= 2 * period:
            phase, found = (place % period).astype(int), steps[both]
            of_steps = [_explained(values, phase) for values in (found, np.abs(found))]
            shares += [max(share for share in of_steps if share is not None)] if None not in of_steps else []
    return float(np.mean(shares)) if shares else None


def _explained(values: np.ndarray, groups: np.ndarray) -> float | None:
    """Share of the variance that lies between groups, adjusted for their number."""
    counts = np.bincount(groups)
    kept = counts > 0
    means = np.bincount(groups, values)[kept] / counts[kept]
    total, number, of_groups = float(np.var(values)), len(values), int(kept.sum())
    if total <= 0 or number <= of_groups:
        return None
    between = float(np.average(np.square(means - values.mean()), weights=counts[kept])) / total
    return 1 - (1 - between) * (number - 1) / (number - of_groups)


def saturation(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean saturation inside the mask, (largest − smallest channel) / largest, in [0, 1]."""
    inside = _inside(image, mask)
    largest = inside.max(axis=-1)
    return float(np.mean((largest - inside.min(axis=-1)) / np.maximum(largest, 1)))


def contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the luminance inside the mask, as a share of the full scale."""
    return float(np.std(_inside(image, mask) @ _LUMA) / 255)


def _inside(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, 3) of the generated pixels; of all where there are none."""
    return image[mask > 0 if mask.any() else slice(None)].reshape(-1, 3).astype(np.float64)


def relative(policy: Sequence[float], base: Sequence[float], least: float = 0.01) -> float:
    """How far the policy's mean is from the base's, either way: |log of their ratio|.

    Args:
      least: added to both, so that grey or plain images give no infinite ratio.
    """
    return abs(float(np.log((np.mean(policy) + least) / (np.mean(base) + least))))


def drift(source: np.ndarray, image: np.ndarray, mask: np.ndarray) -> float:
    """Mean change of the pixels outside the mask, in [0, 1]."""
    change = np.abs(source.astype(float) - image)[mask == 0]
    return float(change.mean() / 255) if change.size else 0.0


def distance(answers: np.ndarray, mask: np.ndarray) -> float:
    """Mean distance between answers to one request from different noise: of pixels inside the mask, in [0, 1].

    Args:
      answers: uint8 (K, H, W, 3), K of 2 or more.
    """
    inside = np.stack([_inside(image, mask) for image in answers])
    pairs = [np.abs(inside[i] - inside[j]).mean() for i in range(len(inside)) for j in range(i)]
    return float(np.mean(pairs) / 255)


def diversity(policy: Sequence[float], base: Sequence[float]) -> float | None:
    """The policy's mean `distance` as a share of the base's; None where the base's answers are all alike."""
    return float(np.mean(policy) / np.mean(base)) if np.mean(base) > 0 else None
