"""Whether rendered text can be read: by RapidOCR (PP-OCR's models, which its wheel holds), an optional extra."""

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.evaluation.meters.meter import Measured, Meter
from onereward_jax.tasks import quoted_texts

_MIN_SIDE = 320  # pixels: smaller images are enlarged for the reader, which was made for photographs


def asked_text(prompt: str) -> str:
    """Return the words that a prompt asks to be written: what it has in quotation marks, or else all of it."""
    return " ".join(quoted_texts(prompt)) or prompt


def accuracies(asked: str, read: str) -> dict[str, float]:
    """Compare two texts, whatever their case, spaces and punctuation.

    Returns:
      "words": the share of the asked words that were read, each as often as it was asked;
      "characters": 1 − edit distance / number of asked characters, at least 0.
    """
    asked_words, read_words = _words(asked), _words(read)
    left = list(read_words)
    found = 0
    for word in asked_words:
        if word in left:
            left.remove(word)
            found += 1
    wanted, seen = "".join(asked_words), "".join(read_words)
    if not wanted:
        return {}
    return {
        "words": found / len(asked_words),
        "characters": max(0.0, 1 - edit_distance(wanted, seen) / len(wanted)),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def edit_distance(a: str, b: str) -> int:
    """Count the insertions, deletions and replacements that turn one text into the other (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def words() -> Meter:
    """Make the meter of word and character accuracy.

    It reads what lies inside the bounding box of the mask.

    Raises:
      UserError: the library is not installed.
    """
    if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
        raise UserError("reading words needs RapidOCR: pip install 'onereward-jax[ocr]', or leave --ocr out")
    return Meter(
        name="words",
        tasks=("text_rendering",),
        measure=_measure,
        about={"version": 1, "rapidocr": version("rapidocr"), "onnxruntime": version("onnxruntime")},
        values={
            "words": ("share of the words that can be read", True),
            "characters": ("share of the characters that can be read", True),
        },
    )


def _measure(samples: Sequence[Sample], images: Sequence[np.ndarray]) -> Measured:
    return [
        accuracies(asked_text(sample.prompt), read_text(_written(sample, image)))
        for sample, image in zip(samples, images, strict=True)
    ]


def _written(sample: Sample, image: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(sample.mask)
    return image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if len(rows) else image


def read_text(image: np.ndarray) -> str:
    """Read an image, uint8 (H, W, 3), line by line."""
    from PIL import Image

    height, width = image.shape[:2]
    factor = -(-_MIN_SIDE // max(1, min(height, width)))
    if factor > 1:
        image = np.asarray(Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.LANCZOS))
    found = _reader()(np.ascontiguousarray(image[..., ::-1]))  # as OpenCV has its channels
    return " ".join(found.txts or ())


@lru_cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})
