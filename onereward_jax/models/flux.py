"""FLUX: a flow-matching transformer over text and image tokens.

Source: Black Forest Labs' FLUX.1; equals diffusers' `FluxTransformer2DModel`, whose names it keeps.
Shapes: B batch, N image tokens, L text tokens, H heads, K head size, D = H·K width.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from onereward_jax.errors import UserError
from onereward_jax.models.attention import BLOCKS, attention
from onereward_jax.models.dense import Dense, DenseOfParts
from onereward_jax.models.fields import Heads, HeadSize, Layers, Length, Width
from onereward_jax.models.remat import remat
from onereward_jax.models.rope import Rotation, rotate, rotation
from onereward_jax.parallel.activations import keep_whole, shard_batch, shard_like_weights

EPSILON = 1e-6
TIME_FEATURES = 256

# queries, keys and values, each (B, N, H, K) -> (B, N, H, K)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class FluxTransformer(nn.Module):
    """Predicts the velocity of packed latents given a prompt; fields are named as in the official configuration."""

    in_channels: Width
    out_channels: Width
    num_layers: Layers
    num_single_layers: Layers
    attention_head_dim: HeadSize
    num_attention_heads: Heads
    joint_attention_dim: Width
    pooled_projection_dim: Width
    guidance_embeds: bool = True
    axes_dims_rope: Annotated[tuple[HeadSize, ...], Length(1, 8)] = (16, 56, 56)
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"
    attention_blocks: tuple[int, int] = BLOCKS

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        encoder_hidden_states: jax.Array,
        pooled_projections: jax.Array,
        timestep: jax.Array,
        img_ids: jax.Array | np.ndarray,
        txt_ids: jax.Array | np.ndarray,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """Predict `v = ε − x_data`.

        Args:
          hidden_states: (B, N, in_channels) packed latents with their conditions.
          encoder_hidden_states: (B, L, joint_attention_dim) token states from T5.
          pooled_projections: (B, pooled_projection_dim) pooled state from CLIP.
          timestep: (B,) noise level σ in [0, 1].
          img_ids, txt_ids: (N, A), (L, A) positions on the rope axes.
          guidance: (B,) scale of the distilled guidance; ignored without `guidance_embeds`.

        Returns:
          (B, N, out_channels), in `dtype`.

        Raises:
          UserError: guidance is missing, or the rope axes do not add up to the head size.
        """
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise UserError(
                f"axes_dims_rope {tuple(self.axes_dims_rope)} must sum to attention_head_dim {self.attention_head_dim}"
            )
        if self.guidance_embeds and guidance is None:
            raise UserError("this model has a guidance embedding: give guidance, one scale per sample")
        width = self.num_attention_heads * self.attention_head_dim

        conditioning = TimeTextEmbedding(width, self.guidance_embeds, self.dtype, name="time_text_embed")(
            timestep, guidance, pooled_projections
        )
        image = _dense(width, self.dtype, "x_embedder")(keep_whole(hidden_states))
        text = _dense(width, self.dtype, "context_embedder")(encoder_hidden_states)
        rope = rotation(jnp.concatenate([jnp.asarray(txt_ids), jnp.asarray(img_ids)]), self.axes_dims_rope)

        attend = functools.partial(
            attention,
            implementation=self.attention_implementation,
            blocks=self.attention_blocks,
            splits_tokens=True,
        )
        shared = (self.num_attention_heads, self.dtype, attend)
        double_blocks = self._stack(DoubleBlock, self.num_layers)(*shared, name="transformer_blocks")
        streams, _ = double_blocks((image, text), conditioning, rope)
        image, text = (shard_batch(stream, splits_tokens=True) for stream in streams)

        single_blocks = self._stack(SingleBlock, self.num_single_layers)(*shared, name="single_transformer_blocks")
        tokens, _ = single_blocks(jnp.concatenate([text, image], axis=1), conditioning, rope)
        image = shard_batch(tokens, splits_tokens=True)[:, text.shape[1] :]

        scale, shift = Modulation(2, self.dtype, name="norm_out")(conditioning)
        velocity = _dense(self.out_channels, self.dtype, "proj_out", nn.initializers.zeros)(
            modulate(image, shift, scale)
        )
        return keep_whole(velocity)

    def _stack(self, block: type[nn.Module], length: int):
        """Scan over `length` blocks: parameters get a leading layer axis, and one block is compiled."""
        return nn.scan(
            remat(block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=length,
        )


class DoubleBlock(nn.Module):
    """Image and text streams with separate weights and joint attention."""

    num_heads: int
    dtype: jnp.dtype
    attend: Attend

    @nn.compact
    def __call__(
        self, streams: tuple[jax.Array, jax.Array], conditioning: jax.Array, rope: Rotation
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """streams: image (B, N, D) and text (B, L, D)."""
        image, text = (shard_batch(stream, splits_tokens=True) for stream in streams)
        image_shift, image_scale, image_gate, image_mlp_shift, image_mlp_scale, image_mlp_gate = Modulation(
            6, self.dtype, name="norm1"
        )(conditioning)
        text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = Modulation(
            6, self.dtype, name="norm1_context"
        )(conditioning)

        attend = JointAttention(self.num_heads, self.dtype, self.attend, name="attn")
        image_attended, text_attended = attend(
            modulate(image, image_shift, image_scale), modulate(text, text_shift, text_scale), rope
        )
        image = image + image_gate * image_attended
        text = text + text_gate * text_attended

        image_mlp, text_mlp = FeedForward(self.dtype, name="ff"), FeedForward(self.dtype, name="ff_context")
        image = image + image_mlp_gate * image_mlp(modulate(image, image_mlp_shift, image_mlp_scale))
        text = text + text_mlp_gate * text_mlp(modulate(text, text_mlp_shift, text_mlp_scale))
        return (image, text), None


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and feed-forward in parallel."""

    num_heads: int
    dtype: jnp.dtype
    attend: Attend

    @nn.compact
    def __call__(self, tokens: jax.Array, conditioning: jax.Array, rope: Rotation) -> tuple[jax.Array, None]:
        """tokens: (B, L + N, D), text first."""
        width, tokens = tokens.shape[-1], shard_batch(tokens, splits_tokens=True)
        shift, scale, gate = Modulation(3, self.dtype, name="norm")(conditioning)
        x = modulate(tokens, shift, scale)
        attended = SelfAttention(self.num_heads, self.dtype, self.attend, name="attn")(x, rope)
        hidden = nn.gelu(_dense(4 * width, self.dtype, "proj_mlp")(x), approximate=True)
        output = DenseOfParts(width, self.dtype, nn.initializers.xavier_uniform(), name="proj_out")(attended, hidden)
        return tokens + gate * output, None


