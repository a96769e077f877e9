"""Turns images, masks and prompts into inputs of the FLUX-Fill transformer.

Shapes: B batch, H×W image, h×w latent (h = H/f), C latent channels, N = h/2 · w/2 image tokens,
L prompt tokens. A token covers a 2×2 patch of the latent. The channel order equals diffusers'
FluxFillPipeline (`_pack_latents`, `prepare_mask_latents`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError


@flax.struct.dataclass
class TextStates:
    """Encoded prompts: prompt_embeds (B, L, D) from T5, pooled (B, P) from CLIP."""

    prompt_embeds: Any
    pooled: Any


@flax.struct.dataclass
class Condition:
    """Everything the velocity depends on besides the noisy latents.

    Attributes:
      masked_image: (B, N, 4C) packed latents of the masked image.
      mask: (B, N, 4f²) packed mask, 1 = generate.
      prompt_embeds: (B, L, D) from T5; pooled: (B, P) from CLIP.
      negative_prompt_embeds, negative_pooled: the same for the negative prompt; None without true
        classifier-free guidance.
    """

    masked_image: jax.Array
    mask: jax.Array
    prompt_embeds: jax.Array
    pooled: jax.Array
    negative_prompt_embeds: jax.Array | None = None
    negative_pooled: jax.Array | None = None


def pack(latents: jax.Array) -> jax.Array:
    """Pack 2×2 patches into tokens: (B, h, w, C) -> (B, N, 4C), ordered (channel, row, column) within a token."""
    b, h, w, c = latents.shape
    patches = latents.reshape(b, h // 2, 2, w // 2, 2, c)
    return patches.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: jax.Array, height: int, width: int) -> jax.Array:
    """Invert `pack` for a latent of height h and width w: (B, N, 4C) -> (B, h, w, C)."""
    b, _, d = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, d // 4, 2, 2)
    return patches.transpose(0, 1, 4, 2, 5, 3).reshape(b, height, width, d // 4)


def pack_mask(mask: jax.Array, factor: int) -> jax.Array:
    """Pack a mask: (B, H, W), 1 = generate -> (B, N, 4f²); the f×f pixels of each latent become its channels."""
    b, height, width = mask.shape
    cells = mask.reshape(b, height // factor, factor, width // factor, factor)
    channels = cells.transpose(0, 1, 3, 2, 4).reshape(b, height // factor, width // factor, factor * factor)
    return pack(channels)


def image_ids(height: int, width: int) -> np.ndarray:
    """Make the rope positions (0, row, column) for the tokens of an h×w latent: float32 (N, 3)."""
    rows, columns = np.meshgrid(np.arange(height // 2), np.arange(width // 2), indexing="ij")
    return np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3).astype(np.float32)


def to_model_range(images: jax.Array) -> jax.Array:
    """Convert uint8 or [0, 1] float images to float32 in [−1, 1]."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32) * 2.0 - 1.0


def to_unit_range(images: jax.Array) -> jax.Array:
    """Convert [−1, 1] to [0, 1] without clipping, which would cut the gradient of every saturated pixel."""
    return images * 0.5 + 0.5


def keep_outside(images: jax.Array, masks: jax.Array, made: jax.Array) -> jax.Array:
    """Take what was made inside the mask and the image outside: float32 (B, H, W, 3) in [0, 1].

    Args:
      images: (B, H, W, 3), uint8 or [0, 1]; masks: (B, H, W), 1 = generate; made: (B, H, W, 3) in [0, 1].
    """
    return jnp.where(masks[..., None] > 0, made, to_unit_range(to_model_range(images)))


def encode_image(
    vae: Any, vae_params, images: jax.Array, noise: jax.Array | None = None, tile: int | None = None
) -> jax.Array:
    """Encode images (B, H, W, 3) in [−1, 1] as normalised latents (B, h, w, C): `(z − shift)·scale`.

    Args:
      noise: standard normal (B, h, w, C) to sample the posterior; None takes its mode.
      tile: tile side in latents, see `decode_latents`. The tiles' posteriors are blended, as in
        `AutoencoderKL.tiled_encode`.
    """
    factor = vae_factor(vae)

    def posterior(images):
        return jnp.concatenate(vae.apply({"params": vae_params}, images, method="encode"), axis=-1)

    moments = _in_tiles(posterior, images, tile, factor, 1)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    z = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
    return (z - vae.shift_factor) * vae.scaling_factor


