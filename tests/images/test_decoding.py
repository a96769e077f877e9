"""Image files: a short list of formats, every mode of them, colour profiles, damage that costs no pixel."""

import io
import os
import resource
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, UnidentifiedImageError

from onereward_jax.errors import UserError
from onereward_jax.images import decoding, reading
from tests.support import image_files
from tests.support.image_files import (
    DISPLAY_P3,
    SRGB,
    cmyk_profile,
    grey_profile,
    pixels,
    rgb_profile,
    saved,
    valid_files,
)

RGB = pixels()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
_ON_WHITE = np.round(255 - (255.0 - RGB) * pixels(4)[..., 3:] / 255)
_SIDEWAYS = np.rot90(RGB, -1)

# What a file of `valid_files` shows: an array, and how many levels its codec may be off.
EXPECTED = {
    "rgb.png": (RGB, 0),
    "rgba.png": (_ON_WHITE, 1),
    "grey.png": (np.stack([GREY] * 3, -1), 0),
    "palette.png": (RGB, 80),
    "grey_16.png": (np.stack([RGB[..., 0]] * 3, -1), 0),
    "deep_1.png": (np.stack([RGB[..., 0]] * 3, -1), 0),
    "deep_3.png": (RGB, 0),
    "deep_4.png": (_ON_WHITE, 1),
    "rgb.jpeg": (RGB, 40),
    "cmyk.jpeg": (RGB, 40),
    "cmyk.tiff": (RGB, 1),
    "lab.tiff": (RGB, 30),  # blue at the rim of sRGB, in steps of 1/255 of L, a, b
    "ycbcr.tiff": (RGB, 4),
    "rgb.tiff": (RGB, 0),
    "tiff_lzw.tiff": (RGB, 0),
    "tiff_adobe_deflate.tiff": (_ON_WHITE, 1),
    "pages.tiff": (RGB, 0),
    "large_offsets.tiff": (RGB, 0),
    "rgb.bmp": (RGB, 0),
    "rgb.webp": (RGB, 40),
    "lossless.webp": (_ON_WHITE, 1),
    "animated.png": (RGB, 0),
    "animated.gif": (RGB, 80),
    "animated.webp": (RGB, 40),
    "several.mpo": (_SIDEWAYS, 40),
    "orientation_in_xmp.jpeg": (_SIDEWAYS, 40),
}


@pytest.mark.parametrize("name", valid_files())
@pytest.mark.filterwarnings("ignore:.*has (transparent|16 bits|print colours):UserWarning")
def test_every_mode_of_every_format(tmp_path, name):
    path = tmp_path / "any_name.png"
    path.write_bytes(valid_files()[name])
    if name == "float.tiff":
        with pytest.raises(UserError, match="floating-point"):
            reading.read_image(path)
        return
    read = reading.read_image(path)
    assert read.dtype == np.uint8
    assert sorted(read.shape) == [3, image_files.HEIGHT, image_files.WIDTH]
    expected, tolerance = EXPECTED.get(name, (read, 0))
    assert np.abs(read - np.asarray(expected, np.float64)).max() <= tolerance
    with Image.open(path) as opened:
        np.testing.assert_array_equal(reading.read_image(opened), read)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    st.sampled_from(["png", "tiff", "bmp", "lossless webp"]),
)
def test_what_a_lossless_file_holds_is_read(image, kind):
    options = {"lossless": True} if "lossless" in kind else {}
    np.testing.assert_array_equal(reading.read_image(saved(Image.fromarray(image), kind.split()[-1], **options)), image)


@pytest.mark.parametrize("name", image_files.other_files())
def test_other_formats_are_refused(tmp_path, name):
    path = tmp_path / "image.png"
    path.write_bytes(image_files.other_files()[name])
    with pytest.raises(UserError, match=r"image\.png is not a readable image"):
        reading.read_image(path)


def test_ghostscript_is_not_run(tmp_path, monkeypatch):
    ran = image_files.fake_ghostscript(tmp_path, monkeypatch)
    path = tmp_path / "image.png"
    path.write_bytes(image_files.other_files()["eps"])
    for read in (reading.read_image, reading.read_mask):
        with pytest.raises(UserError):
            read(path)
    assert not ran.exists()
    with pytest.raises(UnidentifiedImageError), Image.open(path) as opened:
        opened.load()
    assert ran.exists()  # so the fake would have been run


