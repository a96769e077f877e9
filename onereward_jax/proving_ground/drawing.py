"""Coloured shapes and words for the scenes, drawn antialiased.

Lengths are in pixels of an image of any size; the scenes scale them. The letters are strokes of our own on a
unit square, so a word looks the same wherever it is drawn and no font has to be shipped or found.
"""

import functools
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw

from onereward_jax.errors import UserError

# Saturated, and rare in photographs (RGB, 0-255).
COLOURS = {
    "red": (228, 24, 36),
    "yellow": (250, 222, 12),
    "green": (22, 190, 48),
    "cyan": (0, 214, 236),
    "blue": (36, 48, 238),
    "magenta": (228, 24, 214),
}
SHAPES = ("circle", "square", "triangle", "star")
# "Radius" at 64 pixels. Shapes of the same size have about the same area, see `outline`.
SIZES = {"small": 6.0, "large": 10.0}

_OVERSAMPLING = 4

# Polylines on the unit square, y down.
_ARC = [(0.5 + 0.5 * math.sin(a), 0.5 - 0.5 * math.cos(a)) for a in np.linspace(0, 2 * math.pi, 17)]
_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.65), (0.8, 0.65)]],
    "C": [[(0.95, 0.18), (0.72, 0), (0.3, 0), (0, 0.28), (0, 0.72), (0.3, 1), (0.72, 1), (0.95, 0.82)]],
    "E": [[(0.95, 0), (0, 0), (0, 1), (0.95, 1)], [(0, 0.5), (0.8, 0.5)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "I": [[(0.5, 0), (0.5, 1)]],
    "L": [[(0, 0), (0, 1), (0.95, 1)]],
    "N": [[(0, 1), (0, 0), (1, 1), (1, 0)]],
    "O": [_ARC],
    "S": [
        [(0.95, 0.14), (0.72, 0), (0.25, 0), (0.03, 0.22), (0.25, 0.46), (0.75, 0.54), (0.97, 0.78), (0.75, 1)]
        + [(0.25, 1), (0.03, 0.86)]
    ],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "U": [[(0, 0), (0, 0.7), (0.28, 1), (0.72, 1), (1, 0.7), (1, 0)]],
}
ALPHABET = "".join(_LETTERS)
# fmt: off
WORDS = (
    "AT", "HI", "NO", "ON", "SO", "TO",
    "ACE", "CAT", "CUT", "HAT", "HOT", "ICE", "LOT", "NET", "NUT", "OIL", "ONE", "OUT", "SEA", "SIT", "SUN", "TEA",
    "TEN", "TIN",
    "COAT", "COIN", "LION", "NEST", "NOTE", "SALT", "SHOE", "TILE",
)
# fmt: on
# In letter heights: width between stroke centres, distance between letters, stroke width.
LETTER_WIDTH, LETTER_ADVANCE, LETTER_STROKE = 0.48, 0.86, 0.21


def outline(shape: str, radius: float) -> np.ndarray:
    """Return the corners (n, 2) of a shape around the origin, x and y in pixels, y down.

    `radius` is that of a circle; the other shapes are scaled to look as large as the circle.

    Raises:
      UserError: the shape is unknown.
    """
    if shape == "circle":
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return radius * np.stack([np.sin(angle), -np.cos(angle)], axis=-1)
    if shape == "square":
        side = 0.89 * radius
        return np.array([(-side, -side), (side, -side), (side, side), (-side, side)])
    if shape == "triangle":
        angle = 2 * np.pi * np.arange(3) / 3
        corners = 1.42 * radius * np.stack([np.sin(angle), -np.cos(angle)], axis=-1)
        return corners + [0, 0.22 * radius]  # centred in its bounding box, not on its centroid
    if shape == "star":
        angle = 2 * np.pi * np.arange(10) / 10
        reach = np.where(np.arange(10) % 2 == 0, 1.42, 0.58) * radius
        return np.stack([np.sin(angle), -np.cos(angle)], axis=-1) * reach[:, None]
    raise UserError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rasterise a polygon with corners (n, 2) in pixels to its coverage, float32 (height, width) in [0, 1]."""
    k = _OVERSAMPLING
    left, top = np.floor(points.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
    left, top, right, bottom = max(0, left), max(0, top), min(width, right), min(height, bottom)
    alpha = np.zeros((height, width), np.float32)
    if right <= left or bottom <= top:
        return alpha
    canvas = Image.new("L", ((right - left) * k, (bottom - top) * k))
    corners = (points - [left, top]) * k - 0.5
    ImageDraw.Draw(canvas).polygon([*map(tuple, corners.tolist())], fill=255)
    patch = np.asarray(canvas, np.float32).reshape(bottom - top, k, right - left, k).mean(axis=(1, 3)) / 255
    alpha[top:bottom, left:right] = patch
    return alpha


def shape_alpha(
    shape: str, radius: float, centre: tuple[float, float], height: int, width: int, angle: float = 0.0
) -> np.ndarray:
    """Rasterise a shape at `centre` = (x, y) pixels, turned by `angle` radians: coverage, float32 (height, width)."""
    points = outline(shape, radius)
    if angle:
        cos, sin = math.cos(angle), math.sin(angle)
        points = points @ np.array([[cos, sin], [-sin, cos]])
    return fill_polygon(points + centre, height, width)


@functools.lru_cache(maxsize=512)
def _glyph(
    letter: str, letter_height: float, shift: tuple[float, float], left_out: frozenset[int] = frozenset()
) -> np.ndarray:
    """Rasterise a letter in its own cell, whose centre is shifted by a fraction of a pixel."""
    k = _OVERSAMPLING
    stroke = LETTER_STROKE * letter_height
    span_x, span_y = LETTER_WIDTH * letter_height, letter_height - stroke
    half = math.ceil(letter_height / 2 + 2)
    side = 2 * half * k
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    reach = stroke * k / 2
    polylines = _LETTERS[letter]
    if left_out:
        polylines = [list(ends) for number, ends in enumerate(segments_of(letter)) if number not in left_out]
    for polyline in polylines:
        points = [
            (
                (half + shift[0] + (x - 0.5) * span_x) * k - 0.5,
                (half + shift[1] + (y - 0.5) * span_y) * k - 0.5,
            )
            for x, y in polyline
        ]
        draw.line(points, fill=255, width=round(stroke * k), joint="curve")
        for x, y in points:
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    return np.asarray(canvas, np.float32).reshape(2 * half, k, 2 * half, k).mean(axis=(1, 3)) / 255


def segments_of(letter: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the straight parts of a letter's strokes, in the order in which it is drawn, on the unit square."""
    return [ends for polyline in _LETTERS[letter] for ends in itertools.pairwise(polyline)]


def on_letter(point: tuple[float, float], letter_height: float, centre: tuple[float, float]) -> tuple[float, float]:
    """Return where a point of the unit square lies, in pixels, of a letter around `centre`."""
    spans = LETTER_WIDTH * letter_height, (1 - LETTER_STROKE) * letter_height
    return centre[0] + (point[0] - 0.5) * spans[0], centre[1] + (point[1] - 0.5) * spans[1]


def letter_alpha(
    letter: str,
    letter_height: float,
    centre: tuple[float, float],
    height: int,
    width: int,
    left_out: frozenset[int] = frozenset(),
) -> np.ndarray:
    """Rasterise a capital of `ALPHABET` around `centre` = (x, y) pixels: coverage, float32 (height, width).

    Args:
      left_out: numbers of `segments_of` the letter that are not drawn.
    """
    alpha = np.zeros((height, width), np.float32)
    steps = 4  # glyphs are cached at quarters of a pixel
    x, y = round(centre[0] * steps), round(centre[1] * steps)
    glyph = _glyph(letter, letter_height, (x % steps / steps, y % steps / steps), left_out)
    half = len(glyph) // 2
    left, top = x // steps - half, y // steps - half
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + 2 * half), min(height, top + 2 * half)
    if x1 > x0 and y1 > y0:
        alpha[y0:y1, x0:x1] = glyph[y0 - top : y1 - top, x0 - left : x1 - left]
    return alpha


