"""CLIP: the text encoder, whose pooled state FLUX uses as a summary of the prompt, and the whole model with images.

Source: Radford et al. 2021; equal `transformers.CLIPTextModel` (no projection) and `transformers.CLIPModel`.
Shapes: B batch, L tokens, H heads, K head size, D = `hidden_size`, P = `projection_dim`.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from onereward_jax.errors import UserError
from onereward_jax.models.attention import attention
from onereward_jax.models.fields import (
    Epsilon,
    Heads,
    Layers,
    OneOf,
    Range,
    Side,
    Token,
    Vocabulary,
    Width,
    check_multiple,
)
from onereward_jax.models.remat import remat

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}

# The configurations of the first CLIP releases, FLUX's among them, give 2 as the end-of-text token, which their
# tokenizers never produce. transformers reads it as the highest token of the vocabulary, and so do we.
LEGACY_EOS_TOKEN_ID = 2


def pooled_position(input_ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Find the first end-of-text token of each text: (B, L) integers -> (B,) positions."""
    if eos_token_id == LEGACY_EOS_TOKEN_ID:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eos_token_id, axis=-1)


def _layer_norm(epsilon: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def _projection(features: int, stddev: float, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(stddev), name=name)


class CLIPAttention(nn.Module):
    """Self-attention, causal if the mask is."""

    num_heads: int
    in_stddev: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        query, key, value = (
            _projection(width, self.in_stddev, self.dtype, name)(x).reshape(*x.shape[:-1], self.num_heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        x = attention(query, key, value, mask=mask, implementation=self.attention_implementation).reshape(x.shape)
        return _projection(width, width**-0.5, self.dtype, "out_proj")(x)


class CLIPMLP(nn.Module):
    """Feed-forward."""

    intermediate_size: int
    hidden_act: str
    out_stddev: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = _projection(self.intermediate_size, (2 * width) ** -0.5, self.dtype, "fc1")(x)
        return _projection(width, self.out_stddev, self.dtype, "fc2")(ACTIVATIONS[self.hidden_act](x))


class CLIPEncoderLayer(nn.Module):
    """One layer, as the body of a scan: returns (x, None)."""

    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        stddev = (2 * self.num_hidden_layers * x.shape[-1]) ** -0.5  # smaller with more residual layers
        attend = CLIPAttention(
            self.num_attention_heads, stddev, self.dtype, self.attention_implementation, name="self_attn"
        )
        feed_forward = CLIPMLP(self.intermediate_size, self.hidden_act, stddev, self.dtype, name="mlp")
        x = x + attend(_layer_norm(self.layer_norm_eps, self.dtype, "layer_norm1")(x), mask)
        x = x + feed_forward(_layer_norm(self.layer_norm_eps, self.dtype, "layer_norm2")(x))
        return x, None


def _layers(encoder: "CLIPTextEncoder | CLIPVisionEncoder") -> nn.Module:
    """The layers of an encoder, one after the other."""
    scanned = nn.scan(
        remat(CLIPEncoderLayer, encoder.remat),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=encoder.num_hidden_layers,
    )
    return scanned(
        encoder.intermediate_size,
        encoder.num_hidden_layers,
        encoder.num_attention_heads,
        encoder.hidden_act,
        encoder.layer_norm_eps,
        encoder.dtype,
        encoder.attention_implementation,
        name="layers",
    )


class CLIPTextEncoder(nn.Module):
    """CLIP's text transformer, equal to `transformers.CLIPTextModel`.

    The fields have the names of its configuration.
    """

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    max_position_embeddings: Annotated[int, Range(2, 1_000_000)] = 77
    hidden_act: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Token = LEGACY_EOS_TOKEN_ID
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        check_multiple("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Encode a batch of texts.

        Args:
          input_ids: (B, L) integers, L at most `max_position_embeddings`.
          attention_mask: (B, L), nonzero where a token may be attended to. FLUX passes none.

        Returns:
          The states (B, L, D), and the state at each text's end-of-text token (B, D), both in `dtype`.

        Raises:
          UserError: the text is too long, or the activation is unknown.
        """
        length = input_ids.shape[1]
        if length > self.max_position_embeddings:
            raise UserError(
                f"CLIP reads at most {self.max_position_embeddings} tokens, not {length}: cut the text to that"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"unknown hidden_act {self.hidden_act!r}: choose one of {', '.join(ACTIVATIONS)}")

        x = CLIPTextEmbeddings(
            self.vocab_size, self.hidden_size, self.max_position_embeddings, self.dtype, name="embeddings"
        )(input_ids)
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
        if attention_mask is not None:
            mask = mask & (attention_mask != 0)[:, None, None, :]

        x, _ = _layers(self)(x, mask)
        x = _layer_norm(self.layer_norm_eps, self.dtype, "final_layer_norm")(x)
        end = pooled_position(input_ids, self.eos_token_id)
        return x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


class CLIPTextEmbeddings(nn.Module):
    """Token plus position embeddings: (B, L) -> (B, L, D)."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:

        def embed(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(0.02)
            return nn.Embed(rows, self.hidden_size, dtype=self.dtype, embedding_init=init, name=name)

        token = embed(self.vocab_size, "token_embedding")(input_ids)
        return token + embed(self.max_position_embeddings, "position_embedding")(jnp.arange(input_ids.shape[1]))


class CLIPVisionEncoder(nn.Module):
    """CLIP's vision transformer, equal to `transformers.CLIPVisionModel`.

    The fields have the names of its configuration.
    """

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    image_size: Annotated[int, Range(1, 4096)] = 224
    patch_size: Side = 32
    hidden_act: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        check_multiple("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        check_multiple("image_size", self.image_size, self.patch_size, "patch_size")

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        """Encode a batch of images.

        Args:
          pixel_values: (B, `image_size`, `image_size`, 3), normalised.

        Returns:
          the state of the class token (B, D), in `dtype`.
        """
        size, init = self.patch_size, nn.initializers.normal(0.02)
        embed = nn.Conv(
            self.hidden_size,
            (size, size),
            strides=(size, size),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=init,
            name="patch_embedding",
        )
        patches = embed(pixel_values).reshape(len(pixel_values), -1, self.hidden_size)  # (B, L − 1, D)
        first = self.param("class_embedding", init, (self.hidden_size,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(patches), 1, self.hidden_size)), patches], axis=1)
        places = nn.Embed(
            x.shape[1], self.hidden_size, dtype=self.dtype, embedding_init=init, name="position_embedding"
        )
        x = x + places(jnp.arange(x.shape[1]))
        x = _layer_norm(self.layer_norm_eps, self.dtype, "pre_layrnorm")(x)
        x, _ = _layers(self)(x, None)
        return _layer_norm(self.layer_norm_eps, self.dtype, "post_layernorm")(x[:, 0])


class CLIP(nn.Module):
    """Text and images in one space, equal to `transformers.CLIPModel`.

    Attributes:
      text_model, vision_model: the encoders.
      projection_dim: of the space, P.
    """

    text_model: CLIPTextEncoder
    vision_model: CLIPVisionEncoder
    projection_dim: Width = 512

    def setup(self) -> None:
        project = lambda dtype: nn.Dense(self.projection_dim, use_bias=False, dtype=dtype)
        self.text_projection = project(self.text_model.dtype)
        self.visual_projection = project(self.vision_model.dtype)

    def text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Encode texts, see `CLIPTextEncoder`: (B, P), not normalised."""
        return self.text_projection(self.text_model(input_ids, attention_mask)[1])

    def image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Encode images, see `CLIPVisionEncoder`: (B, P), not normalised."""
        return self.visual_projection(self.vision_model(pixel_values))

    def __call__(self, input_ids: jax.Array, pixel_values: jax.Array) -> jax.Array:
        """Compute the cosines of texts and images, (B, L) and (B, H, W, 3), pair by pair: float32 (B,)."""
        text, image = self.text_features(input_ids), self.image_features(pixel_values)
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return jnp.sum(unit(text.astype(jnp.float32)) * unit(image.astype(jnp.float32)), axis=-1)
