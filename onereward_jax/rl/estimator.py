"""Estimators: how the policy's image gets its gradient.

An estimator rolls the policy out without a gradient, once, and makes of what it keeps images whose gradients reach the
parameters. The update knows no more of it than `Estimator`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardLearning
from onereward_jax.flow import sampler
from onereward_jax.rl.accumulation import sum_over
from onereward_jax.rl.profile_scopes import DECODING, PREDICTION, ROLLOUT
from onereward_jax.rl.random_draws import Draws, PredictionDraw
from onereward_jax.rl.rollout import Flow


class Rolled(Protocol):
    """What an estimator keeps of a rollout for one image.

    Attributes:
      draw: of the image.
      sigmas: noise levels at which velocities get a gradient, (B,) or (K, B).
    """

    draw: PredictionDraw
    sigmas: jax.Array


class Estimator(Protocol):
    def rollout(self, flow: Flow, params: Any, draws: Draws) -> Rolled:
        """Denoise from ε2 as far as the images need it; the arrays of several predictions are stacked."""

    def image(self, flow: Flow, params: Any, rolled: Any) -> jax.Array:
        """x_θ of one prediction, float32 (B, H, W, 3), unclipped; differentiable in what is trained."""


def estimator_of(config: RewardLearning) -> Estimator:
    """The estimator that a configuration asks for."""
    return Endpoint(config) if config.estimator == "endpoint" else Posterior(config)


def _stacked(draws: Sequence[PredictionDraw]) -> PredictionDraw:
    return jax.tree.map(lambda *x: jnp.stack(x), *draws)


# ------------------------------------------------------------------------------------------------ the paper's estimator


@flax.struct.dataclass
class Stop:
    """Where a rollout stops for a prediction: at the draw's index t.

    Attributes:
      tokens: (B, N, T), x_t.
      sigmas: (B,), σ_t.
    """

    draw: PredictionDraw
    tokens: jax.Array
    sigmas: jax.Array


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
                tokens = sampler.denoise(velocity, draws.policy_noise, flow.schedule, draw.stop)
            else:
                draw = _stacked(draws.predictions)
                tokens = sampler.denoise_past(velocity, draws.policy_noise, flow.schedule, draw.stop)
            return Stop(draw, tokens, flow.schedule[draw.stop])

    def image(self, flow: Flow, params: Any, rolled: Stop) -> jax.Array:
        scales = self.config.gradient_guidance_scale, self.config.gradient_true_cfg_scale
        velocity = flow.velocity(flow.whole(params), *scales)
        with jax.named_scope(PREDICTION):
            predicted = sampler.predict_data(velocity, rolled.tokens, rolled.sigmas)
        with jax.named_scope(DECODING):
            return flow.decode(predicted)


# ---------------------------------------------------------------------------------------- the end of the whole rollout


@flax.struct.dataclass
class Path:
    """A whole rollout: its end, and for a prediction K of the states on the way.

    Attributes:
      end: (B, N, T), x_n.
      states: (K, B, N, T), x_k.
      sigmas: (K, B), σ_k.
      weights: (K, B), r·Δ_k.
    """

    draw: PredictionDraw
    end: jax.Array
    states: jax.Array
    sigmas: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The judge sees the full denoising x_n, as sharp as the reference; K velocities on the way get the gradient.

    Of a sample, K indices A of [k1, k2] are drawn without repetition, index i with a weight of (i + 1)^b, and the image
    is `x_n + r·Σ_{k∈A} Δ_k·(v_θ(x_k, σ_k) − sg[v_θ(x_k, σ_k)])`, where `Δ_k = σ_{k+1} − σ_k`, sg stops the gradient and
    `r = 1 + ρ·(Σ_{i∈[k1,k2]} |Δ_i| / Σ_{k∈A} |Δ_k| − 1)`: its value is x_n, and the Jacobians between steps are left
    out (FlowBP-Sparse, arXiv 2606.11075).

    The gradient is taken in two stages: the judge's at x_n first, then one vector–Jacobian product for every velocity
    and branch of guidance, one after the other. Judge and transformer never share a backward pass, and the memory is
    that of one velocity and, with several, of one more gradient.
    """

    config: RewardLearning

    def rollout(self, flow: Flow, params: Any, draws: Draws) -> Path:
        config = self.config
        scales = config.rollout_guidance_scale, config.rollout_true_cfg_scale
        first, last = config.gradient_range
        # Of every prediction (P, K, B); all are of one rollout.
        steps = jnp.stack(
            [draw.gradient_steps(config.gradient_steps, first, last, config.late_bias) for draw in draws.predictions]
        )
        lengths = jnp.abs(jnp.diff(flow.schedule))
        rescaled = lengths[first : last + 1].sum() / lengths[steps].sum(axis=1, keepdims=True)
        weights = -lengths[steps] * (1 + config.rescale * (rescaled - 1))
        stops = steps.reshape(-1, steps.shape[-1])
        stops = jnp.concatenate([stops, jnp.full_like(stops[:1], len(lengths))])
        with jax.named_scope(ROLLOUT):
            velocity = flow.velocity(flow.whole(params), *scales)
            states = sampler.denoise_past(velocity, draws.policy_noise, flow.schedule, stops)
        end = jnp.broadcast_to(states[-1], (len(steps), *states[-1].shape))
        states = states[:-1].reshape(*steps.shape, *states.shape[2:])
        paths = Path(_stacked(draws.predictions), end, states, flow.schedule[steps], weights)
        return paths if len(steps) > 1 else jax.tree.map(lambda x: x[0], paths)

    def image(self, flow: Flow, params: Any, rolled: Path) -> jax.Array:
        @jax.custom_vjp
        def end(params: Any) -> jax.Array:
            del params
            return rolled.end

        end.defvjp(
            lambda params: (rolled.end, params),
            lambda params, cotangent: (self._gradient(flow, params, rolled, cotangent),),
        )
        with jax.named_scope(DECODING):
            return flow.decode(end(params))

    def _gradient(self, flow: Flow, params: Any, path: Path, cotangent: jax.Array) -> Any:
        """Pull r·Δ_k·cotangent, (B, N, T), back through every v_θ(x_k, σ_k) and sum: a tree like `params`."""
        guidance_scale = self.config.gradient_guidance_scale
        shares, conditions = flow.branches(self.config.gradient_true_cfg_scale)
        steps = path.states, path.sigmas, path.weights

        def pulled(number: jax.Array) -> Any:
            state, sigma, weight = jax.tree.map(lambda x: x[number // len(shares)], steps)
            share, condition = jax.tree.map(lambda x: x[number % len(shares)], (shares, conditions))
            under = dataclasses.replace(flow, condition=condition)
            _, pull = jax.vjp(lambda params: under.velocity(flow.whole(params), guidance_scale)(state, sigma), params)
            return pull(share * weight[:, None, None] * cotangent)[0]

        with jax.named_scope(PREDICTION):
            return sum_over(pulled, jnp.arange(len(path.sigmas) * len(shares)))
