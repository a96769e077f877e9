"""The flow of one batch: its condition, velocities of any parameters under it, and the way from latents to images."""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.schedule import Shift, sigmas
from onereward_jax.models import lora
from onereward_jax.rl.batch import Batch


@flax.struct.dataclass
class Frozen:
    """Parameters that the update reads and never changes; with LoRA, the transformer that the adapters are of."""

    vae: Any
    judge: Any
    base: Any | None = None


class Grid(NamedTuple):
    """What images of one size share.

    Attributes:
      size: height and width of the latents.
      ids: (N, 3), rope positions of the image tokens.
      schedule: (num_steps + 1,) noise levels σ, falling to 0.
    """

    size: tuple[int, int]
    ids: np.ndarray
    schedule: jax.Array


@dataclasses.dataclass(frozen=True)
class Flow:
    """What every rollout of a batch shares. B samples, N tokens, C latent channels.

    Attributes:
      models: see `FlowModels`.
      frozen: parameters beside those of policy and reference.
      condition: of the batch, without gradient.
    """

    models: "FlowModels"
    frozen: Frozen
    condition: conditioning.Condition
    grid: Grid

    @property
    def schedule(self) -> jax.Array:
        return self.grid.schedule

    def whole(self, params: Any) -> Any:
        """Full parameter tree of the transformer: base plus adapter, or without LoRA the parameters themselves."""
        return params if self.frozen.base is None else lora.attach(self.frozen.base, params, self.models.adapter_scale)

    def velocity(self, whole: Any, guidance_scale: float, true_cfg_scale: float = 1.0) -> sampler.Velocity:
        """v of a full parameter tree under the batch's condition; scales as of `sampler.velocity_of`."""
        transformer, ids = self.models.transformer, self.grid.ids
        return sampler.velocity_of(transformer, whole, self.condition, ids, guidance_scale, true_cfg_scale)

    def encode(self, images: jax.Array) -> jax.Array:
        """uint8 images (B, H, W, 3) -> packed latents (B, N, 4C)."""
        images = conditioning.to_model_range(images)
        return conditioning.pack(conditioning.encode_image(self.models.vae, self.frozen.vae, images))

    def decode(self, tokens: jax.Array) -> jax.Array:
        """Packed latents (B, N, 4C) -> images (B, H, W, 3), unclipped; what belongs to an image is in [0, 1]."""
        latents = conditioning.unpack(tokens, *self.grid.size)
        images = conditioning.decode_latents(self.models.vae, self.frozen.vae, latents)
        return conditioning.to_unit_range(images)


@dataclasses.dataclass(frozen=True)
class FlowModels:
    """Modules of the policy, and what is fixed about its flow.

    Attributes:
      transformer, vae: modules.
      num_steps: Euler steps of a full denoising.
      shift: of the noise schedule.
      adapter_scale: of the adapters, where the parameters are some.
    """

    transformer: Any
    vae: Any
    num_steps: int
    shift: Shift
    adapter_scale: float

    def grid(self, batch: Batch) -> Grid:
        factor = conditioning.vae_factor(self.vae)
        _, height, width = batch.mask.shape
        size = height // factor, width // factor
        ids = conditioning.image_ids(*size)
        return Grid(size, ids, jnp.asarray(sigmas(self.num_steps, len(ids), self.shift)))

    def sample_shape(self, grid: Grid) -> tuple[int, int]:
        """(N, 4C) of a sample's packed latents."""
        return len(grid.ids), 4 * self.vae.latent_channels

    def under(self, frozen: Frozen, batch: Batch, grid: Grid) -> Flow:
        """The flow under a batch's condition."""
        masked_image, mask = conditioning.encode_masked_image(self.vae, frozen.vae, batch.image, batch.mask)
        condition = conditioning.Condition(
            masked_image=masked_image,
            mask=mask,
            prompt_embeds=batch.text.prompt_embeds,
            pooled=batch.text.pooled,
            negative_prompt_embeds=None if batch.negative is None else batch.negative.prompt_embeds,
            negative_pooled=None if batch.negative is None else batch.negative.pooled,
        )
        return Flow(self, frozen, jax.lax.stop_gradient(condition), grid)