def test_damaged_exif_costs_no_pixel(tmp_path):
    """As a JPEG of a hostile test, whose second tag made Pillow raise struct.error."""
    content = valid_files()["progressive.jpeg"]
    start = content.index(b"MM\0*")
    for name, damage in {
        "the orientation": lambda tags: tags.replace(b"\x01\x12\0\x03", b"\x01\x12\0\x05"),  # a fraction, outside
        "another tag": lambda tags: tags.replace(b"\x01\x0f\0\x02", b"\x01\x0f\0\x0c"),
        "all": lambda tags: b"MM\0*" + b"\xff" * (len(tags) - 4),
    }.items():
        tags = damage(content[start : start + 80])
        assert tags != content[start : start + 80], name
        path = tmp_path / "damaged.jpg"
        path.write_bytes(content[:start] + tags + content[start + 80 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read = reading.read_image(path, profile=False)
        assert sorted(read.shape) == [3, 12, 20], name
        assert all("damaged.jpg has damaged EXIF data" in str(warning.message) for warning in caught), name
        reference = _SIDEWAYS if read.shape == _SIDEWAYS.shape else RGB
        assert np.abs(read - reference.astype(np.float64)).max() <= 60, name


def test_16_bits_of_colour_are_warned_of(tmp_path):
    for channels in (1, 2, 3, 4):
        path = tmp_path / "deep.png"
        path.write_bytes(image_files.png_16(channels))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reading.read_image(path)
        assert f"{path} has 16 bits a channel: it is read with 8" in [str(warning.message) for warning in caught]


# ----------------------------------------------------------------------------------------------------- colour profiles


def _encoded(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def _in_srgb(image: np.ndarray, primaries: np.ndarray, exponent: float) -> np.ndarray:
    """IEC 61966-2-1, from a profile of primaries and one exponent."""
    linear = (image / 255.0) ** exponent @ (np.linalg.inv(SRGB) @ primaries).T
    return 255 * _encoded(linear.clip(0, 1))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_a_profile_is_converted_to_srgb(kind):
    """Compared with the formulas: Display P3's primaries and the exponent of Adobe RGB."""
    options = {"lossless": True} if kind == "webp" else {"quality": 100, "subsampling": 0} if kind == "jpeg" else {}
    plain = Image.fromarray(RGB)
    as_stored = reading.read_image(saved(plain, kind, **options))
    content = saved(plain, kind, icc_profile=rgb_profile(), **options)
    read = reading.read_image(content)
    expected = _in_srgb(as_stored, DISPLAY_P3, 563 / 256)
    assert np.abs(expected - as_stored).max() > 20
    # Of the darkest levels lcms interpolates the steep beginning of the curve.
    assert np.abs(read - expected).max() <= 4
    assert np.abs(read - expected).mean() <= 0.5
    np.testing.assert_array_equal(reading.read_image(content, profile=False), as_stored)
    with Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(reading.read_image(opened), read)


def test_an_srgb_profile_changes_no_pixel():
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(reading.read_image(saved(Image.fromarray(noise), "png", icc_profile=made)), noise)


def test_profiles_of_grey_and_of_transparent_images():
    grey = Image.fromarray(GREY)
    read = reading.read_image(saved(grey, "png", icc_profile=grey_profile(1.0)))
    expected = np.stack([255 * _encoded(GREY / 255.0)] * 3, -1)
    assert np.abs(read - expected).max() <= 2
    # Grey with a profile of colours, and with transparency, which stays what it was.
    np.testing.assert_array_equal(
        reading.read_image(saved(grey, "png", icc_profile=rgb_profile())),
        reading.read_image(saved(grey.convert("RGB"), "png", icc_profile=rgb_profile())),
    )
    clear = Image.fromarray(np.dstack([RGB, np.where(GREY > 100, 255, 0).astype(np.uint8)]))
    with pytest.warns(UserWarning, match="transparent"):
        read = reading.read_image(saved(clear, "png", icc_profile=rgb_profile()))
    opaque = reading.read_image(saved(Image.fromarray(RGB), "png", icc_profile=rgb_profile()))
    np.testing.assert_array_equal(read, np.where(GREY[..., None] > 100, opaque, 255))


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
def test_print_colours_with_a_profile(kind):
    profile = cmyk_profile()
    content = saved(Image.fromarray(RGB).convert("CMYK"), kind, icc_profile=profile)
    read = reading.read_image(content)
    with Image.open(io.BytesIO(content)) as opened:
        srgb = ImageCms.createProfile("sRGB")
        expected = ImageCms.profileToProfile(opened, io.BytesIO(profile), srgb, outputMode="RGB")
    np.testing.assert_array_equal(read, np.asarray(expected))


@pytest.mark.parametrize("profile", [b"no profile", rgb_profile()[:200], cmyk_profile(), grey_profile()])
def test_a_profile_that_is_damaged_or_of_other_colours_is_left_aside(profile):
    content = saved(Image.fromarray(RGB), "png", icc_profile=profile)
    with pytest.warns(UserWarning, match="the image has a colour profile that can't be used: its colours are taken as"):
        np.testing.assert_array_equal(reading.read_image(content), RGB)


def test_a_mask_keeps_its_numbers(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(saved(Image.fromarray(GREY), "png", icc_profile=grey_profile(1.0)))
    np.testing.assert_array_equal(reading.read_mask(path), GREY >= 128)


# ------------------------------------------------------------------------------------------------------------- the rest


def test_only_files_of_a_right_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for path in (tmp_path / "pipe.png", tmp_path / "loop.png", tmp_path / ("n" * 300 + ".png"), "a\0.png"):
        with pytest.raises(UserError):
            reading.read_image(path)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    with pytest.raises(UserError, match=r"a\.png is too large"):
        reading.read_image(tmp_path / "a.png")


def test_a_chunk_of_text_takes_no_more_memory_than_the_file():
    rgb = valid_files()["rgb.png"]
    bomb = image_files.png_chunk(b"zTXt", b"k\0\0" + image_files.zlib.compress(b"\0" * 2**27))
    with pytest.raises(UserError):
        reading.read_image(rgb[:33] + bomb + rgb[33:])
    text = image_files.png_chunk(b"tEXt", b"k\0" + b"x" * 2**24)
    np.testing.assert_array_equal(reading.read_image(rgb[:33] + text + rgb[33:]), RGB)


def test_pillows_warnings_are_not_ours_and_threads_keep_their_filters(tmp_path):
    """Two threads inside `warnings.catch_warnings` would leave one's filters to the process."""
    content = valid_files()["animated.png"].replace(b"acTL\0\0\0\3", b"acTL\0\0\0\0")  # "Invalid APNG"
    content = bytes(image_files.with_right_checksums(bytearray(content)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            for read in pool.map(reading.read_image, [content] * 100):
                np.testing.assert_array_equal(read, RGB)
        assert caught == []
        warnings.warn("ours", stacklevel=1)
        assert [str(warning.message) for warning in caught] == ["ours"]


def test_images_in_a_folder(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    names = lambda found: [str(path.relative_to(tmp_path)) for path in found]
    flat = ["a.JPG", "b.png", "loop.png", "pipe.png"]
    assert names(reading.files_in(tmp_path)) == flat
    assert names(reading.files_in(tmp_path, recursive=True)) == sorted([*flat, "deep/c.webp"])
    with pytest.raises(FileNotFoundError):
        reading.files_in(tmp_path / "none")


def test_tags_that_share_their_bytes_take_them_once():
    """3,000 tags of a TIFF, or of a PNG's EXIF, that all point to the same MiB."""
    plain = valid_files()["rgb.tiff"]
    start = int.from_bytes(plain[4:8], "little")
    count = int.from_bytes(plain[start : start + 2], "little")
    tags = plain[start + 2 : start + 2 + 12 * count]
    after = len(plain) + 2 + 12 * (count + 3000) + 4
    tags += b"".join(struct.pack("<HHII", 40_000 + number, 1, 2**20, after) for number in range(3000))
    tags = struct.pack("<H", count + 3000) + tags + b"\0" * 4
    bomb = plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + tags + b"\0" * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.testing.assert_array_equal(reading.read_image(bomb), RGB)
    in_exif = saved(Image.fromarray(RGB), "png", exif=b"Exif\0\0" + bomb)
    np.testing.assert_array_equal(reading.read_image(in_exif), RGB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB
