"""What every rollout of a batch shares: the condition, the noise schedule, velocities of any parameters, decoding."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.flow import sampler
from onereward_jax.flow.family import PolicyFamily
from onereward_jax.models import lora


@flax.struct.dataclass
class Frozen:
    """Parameters that the update reads and never changes; with LoRA, the transformer that the adapters are of."""

    vae: Any
    judge: Any
    base: Any | None = None


@dataclasses.dataclass(frozen=True)
class Flow:
    """B samples of H×W pixels, N tokens of T channels each.

    Attributes:
      family: of the policy.
      frozen: parameters beside those of policy and reference.
      condition: of the batch, without gradient.
      size: (H, W).
      schedule: (n + 1,) noise levels σ of a rollout of n steps, falling to 0.
      adapter_scale: of the adapters, where parameters are some.
    """

    family: PolicyFamily
    frozen: Frozen
    condition: Any
    size: tuple[int, int]
    schedule: jax.Array
    adapter_scale: float

    def whole(self, params: Any) -> Any:
        """Full parameter tree of the transformer: base plus adapter, or without LoRA the parameters themselves."""
        return params if self.frozen.base is None else lora.attach(self.frozen.base, params, self.adapter_scale)

    def velocity(self, whole: Any, guidance_scale: float, true_cfg_scale: float = 1.0) -> sampler.Velocity:
        """v of a full parameter tree under the batch's condition; scales as in `sampler.velocity_of`."""
        return self.family.velocity(whole, self.condition, self.size, guidance_scale, true_cfg_scale)

    def branches(self, true_cfg_scale: float) -> tuple[jax.Array, Any]:
        """Shares (G,) and conditions, stacked, of the velocities without guidance whose weighted sum is the guided
        one."""
        shares, conditions = zip(*self.family.branches(self.condition, true_cfg_scale), strict=True)
        return jnp.asarray(shares, jnp.float32), jax.tree.map(lambda *x: jnp.stack(x), *conditions)

    def encode(self, images: jax.Array) -> jax.Array:
        """uint8 images (B, H, W, 3) -> tokens (B, N, T)."""
        return self.family.encode(self.frozen.vae, images)

    def decode(self, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N, T) -> images (B, H, W, 3) in [0, 1], not clipped."""
        return self.family.decode(self.frozen.vae, tokens, self.size)
