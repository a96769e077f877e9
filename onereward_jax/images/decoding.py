"""Decodes image files by Pillow: 8-bit RGB, upright, in sRGB, on white where they are transparent.

Pillow's own warnings, mostly of metadata that nobody reads, are not passed on: a file whose pixels can't all be decoded
is refused. What is changed on the way is noted, in one sentence each.
"""

import io
import logging
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from onereward_jax.errors import UserError
from onereward_jax.given_files import read_bytes

# Pillow goes by a file's content, not its name. It knows fifty formats, and runs Ghostscript for one of them.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")  # MPO, a JPEG with further images behind it, is opened as JPEG
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_BYTES = 2**30  # of a file: more than MAX_PIXELS take uncompressed, with 16 bits in each of four channels


class Decoded(NamedTuple):
    """An image.

    Attributes:
      image: mode RGB.
      transparent: whether some of its pixels were.
      notes: what was changed, one sentence each.
    """

    image: Image.Image
    transparent: bool
    notes: list[str]


def decode(source: str | Path | bytes | Image.Image, name: str, profile: bool = True) -> Decoded:
    """Decode an image.

    Args:
      source: path or bytes of a file of `FORMATS`, of whose frames the first is taken, or a PIL image.
      name: name in messages, if the source is not a path.
      profile: False leaves a colour profile aside.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: the path can't be opened.
      UserError: it is not an image, is damaged or too large, or can't be converted.
    """
    _silence_decoders()
    if isinstance(source, (str, Path)):
        name, source = str(source), read_bytes(source, MAX_BYTES)
    try:
        image = Image.open(io.BytesIO(source), formats=FORMATS) if isinstance(source, bytes) else source
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{name} is too large, {image.width}x{image.height} pixels: reduce it to at most {MAX_PIXELS} pixels"
            )
        deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))  # which loading empties
        image.load()
        return _converted(image, name, deep, profile)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a readable image: give a PNG, JPEG or WebP file") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name} is too large: reduce it to at most {MAX_PIXELS} pixels") from None
    # Of a damaged file, Pillow's decoders and conversions raise nearly anything: OSError, SyntaxError, struct.error,
    # KeyError, TypeError, MemoryError. A defect of ours would show in the tests that read every mode of every format.
    except Exception as error:
        why = str(error).partition("\n")[0][:100] or type(error).__name__
        raise UserError(f"{name} is a damaged image ({why}): give another copy") from None


def suffix_of(content: bytes) -> str:
    """Return the suffix of an image file's format, such as "png" or "jpg"; "bin" if it is no image."""
    _silence_decoders()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
    except Exception:  # as in `decode`
        return "bin"


_SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an item of `warnings.filters`
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without one, errors would go to stderr


def _silence_decoders() -> None:
    """Ignore Pillow's warnings from now on; `warnings.catch_warnings` can't be used in threads, which decode images."""
    if warnings.filters[:1] != [_SILENT]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _converted(image: Image.Image, name: str, deep: bool, profile: bool) -> Decoded:
    """Convert a loaded image of any mode.

    Args:
      deep: its file has 16 bits a channel.
    """
    notes = []
    icc = image.info.get("icc_profile") if profile and image.mode != "LAB" else None  # which needs none
    try:
        image = _upright(image)
    except Exception:  # as in `decode`; but here only metadata is damaged, and all pixels are there
        notes.append(f"{name} has damaged EXIF data: it is read as if it were upright")
    if image.mode.startswith("I"):
        image, deep = _from_16_bits(image, name), True
    if image.mode == "F":
        raise UserError(f"{name} has floating-point pixels of unknown range: save it with 8 bits a channel")
    if deep:
        notes.append(f"{name} has 16 bits a channel: it is read with 8")

    native = "CMYK" if image.mode == "CMYK" else Image.getmodebase(image.mode)  # CMYK, L or RGB
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    colours = None
    if icc:
        colours = _srgb(image, native, icc)
        if colours is None:
            notes.append(f"{name} has a colour profile that can't be used: its colours are taken as sRGB")
    if colours is None:
        if native == "CMYK":
            notes.append(f"{name} has print colours (CMYK): they may look different in RGB")
        colours = image.convert("RGB")
    if alpha is not None:
        notes.append(f"{name} has transparent pixels: they are read as white")
        colours.putalpha(alpha)
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return Decoded(colours, alpha is not None, notes)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation.

    Unlike `ImageOps.exif_transpose`, it writes no EXIF data anew, and so needs nothing of it but the orientation.
    """
    method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert grey of up to 16 bits to 8; Pillow's own conversion clips everything above 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name} has more than 16 bits a pixel: save it with 8")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


# ----------------------------------------------------------------------------------------------------- colour profiles

# What colours an ICC profile is for, and in which of Pillow's modes.
_SPACES = {"RGB ": ("RGB", ("RGB", "L")), "GRAY": ("L", ("L",)), "CMYK": ("CMYK", ("CMYK",))}
_SAME = 2  # levels of 255: the many sRGB profiles differ by no more from each other


def _srgb(image: Image.Image, native: str, icc: bytes) -> Image.Image | None:
    """Convert an image from its colour profile to sRGB: mode RGB, without transparency.

    Args:
      native: the mode of its colours: RGB, L or CMYK.
      icc: the profile.

    Returns:
      None if the profile is damaged or one of other colours.
    """
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        mode, natives = _SPACES[given.profile.xcolor_space]
        transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, KeyError, ImageCms.PyCMSError):
        return None
    if native not in natives:
        return None
    if mode != "CMYK":
        probe = _probe(mode)
        moved = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        if np.abs(moved).max() <= _SAME:
            return image.convert("RGB")
    return transform.apply(image.convert(mode))


def _probe(mode: str) -> Image.Image:
    """Make an image of all greys or of colours from the whole RGB cube."""
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3))
