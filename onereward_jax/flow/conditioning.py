"""From images, masks and prompts to what the FLUX-Fill transformer reads.

Shapes: B batch, H×W image, h×w latent (h = H/f), C latent channels, N = h/2 · w/2 image tokens,
L prompt tokens. A token covers a 2×2 patch of the latent. The orders of channels equal diffusers'
FluxFillPipeline (`_pack_latents`, `prepare_mask_latents`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class TextStates:
    """Prompts as the transformer reads them: prompt_embeds (B, L, D) of T5, pooled (B, P) of CLIP."""

    prompt_embeds: Any
    pooled: Any


@flax.struct.dataclass
class Condition:
    """Everything a velocity depends on besides the noisy latents.

    Attributes:
      masked_image: (B, N, 4C) packed latents of the masked image.
      mask: (B, N, 4f²) packed mask, 1 = generate.
      prompt_embeds: (B, L, D) of T5; pooled: (B, P) of CLIP.
      negative_prompt_embeds, negative_pooled: the same for the negative prompt, None without true
        classifier-free guidance.
    """

    masked_image: jax.Array
    mask: jax.Array
    prompt_embeds: jax.Array
    pooled: jax.Array
    negative_prompt_embeds: jax.Array | None = None
    negative_pooled: jax.Array | None = None


def pack(latents: jax.Array) -> jax.Array:
    """(B, h, w, C) -> (B, N, 4C); within a token the order is (channel, row, column)."""
    b, h, w, c = latents.shape
    patches = latents.reshape(b, h // 2, 2, w // 2, 2, c)
    return patches.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: jax.Array, height: int, width: int) -> jax.Array:
    """(B, N, 4C) -> (B, h, w, C) for a latent of height h and width w: the inverse of `pack`."""
    b, _, d = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, d // 4, 2, 2)
    return patches.transpose(0, 1, 4, 2, 5, 3).reshape(b, height, width, d // 4)


def pack_mask(mask: jax.Array, factor: int) -> jax.Array:
    """(B, H, W), 1 = generate -> (B, N, 4f²): the f×f pixels below each latent become its channels."""
    b, height, width = mask.shape
    cells = mask.reshape(b, height // factor, factor, width // factor, factor)
    channels = cells.transpose(0, 1, 3, 2, 4).reshape(b, height // factor, width // factor, factor * factor)
    return pack(channels)


def image_ids(height: int, width: int) -> np.ndarray:
    """Rope positions (0, row, column) of the tokens of an h×w latent: float32 (N, 3)."""
    rows, columns = np.meshgrid(np.arange(height // 2), np.arange(width // 2), indexing="ij")
    return np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3).astype(np.float32)


def to_model_range(images: jax.Array) -> jax.Array:
    """uint8 or [0, 1] float images -> float32 in [−1, 1]."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32) * 2.0 - 1.0


def to_unit_range(images: jax.Array) -> jax.Array:
    """[−1, 1] -> [0, 1], not clipped: a clip would cut the gradient of every saturated pixel."""
    return images * 0.5 + 0.5


def encode_image(
    vae: Any, vae_params, images: jax.Array, noise: jax.Array | None = None, tile: int | None = None
) -> jax.Array:
    """Images (B, H, W, 3) in [−1, 1] -> normalised latents (B, h, w, C): `(z − shift)·scale`.

    Args:
      noise: standard normal (B, h, w, C) to sample the posterior; None takes its mode.
      tile: latents; see `decode_latents`. The posteriors of the tiles are blended, as in `AutoencoderKL.tiled_encode`.
    """
    factor = vae_factor(vae)

    def posterior(images):
        return jnp.concatenate(vae.apply({"params": vae_params}, images, method="encode"), axis=-1)

    moments = _in_tiles(posterior, images, tile, factor, 1)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    z = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
    return (z - vae.shift_factor) * vae.scaling_factor


def decode_latents(vae: Any, vae_params, latents: jax.Array, tile: int | None = None) -> jax.Array:
    """Normalised latents (B, h, w, C) -> images (B, H, W, 3) in [−1, 1], not clipped.

    Args:
      tile: latents with a longer side than this go through the decoder one square of this side after the other, which
        bounds its memory. The squares overlap by a quarter and are blended as in `AutoencoderKL.tiled_decode`, so that
        no seams are seen; but each is normalised by itself, and its tones may differ a little from the whole's.
    """
    raw = latents / vae.scaling_factor + vae.shift_factor
    decode = lambda z: vae.apply({"params": vae_params}, z, method="decode")  # noqa: E731
    return _in_tiles(decode, raw, tile, 1, vae_factor(vae))


