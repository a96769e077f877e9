"""Image grids, mask overlays and PNG files. Everything is uint8 (H, W, 3)."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from onereward_jax.atomic_files import write_bytes
from onereward_jax.errors import UserError

GAP = 4
LABEL_HEIGHT = 14
BACKGROUND = 255
LABEL_COLOUR = (70, 70, 70)
MASK_COLOUR = np.array([255.0, 0.0, 170.0])
MASK_OPACITY = 0.55


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert grey (H, W) or colour (H, W, 3), uint8 or float in [0, 1], to uint8 (H, W, 3).

    Raises:
      UserError: another shape or dtype, NaN, or values that round to no grey level.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"an image has shape (height, width, 3), not {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        levels = np.round(image * np.float32(255))
        if not ((levels >= 0) & (levels <= 255)).all():  # NaN is neither
            raise UserError(
                f"an image of floats is in [0, 1], not from {image.min():.4g} to {image.max():.4g}: divide by 255, or"
                " clip it"
            )
        return levels.astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"an image is uint8, or float in [0, 1], not {image.dtype}")
    return image


def drawable(image: np.ndarray) -> np.ndarray:
    """Convert an image that a model made, whose floats may be outside [0, 1] or NaN (drawn black); see `to_uint8`."""
    image = np.asarray(image)
    return to_uint8(np.clip(np.nan_to_num(image), 0, 1) if np.issubdtype(image.dtype, np.floating) else image)


def mask_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint and outline the mask (H, W; 1 = generate) on the image."""
    image, hole = drawable(image), np.asarray(mask) > 0
    if hole.shape != image.shape[:2]:
        raise UserError(f"the mask is {hole.shape}, its image {image.shape[:2]}: give both the same height and width")
    padded = np.pad(hole, 1, mode="edge")
    neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    opacity = np.where(hole & ~neighbours, 1.0, MASK_OPACITY * hole)[..., None]
    return np.round(image * (1 - opacity) + MASK_COLOUR * opacity).astype(np.uint8)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge an image by repeating pixels."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def image_grid(rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str] = (), scale: int = 1) -> np.ndarray:
    """Draw images in a grid.

    Args:
      rows: images, row by row; rows may be short, and images may differ in size (they are centred in their cells).
      columns: a heading for each column; no headings if empty.
      scale: whole-number enlargement of the images, without smoothing.

    Returns:
      uint8 (H, W, 3), white between the images.

    Raises:
      UserError: there are no images, or fewer headings than columns.
    """
    cells = [[enlarge(drawable(image), scale) for image in row] for row in rows]
    width = max((len(row) for row in cells), default=0)
    if width == 0:
        raise UserError("a grid needs at least one image")
    if columns and len(columns) < width:
        raise UserError(f"the grid has {width} columns but {len(columns)} headings: give one for each column")
    cell_height = max(image.shape[0] for row in cells for image in row)
    cell_width = max(image.shape[1] for row in cells for image in row)
    top = GAP + (LABEL_HEIGHT if columns else 0)

    height = top + len(cells) * (cell_height + GAP)
    grid = np.full((height, GAP + width * (cell_width + GAP), 3), BACKGROUND, np.uint8)
    for row, images in enumerate(cells):
        for column, image in enumerate(images):
            y = top + row * (cell_height + GAP) + (cell_height - image.shape[0]) // 2
            x = GAP + column * (cell_width + GAP) + (cell_width - image.shape[1]) // 2
            grid[y : y + image.shape[0], x : x + image.shape[1]] = image
    if columns:
        canvas = Image.fromarray(grid)
        draw = ImageDraw.Draw(canvas)
        for column, heading in enumerate(columns[:width]):
            draw.text((GAP + column * (cell_width + GAP), 2), heading, fill=LABEL_COLOUR)
        grid = np.array(canvas)
    return grid


def text_cell(lines: Sequence[str], width: int) -> np.ndarray:
    """Draw lines of text, as the first cell of a row; uint8 (H, W, 3)."""
    canvas = Image.new("RGB", (width, max(1, len(lines)) * LABEL_HEIGHT), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((0, number * LABEL_HEIGHT), line, fill=LABEL_COLOUR)
    return np.asarray(canvas)


def png(image: np.ndarray) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(drawable(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write a PNG file atomically, making its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png(image))