class JointAttention(nn.Module):
    """Attention over text and image tokens, with separate projections for each."""

    num_heads: int
    dtype: jnp.dtype
    attend: Attend

    @nn.compact
    def __call__(self, image: jax.Array, text: jax.Array, rope: Rotation) -> tuple[jax.Array, jax.Array]:
        width, length = image.shape[-1], text.shape[1]

        def project(tokens: jax.Array, name: str, norm: str | None = None) -> jax.Array:
            heads = _dense(width, self.dtype, name)(tokens).reshape(*tokens.shape[:-1], self.num_heads, -1)
            return _rms_norm(self.dtype, norm)(heads) if norm else heads

        query = [project(text, "add_q_proj", "norm_added_q"), project(image, "to_q", "norm_q")]
        key = [project(text, "add_k_proj", "norm_added_k"), project(image, "to_k", "norm_k")]
        value = [project(text, "add_v_proj"), project(image, "to_v")]
        x = self.attend(
            rotate(jnp.concatenate(query, axis=1), rope),
            rotate(jnp.concatenate(key, axis=1), rope),
            jnp.concatenate(value, axis=1),
        )
        x = x.reshape(*x.shape[:2], width)
        return (
            _dense(width, self.dtype, "to_out_0")(x[:, length:]),
            _dense(width, self.dtype, "to_add_out")(x[:, :length]),
        )


class SelfAttention(nn.Module):
    """Attention of a single block; the block itself has the output projection."""

    num_heads: int
    dtype: jnp.dtype
    attend: Attend

    @nn.compact
    def __call__(self, x: jax.Array, rope: Rotation) -> jax.Array:
        query, key, value = (
            _dense(x.shape[-1], self.dtype, name)(x).reshape(*x.shape[:-1], self.num_heads, -1)
            for name in ("to_q", "to_k", "to_v")
        )
        query = rotate(_rms_norm(self.dtype, "norm_q")(query), rope)
        key = rotate(_rms_norm(self.dtype, "norm_k")(key), rope)
        return self.attend(query, key, value).reshape(x.shape)


class FeedForward(nn.Module):
    """Two layers with tanh-approximate GELU, four times as wide inside."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        hidden = nn.gelu(_dense(4 * width, self.dtype, "net_0_proj")(x), approximate=True)
        return _dense(width, self.dtype, "net_2")(hidden)


class Modulation(nn.Module):
    """Vectors that scale, shift and gate a block's branches: (B, D) conditioning -> `parts` × (B, 1, D).

    They start at zero (adaLN-Zero, Peebles & Xie 2023): an untrained block is the identity.
    """

    parts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, conditioning: jax.Array) -> list[jax.Array]:
        width = conditioning.shape[-1]
        linear = _dense(self.parts * width, self.dtype, "linear", nn.initializers.zeros)
        parts = linear(shard_like_weights(nn.silu(conditioning)))
        return jnp.split(shard_batch(parts)[:, None, :], self.parts, axis=-1)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Compute `LayerNorm(x)·(1 + scale) + shift`, with the norm in float32 and without parameters."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return normed.astype(x.dtype) * (1 + scale) + shift


class TimeTextEmbedding(nn.Module):
    """Noise level, guidance and pooled prompt as one vector (B, D)."""

    width: int
    guidance_embeds: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, timestep: jax.Array, guidance: jax.Array | None, pooled: jax.Array) -> jax.Array:
        embedder = lambda name: Embedder(self.width, self.dtype, name=name)
        x = embedder("timestep_embedder")(sinusoidal_features(timestep))
        if self.guidance_embeds:
            assert guidance is not None
            x = x + embedder("guidance_embedder")(sinusoidal_features(guidance))
        return x + embedder("text_embedder")(pooled)


class Embedder(nn.Module):
    """Two layers with SiLU: (B, ·) -> (B, D)."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = nn.silu(_dense(self.width, self.dtype, "linear_1", init)(x))
        return _dense(self.width, self.dtype, "linear_2", init)(x)


def sinusoidal_features(x: jax.Array) -> jax.Array:
    """Embed scalars: (B,) -> float32 (B, 256), cosines then sines of 1000·x at wavelengths from 2π to 2π·10⁴.

    The exponents are rounded to float32 as in the original. At 1000·x that rounding shows in the fourth decimal
    of the features, and the weights were trained with it.
    """
    half = TIME_FEATURES // 2
    exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000.0 * x.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _dense(features: int, dtype: jnp.dtype, name: str, init=nn.initializers.xavier_uniform()) -> Dense:  # noqa: B008
    return Dense(features, dtype=dtype, kernel_init=init, name=name)


def _rms_norm(dtype: jnp.dtype, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=EPSILON, dtype=dtype, name=name)
