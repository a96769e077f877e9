"""Reads a user's images as uint8 (H, W, 3) and masks as uint8 (H, W) with 1 = generate.

An image is given as a PIL image, a path, or an array. Images that can't be read faithfully are refused with one
sentence; small changes, such as 16 bits read as 8, give a one-sentence warning.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from onereward_jax.errors import UserError
from onereward_jax.images.decoding import MAX_PIXELS, decode
from onereward_jax.images.grid import to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # of image files
SIDES = ("left", "right", "top", "bottom")
_WHITE = 128  # from this value on, a mask counts as white, as in diffusers


def files_in(folder: Path, recursive: bool = False) -> list[Path]:
    """List the entries of a folder that are named as images, sorted; whether they are images shows when they are read.

    Links to folders are not followed.

    Raises:
      OSError: the folder, or one inside it, can't be listed.
    """

    def stop(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for directory, folders, files in os.walk(folder, onerror=stop):
        found += [Path(directory, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
        if not recursive:
            folders.clear()
    return sorted(found)


def read_image(source: Any, name: str = "the image", profile: bool = True) -> np.ndarray:
    """Read an image, rotated by its EXIF orientation and converted from its colour profile to sRGB: uint8 (H, W, 3).

    Args:
      source: PIL image, path or bytes of an image file, or array: uint8, or float in [0, 1], (H, W, 3) or grey (H, W).
      name: name in messages, if the source is not a path.
      profile: False leaves a colour profile aside.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the path can't be opened.
      UserError: it is not an image, is damaged or too large, or can't be converted to 8-bit colours.
    """
    if isinstance(source, (str, Path, bytes, Image.Image)):
        decoded = decode(source, name, profile)
        for note in decoded.notes:
            warnings.warn(note, stacklevel=2)
        return np.asarray(decoded.image)
    try:
        return to_uint8(source)
    except ValueError as error:
        raise UserError(f"{name} can't be read: {error}") from None


def read_mask(source: Any, name: str = "the mask") -> np.ndarray:
    """Read a black-and-white image as a mask: uint8 (H, W), 1 where it is white.

    Args:
      source: PIL image, path or bytes of an image file, or array: boolean, uint8 or float in [0, 1], (H, W) or
        (H, W, 3).

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the path can't be opened.
      UserError: see `read_image`; or the mask has transparent pixels or no white ones.
    """
    if isinstance(source, (str, Path, bytes, Image.Image)):
        name = str(source) if isinstance(source, (str, Path)) else name
        decoded = decode(source, name, profile=False)  # a mask holds numbers, not colours
        if decoded.transparent:
            raise UserError(f"{name} has transparent pixels: give a black-and-white mask, white where to generate")
        for note in decoded.notes:
            warnings.warn(note, stacklevel=2)
        grey = np.asarray(ImageOps.grayscale(decoded.image))
    else:
        array = np.asarray(source)
        array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
        grey = read_image(array * np.uint8(255) if array.dtype == bool else array, name).max(axis=-1)
    mask = (grey >= _WHITE).astype(np.uint8)
    if not mask.any():
        brightest = int(grey.max(initial=0))
        seen = "is all black" if brightest == 0 else f"has no white pixel (its brightest pixel is {brightest} of 255)"
        raise UserError(f"{name} {seen}: paint the area to generate white")
    return mask


def check_size(image: np.ndarray, mask: np.ndarray, names: tuple[str, str] = ("the image", "the mask")) -> None:
    """Check that image and mask have the same size.

    Raises:
      UserError: they differ.
    """
    check_sizes(image.shape[:2], mask.shape, names)


def check_sizes(image: Sequence[int], other: Sequence[int], names: tuple[str, str], noun: str = "mask") -> None:
    """Check that two (height, width) are the same.

    Raises:
      UserError: they differ.
    """
    if tuple(image) != tuple(other):
        sizes = [f"{width}x{height}" for height, width in (image, other)]
        raise UserError(f"{names[1]} is {sizes[1]} pixels, {names[0]} {sizes[0]}: give a {noun} of the image's size")


def read_images(source: Any) -> list[np.ndarray]:
    """Read one image or many (a list, or an array (B, H, W, 3)): see `read_image`."""
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    return [read_image(item, name) for item, name in _named(source, "image")]


def read_masks(source: Any) -> list[np.ndarray]:
    """Read one mask or many (a list, or an array (B, H, W) or (B, H, W, 1 or 3)): see `read_mask`."""
    if isinstance(source, np.ndarray) and (source.ndim == 4 or (source.ndim == 3 and source.shape[-1] not in (1, 3))):
        source = list(source)
    return [read_mask(item, name) for item, name in _named(source, "mask")]


def _named(source: Any, word: str) -> Iterator[tuple[Any, str]]:
    if not isinstance(source, (list, tuple)):
        yield source, f"the {word}"
        return
    if not source:
        raise UserError(f"there is no {word}: give at least one")
    for number, item in enumerate(source):
        yield item, f"{word} {number}"


def parse_sides(text: str) -> dict[str, int]:
    """Parse "left=256,right=0" into {"left": 256, "right": 0}.

    Raises:
      UserError: the text has another form, or adds no pixels.
    """
    sides: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if found is None or found[1] not in SIDES or found[1] in sides:
            raise UserError(
                f"{part!r} is not a side to extend: write {', '.join(f'{side}=256' for side in SIDES)}, or some of them"
            )
        sides[found[1]] = int(found[2])
    if not any(sides.values()):
        raise UserError(f"extending by {text} adds nothing: give at least one side a number of pixels")
    return sides


def extend(image: np.ndarray, sides: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Extend an image (H, W, 3): return the canvas (H', W', 3), which repeats the border pixels, and the mask (H', W')
    of the new pixels."""
    left, right, top, bottom = (sides.get(side, 0) for side in SIDES)
    mask = np.ones(extended_size(image.shape[:2], sides), np.uint8)
    mask[top : top + image.shape[0], left : left + image.shape[1]] = 0
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge"), mask


