import io

import numpy as np
import pytest
from PIL import Image

from onereward_jax.errors import UserError
from onereward_jax.images.grid import (
    GAP,
    LABEL_HEIGHT,
    MASK_COLOUR,
    drawable,
    image_grid,
    mask_overlay,
    png,
    to_uint8,
    write_png,
)


def test_grid_places_every_image():
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    grid = image_grid([[red, red], [red]], scale=2)
    assert grid.shape == (3 * GAP + 2 * 8, 3 * GAP + 2 * 12, 3)
    is_red = (grid == [255, 0, 0]).all(axis=-1)
    assert is_red.sum() == 3 * 8 * 12
    assert is_red[GAP : GAP + 8, GAP : GAP + 12].all()
    assert (grid[~is_red] == 255).all()


def test_grid_with_headings_and_mixed_sizes():
    small, grey = np.full((4, 4, 3), 0.5), np.full((8, 8), 255, np.uint8)
    plain = image_grid([[small, grey]])
    headed = image_grid([[small, grey]], columns=("a", "b"))
    assert headed.shape[0] == plain.shape[0] + LABEL_HEIGHT
    assert (headed[:LABEL_HEIGHT] < 200).any()
    np.testing.assert_array_equal(headed[LABEL_HEIGHT + GAP :], plain[GAP:])
    with pytest.raises(UserError):
        image_grid([])
    with pytest.raises(UserError):
        image_grid([[small, grey]], columns=("a",))


def test_what_a_model_made_is_drawn_clipped():
    np.testing.assert_array_equal(
        drawable(np.array([[[-1.0, 0.5, 2.0], [np.nan, 1.0, 0.0]]])), [[[0, 128, 255], [0, 255, 0]]]
    )


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf, -np.inf])
def test_floats_outside_the_range_are_refused(value):
    image = np.full((4, 4, 3), 0.5)
    image[1, 2, 0] = value
    with pytest.raises(UserError, match=r"in \[0, 1\], not from"):
        to_uint8(image)


def test_conversion_rounds_and_refuses():
    np.testing.assert_array_equal(
        to_uint8(np.array([[[-1e-4, 0.5, 1 + 1e-4], [0.25, 1.0, 0.0]]])), [[[0, 128, 255], [64, 255, 0]]]
    )
    for wrong in (np.zeros((2, 2, 4), np.uint8), np.zeros(3), np.zeros((2, 2, 3), np.int32)):
        with pytest.raises(UserError):
            to_uint8(wrong)


def test_overlay_changes_the_hole_alone_and_outlines_it():
    image = np.full((12, 12, 3), 100, np.uint8)
    mask = np.zeros((12, 12), np.uint8)
    mask[3:9, 3:9] = 1
    shown = mask_overlay(image, mask)
    np.testing.assert_array_equal(shown[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(shown[3, 5], MASK_COLOUR)
    assert abs(shown[5, 5].astype(int) - image[5, 5]).max() < abs(shown[3, 5].astype(int) - image[3, 5]).max()
    with pytest.raises(UserError):
        mask_overlay(image, mask[:6])


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a" / "b.png", image)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a" / "b.png")), image)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png(image)))), image)