def decode_latents(vae: Any, vae_params, latents: jax.Array, tile: int | None = None) -> jax.Array:
    """Decode normalised latents (B, h, w, C) to images (B, H, W, 3) in [−1, 1], not clipped.

    Args:
      tile: latents with a side longer than this are decoded one square tile of this side at a time, to limit memory.
        Tiles overlap by a quarter and are blended as in `AutoencoderKL.tiled_decode`, so that no seams show; but group
        norm sees one tile at a time, so tones may differ slightly from decoding in one piece.
    """
    raw = latents / vae.scaling_factor + vae.shift_factor
    decode = lambda z: vae.apply({"params": vae_params}, z, method="decode")
    return _in_tiles(decode, raw, tile, 1, vae_factor(vae))


def _in_tiles(
    function: Callable[[jax.Array], jax.Array], array: jax.Array, tile: int | None, reads: int, writes: int
) -> jax.Array:
    """Apply `function` to an array (B, ·, ·, C), in one piece or in blended square tiles.

    Args:
      tile: tile side in latents; None never splits.
      reads, writes: elements of the input, and of the output, per latent along a side.
    """
    batch, height, width, channels = array.shape
    height, width = height // reads, width // reads
    if tile is None or max(height, width) <= tile:
        return function(array)
    (tops, row_weights), (lefts, column_weights) = _tiles(height, tile, writes), _tiles(width, tile, writes)
    size = (batch, min(height, tile) * reads, min(width, tile) * reads, channels)

    def add(number, total):
        row, column = number // len(lefts), number % len(lefts)
        top, left = jnp.asarray(tops)[row], jnp.asarray(lefts)[column]
        part = function(jax.lax.dynamic_slice(array, (0, top * reads, left * reads, 0), size))
        part = part * jnp.asarray(row_weights)[row, :, None, None] * jnp.asarray(column_weights)[column, :, None]
        corner = (0, top * writes, left * writes, 0)
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, corner, part.shape) + part, corner)

    output = jax.eval_shape(function, jax.ShapeDtypeStruct(size, array.dtype))
    total = jnp.zeros((batch, height * writes, width * writes, output.shape[-1]), output.dtype)
    return jax.lax.fori_loop(0, len(tops) * len(lefts), add, total)


def _tiles(side: int, tile: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Place tiles along a side of the latent: starts, int32 (n,), and blending weights, float32 (n, tile·factor).

    Weights rise and fall linearly over a quarter of a tile, and sum to 1 everywhere.
    """
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
    """Encode and decode images: uint8 (B, H, W, 3) -> uint8 (B, H, W, 3).

    Args:
      latent_noise: added to the normalised latents (B, h, w, C).
    """
    latents = encode_image(vae, vae_params, to_model_range(images)) + latent_noise
    decoded = jnp.clip(to_unit_range(decode_latents(vae, vae_params, latents)), 0.0, 1.0)
    return jnp.round(decoded * 255).astype(jnp.uint8)


def vae_factor(vae: Any) -> int:
    """Return f, the pixels per latent along a side."""
    return 2 ** (len(vae.block_out_channels) - 1)


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, C) of the latent of an H×W image.

    Raises:
      UserError: a side is not a multiple of two latents.
    """
    factor = vae_factor(vae)
    if height % (2 * factor) or width % (2 * factor):
        raise UserError(f"an image of {width}×{height} does not divide into patches: use multiples of {2 * factor}")
    return height // factor, width // factor, vae.latent_channels


def encode_masked_image(
    vae: Any,
    vae_params,
    images: jax.Array,
    masks: jax.Array,
    noise: jax.Array | None = None,
    tile: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Encode the two image conditions of FLUX-Fill.

    Args:
      images: (B, H, W, 3), uint8 or [0, 1].
      masks: (B, H, W), 1 = generate.
      noise, tile: see `encode_image`.

    Returns:
      packed latents (B, N, 4C) of `image·(1 − mask)`, with the image in [−1, 1], and the packed mask (B, N, 4f²).
    """
    masks = masks.astype(jnp.float32)
    masked = to_model_range(images) * (1.0 - masks[..., None])
    return pack(encode_image(vae, vae_params, masked, noise, tile)), pack_mask(masks, vae_factor(vae))


def encode_sample(
    vae: Any, vae_params, images: jax.Array, masks: jax.Array, targets: jax.Array
) -> dict[str, jax.Array]:
    """Encode samples for flow matching, packed: data, masked_image (B, N, 4C) and mask (B, N, 4f²).

    Args:
      images, targets: (B, H, W, 3), uint8 or [0, 1]; masks: (B, H, W), 1 = generate.
    """
    masked_image, mask = encode_masked_image(vae, vae_params, images, masks)
    data = pack(encode_image(vae, vae_params, to_model_range(targets)))
    return {"data": data, "masked_image": masked_image, "mask": mask}
