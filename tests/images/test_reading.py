"""Users' images and masks as uint8 arrays; unreadable ones are refused with one sentence."""

import numpy as np
import pytest
from PIL import Image

from onereward_jax.errors import UserError
from onereward_jax.images import reading

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY = RGB[..., 0]


def test_an_image_is_the_same_from_a_file_pillow_or_an_array(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for source in (RGB, RGB / 255.0, Image.fromarray(RGB), tmp_path / "a.png", str(tmp_path / "a.png")):
        read = reading.read_image(source)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, RGB)
    np.testing.assert_array_equal(reading.read_image(GREY), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("form", [RGB, list(RGB[None]), np.stack([RGB, RGB]), [Image.fromarray(RGB), RGB]])
def test_one_image_or_many(form):
    read = reading.read_images(form)
    assert len(read) == (len(form) if isinstance(form, list) or form.ndim == 4 else 1)
    for image in read:
        np.testing.assert_array_equal(image, RGB)


def test_a_camera_on_its_side(tmp_path):
    turned = Image.fromarray(np.rot90(RGB))  # what it stores ...
    exif = turned.getexif()
    exif[0x0112] = 6  # ... and how it says so: turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(reading.read_image(tmp_path / "turned.png"), RGB)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(reading.read_image(opened), RGB)


def test_kinds_of_pictures_without_a_loss_are_read_in_silence(tmp_path):
    few = RGB // 128 * 128
    for name, image in {
        "palette.png": Image.fromarray(few).quantize(8),
        "opaque.png": Image.fromarray(few).convert("RGBA"),
        "grey.png": Image.fromarray(few[..., 0]),
    }.items():
        image.save(tmp_path / name)
        expected = np.stack([few[..., 0]] * 3, -1) if name == "grey.png" else few
        np.testing.assert_array_equal(reading.read_image(tmp_path / name), expected, err_msg=name)


def test_transparent_pixels_become_white_with_a_warning(tmp_path):
    alpha = np.where(GREY > 127, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png has transparent pixels: they are read as white"):
        read = reading.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read, np.where(alpha[..., None], RGB, 255))


def test_16_bits_become_8_with_a_warning(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match=r"deep\.png"):
        read = reading.read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(read, np.stack([GREY] * 3, -1))


def test_print_colours_give_a_warning(tmp_path):
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "print.tif")
    with pytest.warns(UserWarning, match=r"print\.tif has print colours"):
        read = reading.read_image(tmp_path / "print.tif")
    np.testing.assert_array_equal(read, np.full((2, 3, 3), (255, 0, 0)))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("damaged")
    (tmp_path / "words.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:1000])
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 1 << 20, np.int32)).save(tmp_path / "wide.tif")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["words.png", "empty.png", "half.png", "bomb.png", "large.png", "float.tif", "wide.tif"]
)
def test_unreadable_files_are_refused_by_name(damaged, name):
    for read in (reading.read_image, reading.read_mask):
        with pytest.raises(UserError) as caught:
            read(damaged / name)
        assert str(damaged / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_files_and_other_arrays(tmp_path):
    with pytest.raises(FileNotFoundError):
        reading.read_image(tmp_path / "none.png")
    for wrong in (np.zeros((2, 2, 4), np.uint8), np.zeros(3), RGB.astype(np.int32), np.zeros((1, 2, 2, 3))):
        with pytest.raises(UserError):
            reading.read_image(wrong)
    with pytest.raises(UserError):
        reading.read_images([])


def test_a_mask_is_the_same_in_every_form(tmp_path):
    hole = GREY >= 128
    white = np.where(hole, 255, 0).astype(np.uint8)
    Image.fromarray(white).save(tmp_path / "mask.png")
    Image.fromarray(white).convert("RGBA").save(tmp_path / "rgba.png")
    forms = [hole, white, GREY, white[..., None], np.stack([white] * 3, -1), Image.fromarray(hole), white / 255.0]
    for source in (*forms, tmp_path / "mask.png", tmp_path / "rgba.png"):
        read = reading.read_mask(source)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, hole)
    for many in (np.stack([white, white]), [white, hole], np.stack([white, white])[..., None]):
        assert [mask.tolist() for mask in reading.read_masks(many)] == [hole.tolist()] * 2


def test_empty_and_unclear_masks_are_refused():
    transparent = Image.new("RGBA", (3, 2), (255, 255, 255, 0))
    for mask in (np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8), transparent):
        with pytest.raises(UserError):
            reading.read_mask(mask)
    with pytest.raises(UserError, match=r"3x2.*6x4"):
        reading.check_size(RGB, np.ones((2, 3), np.uint8))


def test_extending_adds_pixels_and_marks_them():
    canvas, mask = reading.extend(RGB, reading.parse_sides("left=2,bottom=1, right=0"))
    assert canvas.shape == (5, 8, 3)
    np.testing.assert_array_equal(canvas[:4, 2:], RGB)
    np.testing.assert_array_equal(mask[:4, 2:], 0)
    assert mask.sum() == 5 * 8 - 4 * 6
    for text in ("left", "left=-1", "up=3", "left=1,left=2", ""):
        with pytest.raises(UserError, match="is not a side to extend"):
            reading.parse_sides(text)
    with pytest.raises(UserError):
        reading.parse_sides("left=0")
    with pytest.raises(UserError):
        reading.extend(RGB, {"left": 10**9})


def test_padding_repeats_the_edge_and_composition_keeps_the_outside():
    padded = reading.pad_to_multiple(RGB, 4)
    assert padded.shape == (4, 8, 3)
    np.testing.assert_array_equal(padded[:, :6], RGB)
    np.testing.assert_array_equal(padded[:, 6:], np.repeat(RGB[:, 5:], 2, axis=1))
    mask = (GREY >= 128).astype(np.uint8)
    kept = reading.keep_outside(RGB, mask, 255 - RGB)
    np.testing.assert_array_equal(kept[mask == 0], RGB[mask == 0])
    np.testing.assert_array_equal(kept[mask == 1], 255 - RGB[mask == 1])


def test_numbers_that_do_not_fit():
    assert reading.common_number({"image": 1, "prompt": 2}) == 2
    with pytest.raises(UserError):
        reading.common_number({"image": 2, "prompt": 3})