def extended_size(size: Sequence[int], sides: Mapping[str, int]) -> tuple[int, int]:
    """Return the (height, width) that an image of this (height, width) is extended to.

    Raises:
      UserError: it is too large.
    """
    left, right, top, bottom = (sides.get(side, 0) for side in SIDES)
    height, width = size[0] + top + bottom, size[1] + left + right
    if height * width > MAX_PIXELS:
        raise UserError(f"extended to {width}x{height} pixels the image is too large: add less")
    return height, width


def pad_to_multiple(array: np.ndarray, multiple: int) -> np.ndarray:
    """Repeat the last row and column of (H, W, ...) until both sides are multiples of `multiple`."""
    rows, columns = (-side % multiple for side in array.shape[:2])
    return np.pad(array, ((0, rows), (0, columns), *[(0, 0)] * (array.ndim - 2)), mode="edge")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) or (H, W) to another size by Pillow's Lanczos filter."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a mask of 0 and 1, (H, W), as the black-and-white image that it was.

    Raises:
      UserError: nothing of it is left.
    """
    resized = (resize(mask * np.uint8(255), height, width) >= _WHITE).astype(np.uint8)
    if not resized.any():
        raise UserError(
            f"the mask has no white pixel at {width}x{height}: paint a larger area, or fill at a larger size"
        )
    return resized


def keep_outside(image: np.ndarray, mask: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Take `generated` inside the mask and the image outside; all (H, W, ·)."""
    return np.where(mask[..., None] > 0, generated, image)


def common_number(numbers: Mapping[str, int]) -> int:
    """The number B of what goes together, of which each is given once or B times.

    Raises:
      UserError: the numbers do not fit together.
    """
    count = max(numbers.values())
    if any(number not in (1, count) for number in numbers.values()):
        given = ", ".join(f"{number} of {name}" for name, number in numbers.items())
        raise UserError(f"the inputs differ in number ({given}): give one or {count} of each")
    return count
