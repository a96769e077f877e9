"""Estimators: how the policy's image gets its gradient.

An estimator rolls the policy out without a gradient, once, and makes of what it keeps K images whose gradients reach
the parameters. The update knows no more of it than `Estimator`.
"""

import dataclasses
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardLearning
from onereward_jax.flow import sampler
from onereward_jax.rl.profile_scopes import DECODING, PREDICTION, ROLLOUT
from onereward_jax.rl.random_draws import Draws, PredictionDraw
from onereward_jax.rl.rollout import Flow


@flax.struct.dataclass
class Stop:
    """Where a rollout stops for a prediction.

    Attributes:
      draw: with the index t.
      tokens: (B, N, 4C), x_t.
    """

    draw: PredictionDraw
    tokens: jax.Array


class Estimator(Protocol):
    def rollout(self, flow: Flow, params: Any, draws: Draws) -> Stop:
        """Denoises from ε2 as far as the images need it; the arrays of K > 1 predictions are stacked."""

    def image(self, flow: Flow, whole: Any, stop: Stop) -> jax.Array:
        """x_θ of one prediction, float32 (B, H, W, 3), unclipped; differentiable in the full parameter tree."""


@dataclasses.dataclass(frozen=True)
class Posterior:
    """`x̂ = x_t − σ_t·v_θ(x_t, σ_t)`, with the gradient through that one velocity (the paper; ReFL)."""

    config: RewardLearning

    def rollout(self, flow: Flow, params: Any, draws: Draws) -> Stop:
        scales = self.config.rollout_guidance_scale, self.config.rollout_true_cfg_scale
        with jax.named_scope(ROLLOUT):
            velocity = flow.velocity(flow.whole(params), *scales)
            if len(draws.predictions) == 1:
                (draw,) = draws.predictions
                return Stop(draw, sampler.denoise(velocity, draws.policy_noise, flow.schedule, draw.stop))
            draw = jax.tree.map(lambda *x: jnp.stack(x), *draws.predictions)
            return Stop(draw, sampler.denoise_past(velocity, draws.policy_noise, flow.schedule, draw.stop))

    def image(self, flow: Flow, whole: Any, stop: Stop) -> jax.Array:
        scales = self.config.gradient_guidance_scale, self.config.gradient_true_cfg_scale
        velocity = flow.velocity(whole, *scales)
        with jax.named_scope(PREDICTION):
            predicted = sampler.predict_data(velocity, stop.tokens, flow.schedule[stop.draw.stop])
        with jax.named_scope(DECODING):
            return flow.decode(predicted)
