"""Masks as COCO's run lengths, as annotation files of other projects hold them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onereward_jax.errors import UserError, shown
from onereward_jax.images.decoding import MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """A mask: pixels column by column, runs of 0 and 1 in turn, beginning with 0.

    Attributes:
      height, width: of the mask.
      counts: lengths of the runs.
    """

    height: int
    width: int
    counts: tuple[int, ...]

    name = "the run lengths"

    @classmethod
    def of(cls, mask: np.ndarray) -> "RunLengths":
        """Encode a mask, (H, W), nonzero = generate."""
        pixels = np.concatenate([[False], np.asarray(mask).T.ravel() != 0])
        ends = np.flatnonzero(np.diff(pixels))
        height, width = mask.shape
        return cls(height, width, tuple(np.diff(ends, prepend=0, append=mask.size).tolist()))

    def mask(self) -> np.ndarray:
        """Decode to uint8 (height, width), 1 = generate.

        Raises:
          UserError: nothing is marked.
        """
        if not any(self.counts[1::2]):
            raise UserError("the run lengths mark nothing: mark the area to generate")
        values = np.arange(len(self.counts), dtype=np.int64) % 2
        return np.repeat(values.astype(np.uint8), self.counts).reshape(self.width, self.height).T


def run_lengths(value: Any) -> RunLengths:
    """Read COCO's `{"size": [height, width], "counts": text or list}`.

    Raises:
      UserError: it is not that.
    """
    fields = value if isinstance(value, Mapping) else {}
    size, counts = _numbers(fields.get("size")), fields.get("counts")
    counts = _numbers(_uncompressed(counts) if isinstance(counts, str) else counts)
    if len(size) != 2 or not 0 < sum(counts) == size[0] * size[1] <= MAX_PIXELS:
        raise UserError(
            f'segmentation is {shown(value)}: give COCO run lengths, {{"size": [height, width], "counts": ...}}'
        )
    return RunLengths(size[0], size[1], tuple(counts))


def _numbers(value: Any) -> list[int]:
    """The list, if it is one of whole numbers from 0 on."""
    return value if isinstance(value, list) and all(type(x) is int and x >= 0 for x in value) else []


def _uncompressed(text: str) -> list[int] | None:
    """Decode the text form; None if it is none.

    A character has six bits: five of a number, low ones first, and whether more follow. From the fourth on, a number is
    the difference from the last but one. Source: `rleFrString` in cocoapi, common/maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return None if shift else counts
