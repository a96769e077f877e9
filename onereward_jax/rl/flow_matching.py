"""Flow matching on the base model's data, which holds the policy to them."""

from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.rl.random_draws import PredictionDraw
from onereward_jax.rl.rollout import Flow


def flow_matching_loss(
    flow: Flow,
    whole: Any,
    target: jax.Array,
    draw: PredictionDraw,
    guidance_scale: float,
    weight: jax.Array | None = None,
) -> jax.Array:
    """`mean((v_θ(x_σ) − (ε − x))²)` at σ_t of the samples' t; a float32 scalar.

    Its minimum is the conditional velocity: no true guidance here.

    Args:
      whole: full parameter tree of the transformer.
      target: uint8 (B, H, W, 3).
      guidance_scale: the embedded guidance.
      weight: float32 (B,), of the samples' part in the mean over all of them; None is 1 for each.
    """
    data = flow.encode(target)
    noise = draw.matching_noise(data.shape[1:])
    sigma = flow.schedule[draw.stop][:, None, None]
    noisy = (1 - sigma) * data + sigma * noise
    velocity = flow.velocity(whole, guidance_scale)
    error = velocity(noisy, flow.schedule[draw.stop]) - (noise - data)
    if weight is None:
        return jnp.mean(jnp.square(error))
    return jnp.mean(weight * jnp.square(error).mean(axis=(1, 2)))
