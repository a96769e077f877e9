"""The objective of reward feedback learning (Eq. 5)."""

import jax
import jax.numpy as jnp


def reward_loss(p_yes: jax.Array, weights: jax.Array, threshold: float) -> jax.Array:
    """`J_e = max(0, λ − P(Yes | x_θ, x_ref, q_e))`, averaged over a sample's dimensions, then over samples.

    Args:
      p_yes: (B, D) judge's probabilities that the policy's image beats the reference's.
      weights: (B, D), 1 where the sample's task has the dimension, 0 on padding.
      threshold: λ; a dimension already judged above it gives no gradient.

    Returns:
      float32 scalar.
    """
    hinge = jnp.maximum(0.0, threshold - p_yes)
    per_sample = (hinge * weights).sum(axis=-1) / jnp.maximum(weights.sum(axis=-1), 1e-8)
    return per_sample.mean()
