"""Differentiable preprocessing; equality with the official processor is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from onereward_jax.errors import UserError
from onereward_jax.judge import vision
from onereward_jax.judge.vision import ImageSettings

SETTINGS = ImageSettings(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64)


def _images(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def test_the_right_size_is_not_resized():
    images = jnp.asarray(4 * _images(2, 64, 64) - 1.5)
    assert vision.resize(images, 64, 64) is images
    patches, grid = vision.preprocess(images, SETTINGS)
    assert (patches.shape, grid) == ((2, 256, 96), (16, 16))
    # The first patch is the first four rows and columns, once a frame.
    first = np.asarray(patches[0, 0]).reshape(3, 2, 4, 4).transpose(1, 2, 3, 0)
    first = first * np.asarray(SETTINGS.image_std) + np.asarray(SETTINGS.image_mean)
    np.testing.assert_allclose(first, np.broadcast_to(images[0, :4, :4], first.shape), atol=1e-5)


# Both orders of the passes; in (90, 64) only rows are resized.
SIZES = [
    ((50, 70), (56, 84)),
    ((70, 50), (28, 84)),
    ((90, 64), (32, 64)),
    ((33, 200), (112, 112)),
    ((99, 99), (30, 60)),
]


@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_equals_pil(size, new_size):
    image = np.random.default_rng(1).integers(0, 2, (*size, 3), np.uint8) * 255
    expected = np.asarray(PIL.Image.fromarray(image).resize(new_size[::-1], PIL.Image.Resampling.BICUBIC))
    ours = vision.resize(jnp.asarray(image / 255.0)[None], *new_size)[0] * 255
    assert np.abs(ours - expected).max() < 2


def test_overshoot_keeps_its_gradient():
    """A pixel far above 1 still lowers the loss when it comes down."""
    images = jnp.asarray(_images(1, 20, 20)).at[0, 10, 10].set(1.8)
    gradient = jax.grad(lambda x: (vision.resize(x, 28, 28) ** 2).sum())(images)
    assert float(gradient[0, 10, 10].min()) > 0.1


def test_gradient_equals_finite_differences():
    images = jnp.asarray(1.2 * _images(1, 23, 30, seed=2) - 0.1)
    weights = jax.random.normal(jax.random.key(0), (1, 32, 40, 3))
    loss = jax.jit(lambda x: (vision.resize(x, 32, 40) * weights).sum())
    gradient = jax.grad(loss)(images)
    slope = float(jnp.linalg.norm(gradient))
    step = 0.05 * gradient / slope  # a thousandth a pixel: few cross the edge of [0, 1], where the slope changes
    assert float(loss(images + step) - loss(images - step)) / 0.1 == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (64, 64)), ((200, 100), (88, 40)), ((10, 10), (16, 16)), ((30, 33), (32, 32))]
)
def test_smart_resize(size, expected):
    assert vision.smart_resize(*size, SETTINGS) == expected


def test_elongated_images_are_refused():
    with pytest.raises(UserError):
        vision.smart_resize(1, 300, SETTINGS)


def test_settings_of_old_and_new_files():
    old = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    assert ImageSettings.from_config(old) == ImageSettings(max_pixels=12845056)
    assert ImageSettings.from_config(SETTINGS.to_config()) == SETTINGS
