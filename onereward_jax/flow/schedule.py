"""Noise levels of FLUX: σ = 1 is noise, σ = 0 is data.

Equals diffusers' FlowMatchEulerDiscreteScheduler as its FluxFillPipeline uses it.
"""

import dataclasses
import math
from typing import Annotated, Any

import numpy as np

from onereward_jax.errors import UserError
from onereward_jax.models.fields import OneOf, Range

_Tokens = Annotated[int, Range(1, 100_000_000)]
_Mu = Annotated[float, Range(-100.0, 100.0)]


@dataclasses.dataclass(frozen=True)
class Shift:
    """How the schedule is shifted towards noise; the fields have the names of scheduler_config.json.

    Attributes:
      use_dynamic_shifting: shift by `mu`, which is linear in the number of image tokens; otherwise by `shift`.
      base_image_seq_len, max_image_seq_len, base_shift, max_shift: two points of that line.
      time_shift_type: "exponential" shifts by e^mu, "linear" by mu.
      shift: the constant factor without dynamic shifting.
      shift_terminal: the schedule is stretched to end at this level before 0; None does not stretch it.
    """

    base_image_seq_len: _Tokens = 256
    max_image_seq_len: _Tokens = 4096
    base_shift: _Mu = 0.5
    max_shift: _Mu = 1.15
    use_dynamic_shifting: bool = True
    time_shift_type: Annotated[str, OneOf(("exponential", "linear"))] = "exponential"
    shift: Annotated[float, Range(1e-6, 1e6)] = 3.0
    shift_terminal: Annotated[float | None, Range(1e-6, 0.999)] = None

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        if self.base_image_seq_len == self.max_image_seq_len:
            raise UserError(
                f"base_image_seq_len and max_image_seq_len are both {self.base_image_seq_len}: use the file of the"
                " release"
            )

    def mu(self, num_tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (num_tokens - self.base_image_seq_len)

    def factor(self, num_tokens: int) -> float:
        """Return the factor of `shift_sigma` for samples of this many image tokens.

        Raises:
          UserError: it is no positive number.
        """
        if not self.use_dynamic_shifting:
            return self.shift
        mu = self.mu(num_tokens)
        factor = mu if self.time_shift_type == "linear" else math.exp(mu) if abs(mu) < 700 else 0.0
        if factor <= 0:
            raise UserError(
                f"the schedule can't be shifted by mu = {mu:.4g}, which scheduler_config.json gives for {num_tokens}"
                " image tokens: use the file of the release, or another size"
            )
        return factor

    def stretched(self, levels: np.ndarray) -> np.ndarray:
        """Stretch a schedule without its final 0 to end at `shift_terminal`.

        Raises:
          UserError: it has one level, which can't be both 1 and the last.
        """
        if self.shift_terminal is None:
            return levels
        if len(levels) == 1:
            raise UserError("this model's schedule has a shift_terminal and needs two steps: raise the number of steps")
        return 1 - (1 - levels) * ((1 - self.shift_terminal) / (1 - levels[-1]))


def sigmas(num_steps: int, num_tokens: int, shift: Shift = Shift()) -> np.ndarray:
    """Return the shifted schedule: `linspace(1, 1/n, n)` through `shift_sigma`, then 0.

    Args:
      num_steps: n, the number of Euler steps of a full denoising.
      num_tokens: image tokens (2×2 latent patches) per sample.

    Returns:
      float32 (num_steps + 1,), decreasing from 1 to 0.

    Raises:
      UserError: `num_steps` is less than 1, or the shift does not fit it or the number of tokens.
    """
    if num_steps < 1:
        raise UserError(f"denoising needs at least one step, not {num_steps}: raise the number of steps")
    return shifted(np.linspace(1.0, 1.0 / num_steps, num_steps), num_tokens, shift)


def shifted(levels: np.ndarray, num_tokens: int, shift: Shift) -> np.ndarray:
    """Shift noise levels (n,), falling and above 0, for samples of this many tokens; then 0: float32 (n + 1,).

    Raises:
      UserError: the shift does not fit the levels or the number of tokens.
    """
    levels = shift.stretched(shift_sigma(levels, shift.factor(num_tokens)))
    return np.append(levels, 0.0).astype(np.float32)


def shift_sigma(sigma: Any, factor: float) -> Any:
    """Compute factor / (factor + 1/σ − 1): the larger the factor, the more steps at high noise."""
    return factor / (factor + (1.0 / sigma - 1.0))
