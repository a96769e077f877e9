"""Whether the generated part shows what the prompt says: the cosine of both in CLIP's space (Hessel et al. 2021)."""

from collections.abc import Sequence

import numpy as np

from onereward_jax.atomic_files import fingerprint
from onereward_jax.data.sample import Sample
from onereward_jax.evaluation.meters.meter import Measured, Meter
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.weights.clip_encoder import ClipEncoder


def text_alignment(path: str) -> Meter:
    """Make the meter of a CLIP model, which lies on one device from its first measurement on.

    "clip" is of the whole image; "clip_inside" of the part inside the mask's bounding box, made square.

    Args:
      path: a directory or hub repository in transformers' layout: "openai/clip-vit-large-patch14".

    Raises:
      FileNotFoundError, UserError: it is missing, or no CLIP model.
    """
    clip = ClipEncoder(path)  # on the device from the first measurement on: not beside policies and judges
    clip.check_texts()

    def measure(samples: Sequence[Sample], pictures: Sequence[np.ndarray]) -> Measured:
        asked = ["text_alignment" in dimensions_of(sample.task, sample.prompt) for sample in samples]
        rows = [row for row, described in enumerate(asked) if described]
        found: Measured = [{} for _ in samples]
        if not rows:
            return found
        of_texts = clip.texts([samples[row].prompt for row in rows])
        whole = clip.images([pictures[row] for row in rows])
        inside = clip.images([_around(samples[row].mask, pictures[row]) for row in rows])
        for number, row in enumerate(rows):
            found[row] = {
                "clip": float(of_texts[number] @ whole[number]),
                "clip_inside": float(of_texts[number] @ inside[number]),
            }
        return found

    return Meter(
        name="text_alignment",
        tasks=tuple(task for task in TASKS if "text_alignment" in dimensions_of(task)),
        measure=measure,
        about={"version": 1, "clip": fingerprint(clip.directory)},
        values={
            "clip": ("CLIP's cosine of prompt and image", True),
            "clip_inside": ("CLIP's cosine of prompt and what the mask shows", True),
        },
    )


def _around(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The square around the mask's bounding box, as far as the image reaches."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return image
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1

    def span(found: np.ndarray, length: int) -> slice:
        start = int(np.clip((found[0] + found[-1] + 1 - side) // 2, 0, max(0, length - side)))
        return slice(start, min(length, start + side))

    return image[span(rows, image.shape[0]), span(columns, image.shape[1])]
