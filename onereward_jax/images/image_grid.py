"""Pictures as arrays: contact sheets, masks made visible, PNG files. Everything is uint8 (H, W, 3)."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from onereward_jax.atomic_files import write_bytes
from onereward_jax.errors import UserError

GAP = 4
LABEL_HEIGHT = 14
PAPER = 255
INK = (70, 70, 70)
MASK_COLOUR = np.array([255.0, 0.0, 170.0])
MASK_OPACITY = 0.55


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Grey (H, W) or colour (H, W, 3), uint8 or float in [0, 1] -> uint8 (H, W, 3).

    Raises:
      UserError: the shape or the type is none of these.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"a picture has shape (height, width, 3), not {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        return np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"a picture is uint8, or float in [0, 1], not {image.dtype}")
    return image


def mask_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with its mask (H, W; 1 = generate) tinted and outlined."""
    image, hole = to_uint8(image), np.asarray(mask) > 0
    if hole.shape != image.shape[:2]:
        raise UserError(f"the mask is {hole.shape}, its image {image.shape[:2]}: give both the same height and width")
    padded = np.pad(hole, 1, mode="edge")
    neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    opacity = np.where(hole & ~neighbours, 1.0, MASK_OPACITY * hole)[..., None]
    return np.round(image * (1 - opacity) + MASK_COLOUR * opacity).astype(np.uint8)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel becomes a square of factor × factor pixels."""
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def picture_grid(rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str] = (), scale: int = 1) -> np.ndarray:
    """A contact sheet.

    Args:
      rows: pictures, row by row; rows may be short, and pictures of different sizes (centred in their cells).
      columns: a heading for each column; without them the sheet has no heading.
      scale: whole-number enlargement of the pictures, without smoothing.

    Returns:
      uint8 (H, W, 3), white between the pictures.

    Raises:
      UserError: there is no picture, or fewer headings than columns.
    """
    cells = [[enlarge(to_uint8(picture), scale) for picture in row] for row in rows]
    width = max((len(row) for row in cells), default=0)
    if width == 0:
        raise UserError("a grid needs at least one picture")
    if columns and len(columns) < width:
        raise UserError(f"the grid has {width} columns but {len(columns)} headings: give one for each column")
    cell_height = max(picture.shape[0] for row in cells for picture in row)
    cell_width = max(picture.shape[1] for row in cells for picture in row)
    top = GAP + (LABEL_HEIGHT if columns else 0)

    height = top + len(cells) * (cell_height + GAP)
    sheet = np.full((height, GAP + width * (cell_width + GAP), 3), PAPER, np.uint8)
    for row, pictures in enumerate(cells):
        for column, picture in enumerate(pictures):
            y = top + row * (cell_height + GAP) + (cell_height - picture.shape[0]) // 2
            x = GAP + column * (cell_width + GAP) + (cell_width - picture.shape[1]) // 2
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    if columns:
        canvas = Image.fromarray(sheet)
        draw = ImageDraw.Draw(canvas)
        for column, heading in enumerate(columns[:width]):
            draw.text((GAP + column * (cell_width + GAP), 2), heading, fill=INK)
        sheet = np.array(canvas)
    return sheet


def png(image: np.ndarray) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Writes a PNG file, whole or not at all, making its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png(image))
