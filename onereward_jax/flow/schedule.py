"""Noise levels of FLUX: σ = 1 is noise, σ = 0 is data.

Equals diffusers' FlowMatchEulerDiscreteScheduler with dynamic exponential shifting, as configured by
its FluxFillPipeline.
"""

import dataclasses
import math

import numpy as np

from onereward_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shift:
    """Resolution-dependent shift: `mu` is linear in the number of image tokens (scheduler_config.json)."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def mu(self, num_tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (num_tokens - self.base_image_seq_len)


def sigmas(num_steps: int, num_tokens: int, shift: Shift = Shift()) -> np.ndarray:
    """Return the shifted schedule: `linspace(1, 1/n, n)` through `shift_sigma`, then 0.

    Args:
      num_steps: n, the number of Euler steps of a full denoising.
      num_tokens: image tokens (2×2 latent patches) per sample.

    Returns:
      float32 (num_steps + 1,), decreasing from 1 to 0.

    Raises:
      UserError: `num_steps` is less than 1.
    """
    if num_steps < 1:
        raise UserError(f"denoising needs at least one step, not {num_steps}: raise the number of steps")
    uniform = np.linspace(1.0, 1.0 / num_steps, num_steps)
    return np.append(shift_sigma(uniform, shift.mu(num_tokens)), 0.0).astype(np.float32)


def shift_sigma(sigma, mu: float):
    """Compute e^mu / (e^mu + 1/σ − 1): the larger the image, the more steps at high noise."""
    return math.exp(mu) / (math.exp(mu) + (1.0 / sigma - 1.0))
