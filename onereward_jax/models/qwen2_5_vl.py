"""Qwen2.5-VL: the vision-language model that judges pairs of images.

Source: Bai et al. 2025; equals `transformers.Qwen2_5_VLForConditionalGeneration` on still images.
Shapes: B batch, N patches of an image, M = N / merge² merged patches (the image's tokens), L tokens, V vocabulary,
H heads, G key/value heads, K head size, D width.

All images of one call share one static grid (rows, columns) of patches, so that windows and positions are
constants of the program; images of another size are another call.
"""

import functools
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from onereward_jax.errors import UserError
from onereward_jax.models.attention import attention
from onereward_jax.models.dense import Dense
from onereward_jax.models.fields import (
    Epsilon,
    Heads,
    Layers,
    Length,
    Range,
    Side,
    Token,
    Vocabulary,
    Width,
    check_multiple,
)
from onereward_jax.models.remat import remat
from onereward_jax.parallel.activations import shard_batch, shard_like_weights

Grid = tuple[int, int]  # rows and columns of patches, multiples of the merge size


def vision_positions(grid: Grid, merge: int) -> np.ndarray:
    """Return row and column of every patch, in the processor's order: blocks of merge × merge patches, row by row.

    Returns:
      (N, 2) int32.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    blocks = (grid[0] // merge, merge, grid[1] // merge, merge)
    order = lambda x: x.reshape(blocks).swapaxes(1, 2).reshape(-1)
    return np.stack([order(rows), order(columns)], axis=-1).astype(np.int32)


def inverse_frequencies(size: int, theta: float) -> np.ndarray:
    """θ^(−2i/size) for i below size/2, float32."""
    return (1.0 / np.float32(theta) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))).astype(np.float32)


def vision_angles(grid: Grid, merge: int, head_size: int) -> np.ndarray:
    """Compute the rotation angles of every patch: (N, K/2), the first half by row, the second by column."""
    frequencies = inverse_frequencies(head_size // 2, 10_000.0)
    positions = vision_positions(grid, merge).astype(np.float32)
    return (positions[..., None] * frequencies).reshape(len(positions), -1)


def text_angles(positions: jax.Array, sections: Sequence[int], head_size: int, theta: float) -> jax.Array:
    """Compute M-RoPE angles: each frequency uses one of a token's three positions (time, row, column).

    Args:
      positions: (3, B, L).
      sections: the number of frequencies for each of the three; they add up to K/2.

    Returns:
      (B, L, K/2), float32.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(head_size, theta)
    axis = np.repeat(np.arange(3), sections)
    return jnp.where(axis == 0, angles[0], jnp.where(axis == 1, angles[1], angles[2]))


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + K/2}), in float32.

    Args:
      x: (..., L, H, K).
      angles: (..., L, K/2), broadcastable.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def split_windows(x: jax.Array, grid: Grid, window: int) -> jax.Array:
    """Split images into windows of window × window merged patches, padded at the lower and right border.

    Args:
      x: (B, N, ...) in the processor's order.
      grid: rows and columns of *merged* patches.

    Returns:
      (B · windows, window² · N/M, ...).
    """
    (rows, columns), merged = grid, x.shape[1] // (grid[0] * grid[1])
    tall, wide = -(-rows // window), -(-columns // window)
    rest = x.shape[2:]
    x = x.reshape(x.shape[0], rows, columns, merged, *rest)
    x = jnp.pad(x, [(0, 0), (0, tall * window - rows), (0, wide * window - columns)] + [(0, 0)] * (1 + len(rest)))
    x = x.reshape(x.shape[0], tall, window, wide, window, merged, *rest).swapaxes(2, 3)
    return x.reshape(-1, window * window * merged, *rest)


def join_windows(x: jax.Array, grid: Grid, window: int) -> jax.Array:
    """Invert `split_windows`."""
    (rows, columns), merged = grid, x.shape[1] // window**2
    tall, wide = -(-rows // window), -(-columns // window)
    rest = x.shape[2:]
    x = x.reshape(-1, tall, wide, window, window, merged, *rest).swapaxes(2, 3)
    x = x.reshape(x.shape[0], tall * window, wide * window, merged, *rest)[:, :rows, :columns]
    return x.reshape(x.shape[0], rows * columns * merged, *rest)


def window_attention(query, key, value, *, grid: Grid, window: int, implementation: str) -> jax.Array:
    """Attend within each window. query, key, value: (B, N, H, K); grid and window count merged patches."""
    mask = None
    if grid[0] % window or grid[1] % window:
        real = jnp.ones((1, query.shape[1]), bool)
        mask = jnp.tile(split_windows(real, grid, window), (query.shape[0], 1))[:, None, None, :]
    query, key, value = (split_windows(x, grid, window) for x in (query, key, value))
    x = attention(query, key, value, mask=mask, implementation=implementation)
    return join_windows(x, grid, window)


def _dense(features: int, dtype: jnp.dtype, name: str, use_bias: bool = True, scale: float = 1.0) -> Dense:
    init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
    return Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name)


class RMSNorm(nn.Module):
    """A scale, no mean, no bias. Statistics in float32."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * weight).astype(self.dtype)


class MLP(nn.Module):
    """Gated feed-forward: silu(gate) · up, then back to the model's width."""

    intermediate_size: int
    use_bias: bool
    residual_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = _dense(self.intermediate_size, self.dtype, "gate_proj", self.use_bias)(x)
        up = _dense(self.intermediate_size, self.dtype, "up_proj", self.use_bias)(x)
        return _dense(x.shape[-1], self.dtype, "down_proj", self.use_bias, self.residual_scale)(nn.silu(gate) * up)


class VisionAttention(nn.Module):
    """Self-attention of patches, within windows or over the whole image."""

    num_heads: int
    window: int
    residual_scale: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, is_full: jax.Array | bool, angles: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, D). `is_full`: whole image or windows. `grid`: rows and columns of merged patches."""
        width = x.shape[-1]
        qkv = _dense(3 * width, self.dtype, "qkv")(x).reshape(*x.shape[:-1], 3, self.num_heads, -1)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        query, key = rotate(query, angles), rotate(key, angles)

        def over_image(query, key, value):
            return attention(query, key, value, implementation=self.attention_implementation)

        def in_windows(query, key, value):
            return window_attention(
                query, key, value, grid=grid, window=self.window, implementation=self.attention_implementation
            )

        if max(grid) <= self.window:
            x = over_image(query, key, value)
        else:
            # Checkpointed, since the backward pass of `cond` reserves the residuals of both branches: without it
            # every windowed layer would reserve memory for the attention weights of the whole image.
            branches = [jax.checkpoint(branch, prevent_cse=False) for branch in (over_image, in_windows)]
            x = jax.lax.cond(is_full, *branches, query, key, value)
        return _dense(width, self.dtype, "proj", scale=self.residual_scale)(x.reshape(*x.shape[:-2], width))


class VisionBlock(nn.Module):
    """One layer of the vision tower, as the body of a scan: returns (x, None)."""

    intermediate_size: int
    num_heads: int
    window: int
    residual_scale: float
    grid: Grid
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, is_full: jax.Array, angles: jax.Array) -> tuple[jax.Array, None]:
        attend = VisionAttention(
            self.num_heads, self.window, self.residual_scale, self.dtype, self.attention_implementation, name="attn"
        )
        feed_forward = MLP(self.intermediate_size, True, self.residual_scale, self.dtype, name="mlp")
        x = shard_batch(x)
        x = x + attend(RMSNorm(1e-6, self.dtype, name="norm1")(x), is_full, angles, self.grid)
        x = x + feed_forward(RMSNorm(1e-6, self.dtype, name="norm2")(x))
        return x, None


class PatchEmbed(nn.Module):
    """Patch embedding, as a matrix product with flattened patches: (B, N, C·T·p·p) -> (B, N, D)."""

    in_channels: int
    temporal_patch_size: int
    patch_size: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2, 3))
        kernel = Kernel((*window, self.features), init, name="proj")()
        return x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(-1, self.features)


class Kernel(nn.Module):
    """A parameter called `kernel`."""

    shape: tuple[int, ...]
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", self.kernel_init, self.shape, jnp.float32)


class PatchMerger(nn.Module):
    """Merges merge² neighbouring patches into one token: (B, N, D) -> (B, M, out)."""

    merge: int
    out_hidden_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1] * self.merge**2
        x = RMSNorm(1e-6, self.dtype, name="ln_q")(x).reshape(x.shape[0], -1, width)
        x = nn.gelu(_dense(width, self.dtype, "mlp_0")(x), approximate=False)
        return _dense(self.out_hidden_size, self.dtype, "mlp_2")(x)


class VisionTransformer(nn.Module):
    """The vision tower, equal to `transformers.Qwen2_5_VisionTransformerPretrainedModel`.

    The fields have the names of its configuration. Patches stay in the processor's order; layers with windowed
    attention pad and transpose them into windows.
    """

    depth: Layers
    hidden_size: Width
    intermediate_size: Width
    num_heads: Heads
    out_hidden_size: Width
    fullatt_block_indexes: Annotated[tuple[Annotated[int, Range(0, 10_000)], ...], Length(0, 10_000)]
    window_size: Annotated[int, Range(1, 100_000)]
    patch_size: Side
    spatial_merge_size: Side = 2
    temporal_patch_size: Side = 2
    in_channels: Side = 3
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        check_multiple("hidden_size", self.hidden_size, self.num_heads, "num_heads")
        check_multiple("the vision tower's head size", self.hidden_size // self.num_heads, 4)
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise UserError(f"window_size {self.window_size} does not hold one token: use the file of the release")

    @nn.compact
    def __call__(self, patches: jax.Array, grid: Grid) -> jax.Array:
        """Encode a batch of images of one size.

        Args:
          patches: (B, N, C·T·p·p), as the image processor orders them.
          grid: rows and columns of patches, static.

        Returns:
          (B, M, out_hidden_size), row by row.

        Raises:
          UserError: the grid does not fit the patches or the merge size.
        """
        merge = self.spatial_merge_size
        if patches.shape[1] != grid[0] * grid[1] or grid[0] % merge or grid[1] % merge:
            raise UserError(
                f"{patches.shape[1]} patches do not form a grid of {grid[0]} x {grid[1]} with sides divisible by"
                f" {merge}: resize the image as the processor does"
            )
        x = PatchEmbed(
            self.in_channels,
            self.temporal_patch_size,
            self.patch_size,
            self.hidden_size,
            self.dtype,
            name="patch_embed",
        )(patches)
        angles = jnp.asarray(vision_angles(grid, merge, self.hidden_size // self.num_heads))
        is_full = jnp.asarray([layer in self.fullatt_block_indexes for layer in range(self.depth)])
        blocks = nn.scan(
            remat(VisionBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
        )(
            self.intermediate_size,
            self.num_heads,
            self.window_size // merge // self.patch_size,
            1 / (2 * self.depth),
            (grid[0] // merge, grid[1] // merge),
            self.dtype,
            self.attention_implementation,
            name="blocks",
        )
        x, _ = blocks(x, is_full, angles)
        return PatchMerger(merge, self.out_hidden_size, self.dtype, name="merger")(shard_batch(x))


class TextAttention(nn.Module):
    """Self-attention with shared key/value heads and biases on query, key and value."""

    num_heads: int
    num_key_value_heads: int
    residual_scale: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, mask: jax.Array) -> jax.Array:
        width = x.shape[-1]
        head_size = width // self.num_heads
        heads = {"q_proj": self.num_heads, "k_proj": self.num_key_value_heads, "v_proj": self.num_key_value_heads}
        query, key, value = (
            _dense(count * head_size, self.dtype, name)(x).reshape(*x.shape[:-1], count, head_size)
            for name, count in heads.items()
        )
        x = attention(
            rotate(query, angles),
            rotate(key, angles),
            value,
            mask=mask[:, None],
            implementation=self.attention_implementation,
        )
        x = x.reshape(*x.shape[:-2], width)
        return _dense(width, self.dtype, "o_proj", use_bias=False, scale=self.residual_scale)(x)


class DecoderLayer(nn.Module):
    """One layer of the language model, as the body of a scan: returns (x, None)."""

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    residual_scale: float
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        attend = TextAttention(
            self.num_attention_heads,
            self.num_key_value_heads,
            self.residual_scale,
            self.dtype,
            self.attention_implementation,
            name="self_attn",
        )
        feed_forward = MLP(self.intermediate_size, False, self.residual_scale, self.dtype, name="mlp")
        x = shard_batch(x)
        x = x + attend(RMSNorm(self.rms_norm_eps, self.dtype, name="input_layernorm")(x), angles, mask)
        x = x + feed_forward(RMSNorm(self.rms_norm_eps, self.dtype, name="post_attention_layernorm")(x))
        return x, None


class TextModel(nn.Module):
    """The language model without its output matrix, equal to `transformers.Qwen2_5_VLTextModel`.

    The fields have the names of its configuration.
    """

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Annotated[float, Range(1.0, 1e12)] = 1_000_000.0
    mrope_section: Annotated[tuple[Annotated[int, Range(0, 10_000)], ...], Length(3, 3)] = (16, 24, 24)
    embedding_stddev: float = 1.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        heads = self.num_attention_heads
        check_multiple("hidden_size", self.hidden_size, heads, "num_attention_heads")
        check_multiple("num_attention_heads", heads, self.num_key_value_heads, "num_key_value_heads")
        check_multiple("the language model's head size", self.hidden_size // heads, 2)

    def setup(self):
        self.embed_tokens = nn.Embed(
            self.vocab_size,
            self.hidden_size,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(self.embedding_stddev),
        )
        self.layers = nn.scan(
            remat(DecoderLayer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_hidden_layers,
        )(
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.rms_norm_eps,
            1 / (2 * self.num_hidden_layers),
            self.dtype,
            self.attention_implementation,
        )
        self.norm = RMSNorm(self.rms_norm_eps, self.dtype)

    def __call__(self, embeddings: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Compute the final states.

        Args:
          embeddings: (B, L, D), text and image tokens.
          positions: (3, B, L) or (3, 1, L): time, row and column of each token.
          mask: boolean (B, L, L) or (1, L, L), queries first; True may attend.

        Returns:
          (B, L, D), normalised, in `dtype`.

        Raises:
          UserError: the sections of M-RoPE don't fill a head.
        """
        head_size = self.hidden_size // self.num_attention_heads
        if sum(self.mrope_section) != head_size // 2:
            raise UserError(
                f"mrope_section {tuple(self.mrope_section)} must add up to half the head size, {head_size // 2}:"
                " correct the configuration"
            )
        angles = text_angles(positions, self.mrope_section, head_size, self.rope_theta)
        x, _ = self.layers(embeddings.astype(self.dtype), angles, mask)
        return self.norm(shard_batch(x))

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """(..., L) token ids -> (..., L, D)."""
        return self.embed_tokens(input_ids)