def _in_tiles(
    function: Callable[[jax.Array], jax.Array], array: jax.Array, tile: int | None, reads: int, writes: int
) -> jax.Array:
    """`function` of an array (B, ·, ·, C), whole or square after square, blended.

    Args:
      tile: side of a square in latents; None never cuts.
      reads, writes: elements of the array, and of what the function gives, a latent.
    """
    batch, height, width, channels = array.shape
    height, width = height // reads, width // reads
    if tile is None or max(height, width) <= tile:
        return function(array)
    (tops, row_weights), (lefts, column_weights) = _tiles(height, tile, writes), _tiles(width, tile, writes)
    size = (batch, min(height, tile) * reads, min(width, tile) * reads, channels)

    def add(number, whole):
        row, column = number // len(lefts), number % len(lefts)
        top, left = jnp.asarray(tops)[row], jnp.asarray(lefts)[column]
        part = function(jax.lax.dynamic_slice(array, (0, top * reads, left * reads, 0), size))
        part = part * jnp.asarray(row_weights)[row, :, None, None] * jnp.asarray(column_weights)[column, :, None]
        corner = (0, top * writes, left * writes, 0)
        return jax.lax.dynamic_update_slice(whole, jax.lax.dynamic_slice(whole, corner, part.shape) + part, corner)

    made = jax.eval_shape(function, jax.ShapeDtypeStruct(size, array.dtype))
    whole = jnp.zeros((batch, height * writes, width * writes, made.shape[-1]), made.dtype)
    return jax.lax.fori_loop(0, len(tops) * len(lefts), add, whole)


def _tiles(side: int, tile: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Where tiles begin along a side of the latent, int32 (n,), and the share of each in what is made of it, float32
    (n, tile·factor): rising and falling linearly over a quarter of a tile, and summing to 1 everywhere."""
    if side <= tile:
        return np.zeros(1, np.int32), np.ones((1, side * factor), np.float32)
    overlap = tile // 4
    count = -(-(side - overlap) // (tile - overlap))
    starts = np.minimum(np.arange(count) * (tile - overlap), side - tile).astype(np.int32)
    ramp = np.arange(overlap * factor) / (overlap * factor)
    weights = np.ones((count, tile * factor))
    weights[1:, : len(ramp)] = ramp
    weights[:-1, -len(ramp) :] *= 1 - ramp
    total = np.zeros(side * factor)
    for start, weight in zip(starts * factor, weights, strict=True):
        total[start : start + len(weight)] += weight
    shares = [
        weight / total[start : start + len(weight)] for start, weight in zip(starts * factor, weights, strict=True)
    ]
    return starts, np.asarray(shares, np.float32)


@functools.partial(jax.jit, static_argnames="vae")
def reconstruct(vae: Any, vae_params, images: jax.Array, latent_noise: jax.Array | float = 0.0) -> jax.Array:
    """Images through the autoencoder and back: uint8 (B, H, W, 3) -> uint8 (B, H, W, 3).

    Args:
      latent_noise: added to the normalised latents (B, h, w, C).
    """
    latents = encode_image(vae, vae_params, to_model_range(images)) + latent_noise
    decoded = jnp.clip(to_unit_range(decode_latents(vae, vae_params, latents)), 0.0, 1.0)
    return jnp.round(decoded * 255).astype(jnp.uint8)


def vae_factor(vae: Any) -> int:
    """Pixels per latent, f."""
    return 2 ** (len(vae.block_out_channels) - 1)


def encode_masked_image(
    vae: Any,
    vae_params,
    images: jax.Array,
    masks: jax.Array,
    noise: jax.Array | None = None,
    tile: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The two picture conditions of FLUX-Fill.

    Args:
      images: (B, H, W, 3), uint8 or [0, 1].
      masks: (B, H, W), 1 = generate.
      noise, tile: see `encode_image`.

    Returns:
      packed latents of `image·(1 − mask)` taken in [−1, 1], (B, N, 4C), and packed mask, (B, N, 4f²).
    """
    masks = masks.astype(jnp.float32)
    masked = to_model_range(images) * (1.0 - masks[..., None])
    return pack(encode_image(vae, vae_params, masked, noise, tile)), pack_mask(masks, vae_factor(vae))


def encode_sample(
    vae: Any, vae_params, images: jax.Array, masks: jax.Array, targets: jax.Array
) -> dict[str, jax.Array]:
    """What flow matching needs of a sample, packed: data, masked_image (B, N, 4C) and mask (B, N, 4f²).

    Args:
      images, targets: (B, H, W, 3), uint8 or [0, 1]; masks: (B, H, W), 1 = generate.
    """
    masked_image, mask = encode_masked_image(vae, vae_params, images, masks)
    data = pack(encode_image(vae, vae_params, to_model_range(targets)))
    return {"data": data, "masked_image": masked_image, "mask": mask}
