"""AutoencoderKL: images <-> latents.

Source: Rombach et al. 2022 with FLUX's 16 channels; equals diffusers' `AutoencoderKL`, whose names it keeps.
Shapes: B batch, H×W pixels, h×w latents, C channels; channels last.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from onereward_jax.errors import UserError
from onereward_jax.models.attention import attention
from onereward_jax.models.fields import Length, Range, UnrolledLayers, Width, check_multiple
from onereward_jax.models.remat import remat
from onereward_jax.parallel.activations import shard_batch

EPSILON = 1e-6


class AutoencoderKL(nn.Module):
    """Encoder and decoder; the fields have the names of the official configuration.

    `scaling_factor` and `shift_factor` are not applied here: these latents are raw.
    """

    in_channels: Width = 3
    out_channels: Width = 3
    block_out_channels: Annotated[tuple[Width, ...], Length(1, 8)] = (128, 256, 512, 512)
    layers_per_block: UnrolledLayers = 2
    latent_channels: Width = 16
    norm_num_groups: Width = 32
    scaling_factor: Annotated[float, Range(1e-6, 1e6)] = 0.3611
    shift_factor: Annotated[float, Range(-1e6, 1e6)] = 0.1159
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention_implementation: str = "xla"

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        for channels in self.block_out_channels:
            check_multiple("block_out_channels", channels, self.norm_num_groups, "norm_num_groups")

    def setup(self):
        shared = {
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "dtype": self.dtype,
            "remat": self.remat,
            "attention_implementation": self.attention_implementation,
        }
        self.encoder = Encoder(out_channels=2 * self.latent_channels, **shared)
        self.decoder = Decoder(out_channels=self.out_channels, **shared)
        if self.use_quant_conv:
            self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute the posterior over the latents.

        Args:
          images: (B, H, W, 3) in [−1, 1]; H and W multiples of f = 2^(blocks − 1).

        Returns:
          mean and log-variance, each float32 (B, H/f, W/f, latent_channels).

        Raises:
          UserError: a side of the images is not a multiple of f.
        """
        factor = 2 ** (len(self.block_out_channels) - 1)
        if images.shape[1] % factor or images.shape[2] % factor:
            raise UserError(f"the autoencoder needs sides that are multiples of {factor}, not {images.shape[1:3]}")
        moments = self.encoder(images)
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode raw latents (B, h, w, latent_channels) -> images (B, f·h, f·w, out_channels), float32, not clipped."""
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstruct images through the mean of the posterior."""
        return self.decode(self.encode(images)[0])


class Encoder(nn.Module):
    """Images (B, H, W, ·) -> moments (B, h, w, out_channels)."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    dtype: jnp.dtype
    remat: str
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv(self.block_out_channels[0], self.dtype, "conv_in")(x)
        last = len(self.block_out_channels) - 1
        for level, channels in enumerate(self.block_out_channels):
            x = ResnetStack(
                channels,
                self.layers_per_block,
                self.norm_num_groups,
                self.dtype,
                self.remat,
                resample="" if level == last else "down",
                name=f"down_blocks_{level}",
            )(x)
        x = MidBlock(self.norm_num_groups, self.dtype, self.remat, self.attention_implementation, name="mid_block")(x)
        x = nn.silu(_group_norm(self.norm_num_groups, self.dtype, "conv_norm_out")(shard_batch(x)))
        return _conv(self.out_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents (B, h, w, ·) -> images (B, H, W, out_channels)."""

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    dtype: jnp.dtype
    remat: str
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _conv(self.block_out_channels[-1], self.dtype, "conv_in")(x)
        x = MidBlock(self.norm_num_groups, self.dtype, self.remat, self.attention_implementation, name="mid_block")(x)
        last = len(self.block_out_channels) - 1
        for level, channels in enumerate(reversed(self.block_out_channels)):
            x = ResnetStack(
                channels,
                self.layers_per_block + 1,
                self.norm_num_groups,
                self.dtype,
                self.remat,
                resample="" if level == last else "up",
                name=f"up_blocks_{level}",
            )(x)
        x = nn.silu(_group_norm(self.norm_num_groups, self.dtype, "conv_norm_out")(shard_batch(x)))
        return _conv(self.out_channels, self.dtype, "conv_out")(x)


class ResnetStack(nn.Module):
    """Residual blocks at one resolution, then an optional resampling ("down" or "up")."""

    channels: int
    num_layers: int
    norm_num_groups: int
    dtype: jnp.dtype
    remat: str
    resample: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = remat(ResnetBlock, self.remat, in_scan=False)
        for layer in range(self.num_layers):
            x = block(self.channels, self.norm_num_groups, self.dtype, name=f"resnets_{layer}")(x)
        if self.resample == "down":
            x = Downsample(self.channels, self.dtype, name="downsamplers_0")(x)
        if self.resample == "up":
            x = Upsample(self.channels, self.dtype, name="upsamplers_0")(x)
        return x


class MidBlock(nn.Module):
    """Residual, attention, residual, at the lowest resolution."""

    norm_num_groups: int
    dtype: jnp.dtype
    remat: str
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        resnet = remat(ResnetBlock, self.remat, in_scan=False)
        attend = remat(AttentionBlock, self.remat, in_scan=False)
        x = resnet(x.shape[-1], self.norm_num_groups, self.dtype, name="resnets_0")(x)
        x = attend(self.norm_num_groups, self.dtype, self.attention_implementation, name="attentions_0")(x)
        return resnet(x.shape[-1], self.norm_num_groups, self.dtype, name="resnets_1")(x)


class ResnetBlock(nn.Module):
    """(Norm, SiLU, convolution) twice, with a shortcut that is 1×1 where the channels change."""

    channels: int
    norm_num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = shard_batch(x)
        h = nn.silu(_group_norm(self.norm_num_groups, self.dtype, "norm1")(x))
        h = _conv(self.channels, self.dtype, "conv1")(h)
        h = nn.silu(_group_norm(self.norm_num_groups, self.dtype, "norm2")(h))
        h = _conv(self.channels, self.dtype, "conv2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all latents of an image, as wide as the channels."""

    norm_num_groups: int
    dtype: jnp.dtype
    attention_implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = shard_batch(x)
        batch, height, width, channels = x.shape
        tokens = _group_norm(self.norm_num_groups, self.dtype, "group_norm")(x).reshape(batch, height * width, channels)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(tokens)[:, :, None, :] for name in ("to_q", "to_k", "to_v")
        )
        attended = attention(query, key, value, implementation=self.attention_implementation)
        return x + nn.Dense(channels, dtype=self.dtype, name="to_out_0")(attended.reshape(x.shape))


class Downsample(nn.Module):
    """Halve the resolution; the convolution is padded on the bottom and the right only."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = ((0, 1), (0, 1))
        return nn.Conv(self.channels, (3, 3), strides=(2, 2), padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _conv(self.channels, self.dtype, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))


def _conv(channels: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    return nn.Conv(channels, (3, 3), padding=1, dtype=dtype, name=name)


def _group_norm(groups: int, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
