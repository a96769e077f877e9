"""Augmentations of a pair of images that keep the answer: both images change in the same way."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Words that mirroring would make wrong.
_HANDED = re.compile(r"\b(left|right|top|bottom|word)\b")


def shift_together(keys: jax.Array, first: jax.Array, second: jax.Array, max_shift: int) -> tuple[jax.Array, jax.Array]:
    """Shift both images of each pair by the same random number of pixels, up to `max_shift` in each direction.

    The judge splits an image into patches at fixed places. With random shifts, the judge can't memorise the patch
    borders, nor can a policy exploit them. New pixels at a border mirror those inside it.

    Args:
      keys: (B,), one random key per pair.
      first, second: (B, H, W, 3), of any two sizes.
      max_shift: static; 0 returns the images unchanged.
    """
    if not max_shift:
        return first, second
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * max_shift + 1))(keys)

    def shift(images: jax.Array) -> jax.Array:
        borders = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
        padded = jnp.pad(images, borders, mode="reflect")
        cut = lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
        return jax.vmap(cut)(padded, offsets)

    return shift(first), shift(second)


def noise_together(
    keys: jax.Array, first: jax.Array, second: jax.Array, max_noise: float
) -> tuple[jax.Array, jax.Array]:
    """Add the same normal noise to both images of each pair.

    Averaging over noise keeps the part of the judge's gradient that nearby images share and removes the rest
    (SmoothGrad: Smilkov et al. 2017, arXiv 1706.03825).

    Args:
      keys: (B,), one random key per pair.
      first, second: (B, H, W, 3), float in [0, 1].
      max_noise: static; each pair's standard deviation is drawn between 0 and this. 0 returns the images unchanged.

    Returns:
      both images, not clipped: clipping would cut the gradient of every saturated pixel.
    """
    if not max_noise:
        return first, second

    def noise(key: jax.Array) -> jax.Array:
        amount, field = jax.random.split(key)
        return max_noise * jax.random.uniform(amount) * jax.random.normal(field, first.shape[1:])

    added = jax.vmap(noise)(keys)
    return first + added, second + added


def perturb_against(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    keys: jax.Array,
    first: jax.Array,
    second: jax.Array,
    radius: float,
) -> tuple[jax.Array, jax.Array]:
    """Perturb every pixel imperceptibly, in the direction that raises the loss.

    A policy follows the judge's gradient: if invisible changes can flip the judge's answer, it finds those first. A
    judge trained on perturbed images relies on visible content, and so does its gradient (adversarial training by one
    step from a random start: Wong, Rice & Kolter 2020, arXiv 2001.03994).

    Args:
      loss: function of the two images; a scalar, summed over the pairs.
      keys: (B,), one random key per pair.
      first, second: (B, H, W, 3), float in [0, 1].
      radius: each pair's largest pixel change is drawn between 0 and this.

    Returns:
      both images, in [0, 1], without gradient.
    """
    parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    bound = radius * jax.vmap(jax.random.uniform)(parts[:, 0])[:, None, None, None]
    starts = []
    for number, images in ((1, first), (2, second)):
        uniform = lambda key, shape=images.shape[1:]: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        starts.append(bound * jax.vmap(uniform)(parts[:, number]))
    gradients = jax.grad(loss, argnums=(0, 1))(first + starts[0], second + starts[1])
    moved = [jnp.clip(start + bound * jnp.sign(g), -bound, bound) for start, g in zip(starts, gradients, strict=True)]
    first, second = (jnp.clip(images + move, 0.0, 1.0) for images, move in zip((first, second), moved, strict=True))
    return jax.lax.stop_gradient(first), jax.lax.stop_gradient(second)


def flip_together(
    generator: np.random.Generator, first: np.ndarray, second: np.ndarray, prompt: str
) -> tuple[np.ndarray, np.ndarray]:
    """Flip both images (H, W, 3) at random, and transpose them at random if both are square.

    They are left unchanged if the prompt mentions a side or a word to render.
    """
    if _HANDED.search(prompt):
        return first, second
    vertical, horizontal = 1 - 2 * generator.integers(0, 2, 2)
    first, second = first[::vertical, ::horizontal], second[::vertical, ::horizontal]
    square = first.shape[0] == first.shape[1] and second.shape[0] == second.shape[1]
    if generator.random() < 0.5 and square:
        first, second = first.swapaxes(0, 1), second.swapaxes(0, 1)
    return first, second


def retone_together(
    generator: np.random.Generator, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Change the brightness of both images (H, W, 3), uint8, and in half of the cases permute their channels.

    A judge trained on a few photographs memorises them and the content of their holes; varying colours prevent that.

    Returns:
      the images, and whether the channels are unchanged, so that colour names in a prompt still hold.
    """
    gamma, gain = generator.uniform(0.8, 1.25), generator.uniform(0.85, 1.1)
    tone = np.round(255 * np.clip(gain * np.linspace(0, 1, 256) ** gamma, 0, 1)).astype(np.uint8)
    channels = generator.permutation(3) if generator.random() < 0.5 else np.arange(3)
    first, second = tone[first][..., channels], tone[second][..., channels]
    return first, second, bool((channels == np.arange(3)).all())
