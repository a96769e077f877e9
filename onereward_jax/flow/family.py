"""What depends on which image model the policy is: the interface of a policy family.

Reward feedback learning, the pipeline and the losses know a family by these methods alone. `flux_fill.FluxFill` is the
first; another one is a class beside it, its modules in `models/` and its names in `weights/names/`.
"""

from typing import Any, Protocol

import jax
import numpy as np

from onereward_jax.flow.sampler import Velocity


class PolicyFamily(Protocol):
    """B samples of H×W pixels; N image tokens of T channels each."""

    @property
    def transformer(self) -> Any:
        """The module whose parameters are trained."""

    @property
    def vae(self) -> Any:
        """The autoencoder's module."""

    def token_shape(self, height: int, width: int) -> tuple[int, int]:
        """(N, T) of an H×W image.

        Raises:
          UserError: the sides do not divide into tokens.
        """

    def text_shapes(self, length: int) -> Any:
        """Text states of one prompt of `length` tokens, their shapes as tuples in place of arrays."""

    def schedule(self, num_steps: int, height: int, width: int) -> np.ndarray:
        """Noise levels σ, float32 (num_steps + 1,), falling from 1 to 0."""

    def condition(self, vae_params: Any, images: jax.Array, masks: jax.Array, text: Any, negative: Any = None) -> Any:
        """Everything a velocity depends on besides the noisy tokens; masks are 1 where to generate."""

    def velocity(
        self, params: Any, condition: Any, size: tuple[int, int], guidance_scale: Any = 1.0, true_cfg_scale: Any = 1.0
    ) -> Velocity:
        """v of one parameter set under a condition; `size` is (H, W). Scales as in `sampler.velocity_of`."""

    def branches(self, condition: Any, true_cfg_scale: float) -> list[tuple[float, Any]]:
        """(share, condition): velocities under these, each times its share, sum up to v under true guidance."""

    def encode(self, vae_params: Any, images: jax.Array) -> jax.Array:
        """Images (B, H, W, 3), uint8 or in [0, 1] -> tokens (B, N, T)."""

    def decode(self, vae_params: Any, tokens: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Tokens (B, N, T) -> images (B, H, W, 3); values outside [0, 1] are not clipped."""
