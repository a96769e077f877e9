"""FLUX.1-Fill as a policy family: latents, mask channels, text states and positions of diffusers' FluxFillPipeline."""

import dataclasses
from typing import Any

import jax
import numpy as np

from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.conditioning import Condition, TextStates
from onereward_jax.flow.schedule import Shift, sigmas


@dataclasses.dataclass(frozen=True)
class FluxFill:
    """See `family.PolicyFamily`. A token covers 2×2 latents of C channels, so T = 4C.

    Attributes:
      transformer: `models.flux.FluxTransformer`.
      vae: `models.vae.AutoencoderKL`.
      shift: of the noise schedule.
    """

    transformer: Any
    vae: Any
    shift: Shift = Shift()  # noqa: RUF009 (frozen)

    @property
    def multiple(self) -> int:
        """Pixels of which an image's sides are multiples."""
        return 2 * conditioning.vae_factor(self.vae)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, C) of the latents of an H×W image.

        Raises:
          UserError: a side does not divide into tokens.
        """
        return conditioning.latent_shape(self.vae, height, width)

    def token_shape(self, height: int, width: int) -> tuple[int, int]:
        rows, columns, channels = self.latent_shape(height, width)
        return rows * columns // 4, 4 * channels

    def text_shapes(self, length: int) -> TextStates:
        return TextStates((length, self.transformer.joint_attention_dim), (self.transformer.pooled_projection_dim,))

    def schedule(self, num_steps: int, height: int, width: int) -> np.ndarray:
        return sigmas(num_steps, self.token_shape(height, width)[0], self.shift)

    def condition(
        self,
        vae_params: Any,
        images: jax.Array,
        masks: jax.Array,
        text: TextStates,
        negative: TextStates | None = None,
        noise: jax.Array | None = None,
        tile: int | None = None,
    ) -> Condition:
        """What the transformer reads beside the noisy tokens.

        Args:
          images: (B, H, W, 3), uint8 or in [0, 1]; masks: (B, H, W), 1 = generate.
          negative: of the negative prompts, for true guidance.
          noise, tile: see `conditioning.encode_image`.
        """
        masked_image, mask = conditioning.encode_masked_image(self.vae, vae_params, images, masks, noise, tile)
        return self.joined(masked_image, mask, text, negative)

    def joined(
        self, masked_image: jax.Array, mask: jax.Array, text: TextStates, negative: TextStates | None
    ) -> Condition:
        """The condition of an encoded image: packed latents (B, N, 4C) and packed mask (B, N, 4f²)."""
        return Condition(
            masked_image=masked_image,
            mask=mask,
            prompt_embeds=text.prompt_embeds,
            pooled=text.pooled,
            negative_prompt_embeds=None if negative is None else negative.prompt_embeds,
            negative_pooled=None if negative is None else negative.pooled,
        )

    def velocity(
        self,
        params: Any,
        condition: Condition,
        size: tuple[int, int],
        guidance_scale: float | jax.Array = 1.0,
        true_cfg_scale: float | jax.Array = 1.0,
    ) -> sampler.Velocity:
        ids = conditioning.image_ids(*self.latent_shape(*size)[:2])
        return sampler.velocity_of(self.transformer, params, condition, ids, guidance_scale, true_cfg_scale)

    def branches(self, condition: Condition, true_cfg_scale: float) -> list[tuple[float, Condition]]:
        return sampler.branches(condition, true_cfg_scale)

    def encode(self, vae_params: Any, images: jax.Array) -> jax.Array:
        return conditioning.pack(conditioning.encode_image(self.vae, vae_params, conditioning.to_model_range(images)))

    def decode(self, vae_params: Any, tokens: jax.Array, size: tuple[int, int], tile: int | None = None) -> jax.Array:
        latents = conditioning.unpack(tokens, *self.latent_shape(*size)[:2])
        return conditioning.to_unit_range(conditioning.decode_latents(self.vae, vae_params, latents, tile))
