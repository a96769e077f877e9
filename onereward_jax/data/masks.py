"""Masks at any resolution: boxes, brush strokes, blobs and borders.

Every function returns uint8 (height, width) with 1 = generate. All randomness comes from the
`numpy.random.Generator` argument, so a mask is a function of a seed. A `Box` is
(left, top, right, bottom) in pixels, right and bottom excluded; it may be fractional.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from onereward_jax.errors import UserError

Box = tuple[float, float, float, float]

SIDES = ("left", "right", "top", "bottom")
COVERING_KINDS = ("box", "strokes", "blob")
LEAST_SIDE = 8  # pixels of an image in which a mask is drawn: it has at least four, and leaves something


def box(height: int, width: int, bounds: Box) -> np.ndarray:
    """Fill a rectangle, clipped to the image."""
    left, top, right, bottom = (max(0, round(value)) for value in bounds)
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def borders(height: int, width: int, widths: Mapping[str, int]) -> np.ndarray:
    """Fill strips along the image's sides, for outpainting.

    Args:
      widths: width in pixels for each side to extend: "left", "right", "top", "bottom".

    Raises:
      UserError: an unknown side, or strips that cover the whole image.
    """
    unknown = set(widths) - set(SIDES)
    if unknown:
        raise UserError(f"unknown side {sorted(unknown)[0]!r}: choose among {', '.join(SIDES)}")
    left, right = widths.get("left", 0), widths.get("right", 0)
    top, bottom = widths.get("top", 0), widths.get("bottom", 0)
    if left + right >= width or top + bottom >= height:
        raise UserError(f"borders {dict(widths)} leave nothing of a {width}x{height} image: make them narrower")
    mask = np.ones((height, width), np.uint8)
    mask[top : height - bottom, left : width - right] = 0
    return mask


def blob(height: int, width: int, bounds: Box, generator: np.random.Generator) -> np.ndarray:
    """Fill a smooth closed outline that about touches the sides of `bounds`.

    The outline is an ellipse whose radius is modulated by a few low harmonics.
    """
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for harmonic in (2, 3, 4, 5):
        radius += generator.normal(0, 0.16 / harmonic) * np.cos(harmonic * angle + generator.uniform(0, 2 * np.pi))
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    left, top, right, bottom = bounds
    x = left + (x - x.min()) / np.ptp(x) * (right - left)
    y = top + (y - y.min()) / np.ptp(y) * (bottom - top)
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon([*zip(x.tolist(), y.tolist(), strict=True)], fill=1)
    return np.asarray(canvas, np.uint8).copy()


def strokes(
    height: int, width: int, bounds: Box, generator: np.random.Generator, thickness: float | None = None
) -> np.ndarray:
    """Scrub over `bounds` with a round brush in a zigzag, as a person would.

    Args:
      thickness: the brush's diameter in pixels; by default about a third of the shorter side of `bounds`.
    """
    left, top, right, bottom = bounds
    brush = thickness or max(2.0, min(right - left, bottom - top) * generator.uniform(0.28, 0.42))
    half = brush / 2
    across, along = (right - left, bottom - top)
    flip = across < along  # scrub along the longer side
    if flip:
        across, along = along, across
    turns = max(2, math.ceil((along - brush) / (0.72 * brush)) + 1)
    lanes = np.linspace(half, along - half, turns)
    points = []
    for index, lane in enumerate(lanes):
        ends = (half, across - half) if index % 2 == 0 else (across - half, half)
        for end in ends:
            points.append((end + generator.normal(0, 0.12 * brush), lane + generator.normal(0, 0.12 * brush)))
    if flip:
        points = [(y, x) for x, y in points]
    if generator.random() < 0.5:
        points = [(right - left - x, y) for x, y in points]
    points = [(left + x, top + y) for x, y in points]
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    draw.line(points, fill=1, width=max(1, round(brush)), joint="curve")
    for x, y in points:
        draw.ellipse((x - half, y - half, x + half, y + half), fill=1)
    return np.asarray(canvas, np.uint8).copy()


def cover(kind: str, height: int, width: int, bounds: Box, generator: np.random.Generator) -> np.ndarray:
    """Cover about `bounds` with a mask of one of `COVERING_KINDS`.

    Raises:
      UserError: the kind is unknown.
    """
    if kind == "box":
        return box(height, width, bounds)
    if kind == "blob":
        return blob(height, width, bounds, generator)
    if kind == "strokes":
        return strokes(height, width, bounds, generator)
    raise UserError(f"unknown kind of mask {kind!r}: choose one of {', '.join(COVERING_KINDS)}")


def random_cover(
    height: int,
    width: int,
    generator: np.random.Generator,
    least: float = 0.2,
    most: float = 0.7,
    kinds: Sequence[str] = COVERING_KINDS,
) -> np.ndarray:
    """Draw a mask of a random kind at a random place.

    Args:
      least, most: range of the sides of its bounds, as shares of the image's sides.
      kinds: of `COVERING_KINDS`.
    """
    # At least four pixels, or the mask could be empty.
    extent = np.maximum(generator.uniform(least, most, 2) * (width, height), 4)
    left, top = generator.uniform(0, 1, 2) * ((width, height) - extent)
    kind = kinds[int(generator.integers(len(kinds)))]
    return cover(kind, height, width, (left, top, left + extent[0], top + extent[1]), generator)


def random_borders(
    height: int, width: int, generator: np.random.Generator, least: float = 0.2, most: float = 0.7
) -> np.ndarray:
    """Draw strips along one to four sides; fewer are more likely.

    Args:
      least, most: range of the extended share of a height or width; two opposite strips take half of it each.
    """
    sides = generator.permutation(SIDES)[: generator.choice([1, 2, 3, 4], p=[0.45, 0.3, 0.15, 0.1])].tolist()
    widths = {}
    for side, opposite, extent in zip(
        SIDES, ("right", "left", "bottom", "top"), [width] * 2 + [height] * 2, strict=True
    ):
        if side in sides:
            share = generator.uniform(least, most) / (2 if opposite in sides else 1)
            widths[side] = max(1, int(share * extent))
    return borders(height, width, widths)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the ones in a mask, right and bottom excluded.

    Raises:
      UserError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise UserError("the mask is empty: mark at least one pixel to generate")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
