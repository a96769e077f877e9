"""Small image files of many formats and modes, colour profiles, and what becomes of them by accident or ill will."""

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

HEIGHT, WIDTH = 12, 20

# Columns are the XYZ values of red, green and blue, adapted to D50, as profiles hold them.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
_D50 = (0.9642, 1.0, 0.8249)

Rng = np.random.Generator


# ----------------------------------------------------------------------------------------------------- colour profiles


def _profile(space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4."""
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = start + len(body)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02400000, kind, space, connection, b"\0" * 12, b"acsp")
    return (head.ljust(68, b"\0") + _xyz(_D50)[8:]).ljust(128, b"\0") + table + body


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _gamma(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def rgb_profile(primaries: np.ndarray = DISPLAY_P3, exponent: float = 563 / 256) -> bytes:
    """A profile of three primaries and one exponent, by default Display P3's and Adobe RGB's."""
    tags = {b"wtpt": _xyz(_D50)}
    for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": _gamma(exponent)}
    return _profile(b"RGB ", b"XYZ ", tags)


def grey_profile(exponent: float = 1.0) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(_D50), b"kTRC": _gamma(exponent)})


def cmyk_profile() -> bytes:
    """A profile with a table of two grid points a side, white where there is no ink."""
    identity = struct.pack(">9i", *(65536 * int(i == j) for i in range(3) for j in range(3)))
    ramp = bytes(range(256))
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = 255 * (1 - inks[:, 3]) * (1 - inks[:, :3].mean(axis=1))
    tint = inks[:, :3] @ np.array([[-40, -50], [70, -10], [-10, 90]])
    table = np.column_stack([lightness, 128 + tint * (1 - inks[:, 3:])]).clip(0, 255).astype(np.uint8)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table.tobytes() + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"wtpt": _xyz(_D50), b"A2B0": lut})


# ---------------------------------------------------------------------------------------------------------- valid files


def pixels(channels: int = 3) -> np.ndarray:
    """uint8 (H, W, channels), smooth enough for any codec."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ramps = [20 * rows, 12 * columns, 255 - 12 * columns, 255 - 20 * rows]
    return np.stack(ramps[:channels], axis=-1).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:
        options["append_images"] = [other.copy() for other in options["append_images"]]
    image.copy().save(buffer, kind, **options)  # copies, since saving leaves settings of the codec in the image
    return buffer.getvalue()


def png_16(channels: int) -> bytes:
    """A PNG with 16 bits in each of 1 to 4 channels, which Pillow can't write."""
    deep = pixels(channels).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    head = struct.pack(">2I5B", WIDTH, HEIGHT, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x829A] = (1, 60)
    return exif


@functools.cache
def valid_files() -> dict[str, bytes]:
    """{name: content} of all formats that are read, in the modes that they have."""
    rgb = Image.fromarray(pixels())
    rgba = Image.fromarray(pixels(4))
    grey = rgb.convert("L")
    modes = {
        "rgb": rgb,
        "rgba": rgba,
        "grey": grey,
        "grey_alpha": rgba.convert("LA"),
        "palette": rgb.quantize(16),
        "one_bit": rgb.convert("1"),
        "grey_16": Image.fromarray(pixels(1)[..., 0].astype(np.uint16) * 257),
        "cmyk": rgb.convert("CMYK"),
        "lab": rgb.convert("LAB"),
        "ycbcr": rgb.convert("YCbCr"),
        "float": Image.fromarray(pixels(1)[..., 0].astype(np.float32)),
    }
    files: dict[str, bytes] = {}
    for kind, names in {
        "png": "rgb rgba grey grey_alpha palette one_bit grey_16",
        "jpeg": "rgb grey cmyk",
        "tiff": "rgb rgba grey grey_alpha palette one_bit grey_16 cmyk lab ycbcr float",
        "bmp": "rgb rgba grey palette one_bit",
        "gif": "grey palette one_bit",
        "webp": "rgb rgba grey",
    }.items():
        files |= {f"{name}.{kind}": saved(modes[name], kind) for name in names.split()}
    files |= {f"deep_{channels}.png": png_16(channels) for channels in (1, 2, 3, 4)}
    files |= {
        f"{compression}.tiff": saved(modes[mode], "tiff", compression=compression)
        for compression, mode in (
            ("tiff_lzw", "rgb"),
            ("tiff_adobe_deflate", "rgba"),
            ("packbits", "palette"),
            ("jpeg", "rgb"),
            ("group4", "one_bit"),
        )
    }
    icc, xmp = rgb_profile(), b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    more = [rgb.rotate(180), rgb.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    palette = modes["palette"]
    return files | {
        "transparent_bytes.png": saved(palette, "png", transparency=bytes(range(0, 256, 16))),
        "transparent_index.png": saved(palette, "png", transparency=3),
        "transparent_colour.png": saved(rgb, "png", transparency=(0, 0, 255)),
        "transparent_grey.png": saved(grey, "png", transparency=29),
        "everything.png": saved(rgb, "png", exif=_exif(), icc_profile=icc),
        "animated.png": saved(rgb, "png", save_all=True, append_images=more),
        "progressive.jpeg": saved(rgb, "jpeg", progressive=True, exif=_exif(), icc_profile=icc, xmp=xmp),
        "orientation_in_xmp.jpeg": saved(rgb, "jpeg", xmp=xmp),
        "print.jpeg": saved(modes["cmyk"], "jpeg", icc_profile=cmyk_profile()),
        "subsampled.jpeg": saved(rgb, "jpeg", subsampling=2, restart_marker_blocks=2),
        "several.mpo": saved(rgb, "mpo", save_all=True, append_images=more, exif=_exif()),
        "pages.tiff": saved(rgb, "tiff", save_all=True, append_images=more, compression="tiff_lzw"),
        "everything.tiff": saved(rgb, "tiff", exif=_exif(), icc_profile=icc),
        "large_offsets.tiff": saved(rgb, "tiff", big_tiff=True),
        "grey_profile.tiff": saved(grey, "tiff", icc_profile=grey_profile()),
        "transparent.gif": saved(palette, "gif", transparency=2),
        "animated.gif": saved(rgb, "gif", save_all=True, append_images=more, duration=10),
        "animated.webp": saved(rgb, "webp", save_all=True, append_images=more),
        "lossless.webp": saved(rgba, "webp", lossless=True),
        "everything.webp": saved(rgb, "webp", exif=_exif(), icc_profile=icc, xmp=xmp),
    }


@functools.cache
def other_files() -> dict[str, bytes]:
    """{name: content} of formats that Pillow reads and we refuse."""
    rgb = Image.fromarray(pixels())
    files = {
        "fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, HEIGHT, WIDTH, 8, 3) + b"\0" * 400,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf": b"%PDF-1.4\n",
    }
    for kind in (
        "eps",
        "dds",
        "avif",
        "ico",
        "icns",
        "pcx",
        "tga",
        "ppm",
        "sgi",
        "jpeg2000",
        "im",
        "qoi",
        "dib",
        "pdf",
    ):
        try:
            files[kind] = saved(rgb, kind)
        except (KeyError, OSError):  # a Pillow built without it
            continue
    return files


def fake_ghostscript(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program `gs` first on the PATH, which Pillow runs for EPS; it makes the file that is returned."""
    ran, program = directory / "ran", directory / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers whether there was one
    return ran


# ------------------------------------------------------------------------------------------------------------- mutation


def _flip(content: bytearray, rng: Rng) -> bytearray:
    for place in rng.integers(len(content), size=rng.integers(1, 9)):
        content[place] = rng.integers(256)
    return content


def _truncate(content: bytearray, rng: Rng) -> bytearray:
    return content[: rng.integers(len(content))]


def _splice(content: bytearray, rng: Rng) -> bytearray:
    """Replace a part by one of the file itself or of another file."""
    other = rng.choice(list(valid_files().values())) if rng.random() < 0.5 else bytes(content)
    start, end = sorted(rng.integers(len(content) + 1, size=2))
    from_, to = sorted(rng.integers(len(other) + 1, size=2))
    return content[:start] + bytearray(other)[from_:to] + content[end:]


_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _extreme(content: bytearray, rng: Rng, start: int = 0, end: int = 64) -> bytearray:
    """Set fields of 1 to 8 bytes to extremes, in the head or another part."""
    for _ in range(rng.integers(1, 4)):
        size = int(rng.choice((1, 2, 4, 8)))
        value = int(rng.choice(_EXTREMES)) & (256**size - 1)
        place = int(rng.integers(start, max(start + 1, min(end, len(content) - size))))
        content[place : place + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    return content


def _damage_tags(content: bytearray, rng: Rng) -> bytearray:
    """Damage the head of EXIF or TIFF tags, of a profile, of XMP, or of any chunk of a PNG."""
    marks = (b"II*\0", b"MM\0*", b"II+\0", b"acsp", b"xmpmeta", b"eXIf", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"MPF\0")
    places = [place for mark in marks if (place := content.find(mark)) >= 0]
    if not places:
        return _extreme(content, rng, 0, len(content))
    place = int(rng.choice(places))
    # Tags often lie at the end of a TIFF.
    if content[place : place + 4] == b"II*\0" and rng.random() < 0.7:
        place += min(int.from_bytes(content[place + 4 : place + 8], "little"), len(content) - place - 1)
    return _extreme(content, rng, place, place + 160)


def _repeat(content: bytearray, rng: Rng) -> bytearray:
    """Repeat a part many times."""
    start, end = sorted(rng.integers(len(content) + 1, size=2))
    return content[:end] + content[start:end] * int(rng.integers(1, 50)) + content[end:]


_MUTATIONS: tuple[Callable[[bytearray, Rng], bytearray], ...] = (
    _flip,
    _truncate,
    _splice,
    _extreme,
    _damage_tags,
    _damage_tags,
    _repeat,
)


def with_right_checksums(content: bytearray) -> bytearray:
    """Correct the checksums of a PNG, so that damage reaches the decoder."""
    place = 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + size > len(content):
            break
        checksum = zlib.crc32(content[place + 4 : place + 8 + size])
        content[place + 8 + size : place + 12 + size] = checksum.to_bytes(4, "big")
        place += 12 + size
    return content


def mutated(rng: Rng) -> tuple[str, bytes]:
    """A damaged file: the name of the valid one, and the content."""
    files = other_files() if rng.random() < 0.1 else valid_files()
    name = str(rng.choice(list(files)))
    content = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        if content:
            content = rng.choice(_MUTATIONS)(content, rng)  # type: ignore[arg-type]
    if content.startswith(b"\x89PNG") and rng.random() < 0.9:
        content = with_right_checksums(content)
    return name, bytes(content)
