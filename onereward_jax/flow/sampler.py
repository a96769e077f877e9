"""Rectified flow: velocities, guidance, Euler steps, one-step prediction (METHOD: `x_σ = (1−σ)·x + σ·ε`).

Latents are packed tokens (B, N, 4C) throughout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError
from onereward_jax.flow.conditioning import Condition

# (tokens (B, N, 4C), sigma (B,)) -> velocity (B, N, 4C)
Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def velocity_of(
    transformer: Any,
    params,
    condition: Condition,
    ids: np.ndarray,
    guidance_scale: float | jax.Array = 1.0,
    true_cfg_scale: float | jax.Array = 1.0,
) -> Velocity:
    """Return the velocity field of one parameter set under one condition.

    Args:
      transformer: `models.flux.FluxTransformer`.
      ids: rope positions of the image tokens, (N, 3).
      guidance_scale: scale of the embedded (distilled) guidance, one for all samples or (B,) one for each.
      true_cfg_scale: s in `v = v_neg + s·(v_pos − v_neg)`, likewise; the number 1 skips the negative branch, a traced
        scale never does. Both branches run in one batch, with the same embedded guidance.

    Raises:
      UserError: true guidance is on, but the condition has no negative prompt.
    """

    def forward(tokens, sigma, condition):
        batch, length = condition.prompt_embeds.shape[:2]
        return transformer.apply(
            {"params": params},
            jnp.concatenate([tokens, condition.masked_image, condition.mask], axis=-1),
            condition.prompt_embeds,
            condition.pooled,
            sigma,
            ids,
            np.zeros((length, 3), np.float32),
            jnp.full((batch,), _of_rows(guidance_scale, batch), jnp.float32),
        ).astype(jnp.float32)

    if not isinstance(true_cfg_scale, jax.Array) and true_cfg_scale == 1.0:
        return lambda tokens, sigma: forward(tokens, sigma, condition)
    doubled = jax.tree.map(_interleave, *_negative_and_positive(condition))
    scale = jnp.expand_dims(true_cfg_scale, (1, 2)) if jnp.ndim(true_cfg_scale) else true_cfg_scale

    def guided(tokens, sigma):
        both = forward(_interleave(tokens, tokens), _interleave(sigma, sigma), doubled)
        negative, positive = both[::2], both[1::2]
        return negative + scale * (positive - negative)

    return guided


def branches(condition: Condition, true_cfg_scale: float) -> list[tuple[float, Condition]]:
    """List (share, condition): velocities under these, each times its share, sum up to v under true guidance.

    Raises:
      UserError: true guidance is on, but the condition has no negative prompt.
    """
    if true_cfg_scale == 1.0:
        return [(1.0, dataclasses.replace(condition, negative_prompt_embeds=None, negative_pooled=None))]
    return list(zip((1.0 - true_cfg_scale, true_cfg_scale), _negative_and_positive(condition), strict=True))


def _negative_and_positive(condition: Condition) -> tuple[Condition, Condition]:
    """The conditions of both branches of true guidance.

    Raises:
      UserError: there is no negative prompt.
    """
    if condition.negative_prompt_embeds is None:
        raise UserError("true classifier-free guidance needs a negative prompt: encode one, or set true_cfg_scale=1")
    assert condition.negative_pooled is not None, "a negative prompt needs both parts"
    positive = dataclasses.replace(condition, negative_prompt_embeds=None, negative_pooled=None)
    negative = dataclasses.replace(
        positive, prompt_embeds=condition.negative_prompt_embeds, pooled=condition.negative_pooled
    )
    return negative, positive


def _of_rows(scale: float | jax.Array, rows: int) -> float | jax.Array:
    """A scale of each sample for the rows of a batch, in which a sample's branches are neighbours."""
    return jnp.repeat(jnp.asarray(scale), rows // jnp.size(scale)) if jnp.ndim(scale) else scale


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Interleave two batches, so that a sample's two branches are neighbours and stay on one device."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def denoise(velocity: Velocity, tokens: jax.Array, sigmas: jax.Array, stop: int | jax.Array) -> jax.Array:
    """Take Euler steps from index 0 of the schedule to `stop`: `x ← x + (σ' − σ)·v`.

    Args:
      tokens: (B, N, 4C) at σ = sigmas[0].
      sigmas: (n + 1,) decreasing to 0, or (n + 1, B) a schedule for each sample, the shorter ones with any values
        after their 0.
      stop: index at which to stop, one integer for all samples or (B,) one for each. It may be traced, so
        one compiled program serves every index; samples past their index stay unchanged.
    """
    batch = tokens.shape[0]
    sigmas = jnp.asarray(sigmas)
    stop = jnp.broadcast_to(jnp.asarray(stop, jnp.int32), (batch,))

    def step(i, tokens):
        sigma = jnp.full((batch,), sigmas[i])
        delta = jnp.where(i < stop, sigmas[i + 1] - sigmas[i], 0.0)
        return tokens + delta[:, None, None] * velocity(tokens, sigma)

    return jax.lax.fori_loop(0, jnp.max(stop), step, tokens)


def denoise_past(velocity: Velocity, tokens: jax.Array, sigmas: jax.Array, stops: jax.Array) -> jax.Array:
    """Take the Euler steps of `denoise` once, up to the last of several indices.

    Args:
      stops: (K, B), the indices of each sample.

    Returns:
      (K, B, N, 4C), the tokens at each index.
    """
    sigmas = jnp.asarray(sigmas)

    def step(i, carry):
        tokens, kept = carry
        sigma = jnp.full((tokens.shape[0],), sigmas[i])
        tokens = tokens + (sigmas[i + 1] - sigmas[i]) * velocity(tokens, sigma)
        return tokens, jnp.where((i < stops)[..., None, None], tokens, kept)

    start = tokens, jnp.broadcast_to(tokens, (*stops.shape, *tokens.shape[1:]))
    return jax.lax.fori_loop(0, jnp.max(stops), step, start)[1]


def predict_data(velocity: Velocity, tokens: jax.Array, sigma: jax.Array) -> jax.Array:
    """Predict the data in one step, `x̂ = x − σ·v`, from (B, N, 4C) at noise levels sigma (B,)."""
    return tokens - sigma[:, None, None] * velocity(tokens, sigma)