def letter_centres(count: int, letter_height: float, centre: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the centres of a word's letters, monospaced as on a typewriter."""
    advance = LETTER_ADVANCE * letter_height
    return [(centre[0] + (index - (count - 1) / 2) * advance, centre[1]) for index in range(count)]


def word_size(count: int, letter_height: float) -> tuple[float, float]:
    """Return the width and height in pixels of a word with `count` letters."""
    return ((count - 1) * LETTER_ADVANCE + LETTER_WIDTH + LETTER_STROKE) * letter_height, letter_height


def word_alpha(word: str, letter_height: float, centre: tuple[float, float], height: int, width: int) -> np.ndarray:
    """Rasterise a word around `centre` = (x, y) pixels: coverage, float32 (height, width)."""
    alpha = np.zeros((height, width), np.float32)
    for letter, position in zip(word, letter_centres(len(word), letter_height, centre), strict=True):
        np.maximum(alpha, letter_alpha(letter, letter_height, position, height, width), out=alpha)
    return alpha


def shading(centre: tuple[float, float], reach: float, height: int, width: int) -> np.ndarray:
    """Return light from above as a factor, float32 (height, 1, 1), that falls by a seventh across an object."""
    rows = (np.arange(height, dtype=np.float32) + 0.5 - centre[1]) / max(reach, 1.0)
    return (1.0 - 0.07 * np.clip(rows, -1, 1))[:, None, None]


def paste(
    background: np.ndarray, alpha: np.ndarray, colour: tuple[float, ...], shade: np.ndarray | float = 1.0
) -> np.ndarray:
    """Blend `colour` (0-255) times `shade` over `background`, uint8 (H, W, 3), with weights `alpha` (H, W)."""
    paint = np.clip(np.asarray(colour, np.float32) * shade, 0, 255)
    mixed = background + (paint - background) * alpha[..., None]
    return np.round(mixed).astype(np.uint8)
