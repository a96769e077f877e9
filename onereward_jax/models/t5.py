"""T5 v1.1 encoder: the text encoder whose token states FLUX attends to.

Source: Raffel et al. 2019 (T5) and Shazeer 2020 (gated GELU); equals `transformers.T5EncoderModel`.
Shapes: B batch, L tokens, H heads, K head size (`d_kv`), D = `d_model`.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from onereward_jax.errors import UserError
from onereward_jax.models.attention import attention
from onereward_jax.models.fields import Epsilon, Heads, HeadSize, Layers, Range, Vocabulary, Width
from onereward_jax.models.remat import remat


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Assign a bucket to the offset key − query, for every query and key of a text of `length` tokens.

    Half of the buckets are for keys after the query. In each half, the first half are single offsets, the
    rest grow logarithmically up to `max_distance`, and everything farther shares the last one.

    Returns:
      (length, length) int32, queries first.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # In float32, as in training: powers of two lie on a bucket's edge, where rounding decides.
    octave = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    coarse = exact + (octave / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(coarse, half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)


class T5LayerNorm(nn.Module):
    """RMS norm: a scale, no mean, no bias. Statistics in float32."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * weight).astype(self.dtype)


def _projection(features: int, stddev: float, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=nn.initializers.normal(stddev), name=name)


class T5Attention(nn.Module):
    """Self-attention without scaled logits; the initialisation of `q` makes up for it."""

    d_model: int
    d_kv: int
    num_heads: int
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, position_bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        inner = self.num_heads * self.d_kv
        query = _projection(inner, (self.d_model * self.d_kv) ** -0.5, self.dtype, "q")(x)
        key = _projection(inner, self.d_model**-0.5, self.dtype, "k")(x)
        value = _projection(inner, self.d_model**-0.5, self.dtype, "v")(x)
        # (B, L, H·K) -> (B, L, H, K)
        query, key, value = (y.reshape(*y.shape[:-1], self.num_heads, self.d_kv) for y in (query, key, value))
        x = attention(
            query,
            key,
            value,
            bias=position_bias,
            mask=mask,
            scale=1.0,
            implementation=self.attention_implementation,
        )
        x = x.reshape(*x.shape[:-2], inner)
        return _projection(self.d_model, inner**-0.5, self.dtype, "o")(x)


class T5DenseGatedActDense(nn.Module):
    """Gated feed-forward: gelu(x·wi_0) · (x·wi_1), then back to the model's width."""

    d_model: int
    d_ff: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = _projection(self.d_ff, self.d_model**-0.5, self.dtype, "wi_0")(x)
        linear = _projection(self.d_ff, self.d_model**-0.5, self.dtype, "wi_1")(x)
        return _projection(self.d_model, self.d_ff**-0.5, self.dtype, "wo")(nn.gelu(gate, approximate=True) * linear)


class T5LayerSelfAttention(nn.Module):
    """Pre-norm residual self-attention."""

    d_model: int
    d_kv: int
    num_heads: int
    layer_norm_epsilon: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, position_bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        attend = T5Attention(
            self.d_model, self.d_kv, self.num_heads, self.dtype, self.attention_implementation, name="SelfAttention"
        )
        return x + attend(T5LayerNorm(self.layer_norm_epsilon, self.dtype, name="layer_norm")(x), position_bias, mask)


class T5LayerFF(nn.Module):
    """Pre-norm residual feed-forward."""

    d_model: int
    d_ff: int
    layer_norm_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        feed_forward = T5DenseGatedActDense(self.d_model, self.d_ff, self.dtype, name="DenseReluDense")
        return x + feed_forward(T5LayerNorm(self.layer_norm_epsilon, self.dtype, name="layer_norm")(x))


class T5Block(nn.Module):
    """One layer, as the body of a scan: returns (x, None)."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    layer_norm_epsilon: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, position_bias: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        x = T5LayerSelfAttention(
            self.d_model,
            self.d_kv,
            self.num_heads,
            self.layer_norm_epsilon,
            self.dtype,
            self.attention_implementation,
            name="layer_0",
        )(x, position_bias, mask)
        x = T5LayerFF(self.d_model, self.d_ff, self.layer_norm_epsilon, self.dtype, name="layer_1")(x)
        return x, None


class T5Encoder(nn.Module):
    """T5 v1.1 encoder, equal to `transformers.T5EncoderModel` with gated GELU.

    The fields have the names of its configuration. All layers share one table of relative position biases.
    """

    vocab_size: Vocabulary
    d_model: Width
    d_kv: HeadSize
    d_ff: Width
    num_layers: Layers
    num_heads: Heads
    relative_attention_num_buckets: Annotated[int, Range(4, 10_000)] = 32
    relative_attention_max_distance: Annotated[int, Range(2, 1_000_000)] = 128
    layer_norm_epsilon: Epsilon = 1e-6
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise UserError(
                f"relative_attention_max_distance {self.relative_attention_max_distance} is too short for"
                f" {self.relative_attention_num_buckets} buckets: use the file of the release"
            )

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Encode a batch of texts.

        Args:
          input_ids: (B, L) integers.
          attention_mask: (B, L), nonzero where a token may be attended to. FLUX passes none: tokens
            attend to padding too.

        Returns:
          (B, L, D), in `dtype`.
        """
        embed = nn.Embed(
            self.vocab_size,
            self.d_model,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )
        # Official files keep this table in layer 0; here it is outside the stacked layers, which share it.
        bias_table = nn.Embed(
            self.relative_attention_num_buckets,
            self.num_heads,
            embedding_init=nn.initializers.normal(self.d_model**-0.5),
            name="relative_attention_bias",
        )
        buckets = relative_position_buckets(
            input_ids.shape[1], self.relative_attention_num_buckets, self.relative_attention_max_distance
        )
        position_bias = bias_table(buckets).transpose(2, 0, 1)[None]  # (1, H, L, L), float32
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]

        blocks = nn.scan(
            remat(T5Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_layers,
        )(
            self.d_model,
            self.d_kv,
            self.d_ff,
            self.num_heads,
            self.layer_norm_epsilon,
            self.dtype,
            self.attention_implementation,
            name="block",
        )
        x, _ = blocks(embed(input_ids), position_bias, mask)
        return T5LayerNorm(self.layer_norm_epsilon, self.dtype, name="final_layer_norm")(x)
