import io

import numpy as np
import pytest
from PIL import Image

from onereward_jax import pictures


def test_grid_places_every_picture():
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    grid = pictures.picture_grid([[red, red], [red]], scale=2)
    assert grid.shape == (3 * pictures.GAP + 2 * 8, 3 * pictures.GAP + 2 * 12, 3)
    is_red = (grid == [255, 0, 0]).all(axis=-1)
    assert is_red.sum() == 3 * 8 * 12
    assert is_red[pictures.GAP : pictures.GAP + 8, pictures.GAP : pictures.GAP + 12].all()
    assert (grid[~is_red] == 255).all()


def test_grid_with_headings_and_mixed_sizes():
    small, grey = np.full((4, 4, 3), 0.5), np.full((8, 8), 255, np.uint8)
    plain = pictures.picture_grid([[small, grey]])
    headed = pictures.picture_grid([[small, grey]], columns=("a", "b"))
    assert headed.shape[0] == plain.shape[0] + pictures.LABEL_HEIGHT
    assert (headed[: pictures.LABEL_HEIGHT] < 200).any()
    np.testing.assert_array_equal(headed[pictures.LABEL_HEIGHT + pictures.GAP :], plain[pictures.GAP :])
    with pytest.raises(ValueError, match="at least one picture"):
        pictures.picture_grid([])
    with pytest.raises(ValueError, match="one for each column"):
        pictures.picture_grid([[small, grey]], columns=("a",))


def test_conversion_rounds_clips_and_refuses():
    np.testing.assert_array_equal(
        pictures.to_uint8(np.array([[[-1.0, 0.5, 2.0], [np.nan, 1.0, 0.0]]])), [[[0, 128, 255], [0, 255, 0]]]
    )
    for wrong in (np.zeros((2, 2, 4), np.uint8), np.zeros(3), np.zeros((2, 2, 3), np.int32)):
        with pytest.raises(ValueError, match="a picture"):
            pictures.to_uint8(wrong)


def test_overlay_changes_the_hole_alone_and_outlines_it():
    image = np.full((12, 12, 3), 100, np.uint8)
    mask = np.zeros((12, 12), np.uint8)
    mask[3:9, 3:9] = 1
    shown = pictures.mask_overlay(image, mask)
    np.testing.assert_array_equal(shown[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(shown[3, 5], pictures.MASK_COLOUR)
    assert abs(shown[5, 5].astype(int) - image[5, 5]).max() < abs(shown[3, 5].astype(int) - image[3, 5]).max()
    with pytest.raises(ValueError, match="same height and width"):
        pictures.mask_overlay(image, mask[:6])


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    pictures.write_png(tmp_path / "a" / "b.png", image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a" / "b.png")), image)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(pictures.png(image)))), image)