class Qwen2_5_VL(nn.Module):
    """Vision tower, language model and output matrix.

    Attributes:
      visual: the vision tower.
      model: the language model.
      tie_word_embeddings: the output matrix is the embedding table (no `lm_head`).
      image_token_id: the placeholder token that image tokens replace.
    """

    visual: VisionTransformer
    model: TextModel
    tie_word_embeddings: bool = False
    image_token_id: Token = 151655

    def check_fields(self) -> None:
        """Check that the two parts fit each other.

        Raises:
          UserError: they don't.
        """
        if self.visual.out_hidden_size != self.model.hidden_size:
            raise UserError(
                f"the vision tower's out_hidden_size {self.visual.out_hidden_size} is not the language model's"
                f" hidden_size {self.model.hidden_size}: use the file of the release"
            )

    def setup(self):
        if not self.tie_word_embeddings:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            in_float32 = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
            self.lm_head = Dense(
                self.model.vocab_size,
                use_bias=False,
                dtype=self.model.dtype,
                kernel_init=init,
                dot_general=in_float32,
            )

    def __call__(
        self,
        input_ids: jax.Array,
        patches: Sequence[jax.Array],
        grids: Sequence[Grid],
        positions: jax.Array,
        mask: jax.Array,
    ) -> jax.Array:
        """Compute the logits at every token, for texts whose image tokens are all in the same places.

        Args:
          input_ids: (B, L), with `image_token_id` once for every image token.
          patches, grids: an image per entry, (B, N, C·T·p·p) and its static grid.
          positions: (3, B, L).
          mask: boolean, (B, L, L).

        Returns:
          float32 (B, L, V).
        """
        images = jnp.concatenate([self.encode_image(*image) for image in zip(patches, grids, strict=True)], axis=1)
        is_image = input_ids == self.image_token_id
        place = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)
        images = jnp.take_along_axis(images, place[..., None], axis=1)
        embeddings = jnp.where(is_image[..., None], images, self.embed(input_ids))
        return self.unembed(self.decode(embeddings, positions, mask))

    def encode_image(self, patches: jax.Array, grid: Grid) -> jax.Array:
        """Encode images of one size: (B, N, C·T·p·p) patches -> (B, M, D) tokens."""
        return self.visual(patches, grid)

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """(..., L) token ids -> (..., L, D)."""
        return self.model.embed(input_ids)

    def decode(self, embeddings: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Compute the final states (B, L, D); for the arguments see `TextModel`."""
        return self.model(embeddings, positions, mask)

    def unembed(self, states: jax.Array) -> jax.Array:
        """(..., D) final states -> float32 logits (..., V)."""
        if not self.tie_word_embeddings:
            return self.lm_head(shard_like_weights(states))
        kernel = self.model.embed_tokens.embedding.T.astype(states.dtype)
        return jnp.einsum("...d,dv->...v", states, kernel, preferred_element_type=jnp.float32)
