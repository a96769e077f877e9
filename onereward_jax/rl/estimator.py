"""Estimators: how the policy's image gets its gradient.

An estimator rolls the policy out without a gradient, once, and makes of what it keeps images whose gradients reach the
parameters; between the two it may ask the judge. The update knows no more of it than `Estimator`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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

# Eq. 5 of unclipped images (B, H, W, 3) of the policy: a scalar.
ImageLoss = Callable[[jax.Array], jax.Array]


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

    def judged(self, flow: Flow, params: Any, rolled: Any, loss: ImageLoss) -> Rolled:
        """What `image` takes of one prediction, after the judge was asked, if it is; without a gradient."""

    def image(self, flow: Flow, params: Any, rolled: Any) -> jax.Array:
        """x_θ of one prediction, float32 (B, H, W, 3), unclipped; differentiable in what is trained."""


def estimator_of(config: RewardLearning) -> Estimator:
    """The estimator that a configuration asks for."""
    known: dict[str, Callable[[RewardLearning], Estimator]]
    known = {"posterior": Posterior, "endpoint": Endpoint, "ascent": Ascent}
    return known[config.estimator](config)


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

    def judged(self, flow: Flow, params: Any, rolled: Any, loss: ImageLoss) -> Any:
        del flow, params, loss
        return rolled

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

    def judged(self, flow: Flow, params: Any, rolled: Path, loss: ImageLoss) -> Path:
        del flow, params, loss
        return rolled

    def image(self, flow: Flow, params: Any, rolled: Path) -> jax.Array:
        steps = rolled.states, rolled.sigmas, rolled.weights
        through = lambda params, cotangent: _through_velocities(self.config, flow, params, *steps, cotangent)
        end = _with_gradient(rolled.end, params, through)
        with jax.named_scope(DECODING):
            return flow.decode(end)


def _with_gradient(value: jax.Array, params: Any, gradient: Callable[[Any, jax.Array], Any]) -> jax.Array:
    """The value, whose cotangent reaches `params` by `gradient`: (params, cotangent) -> a tree like `params`."""

    @jax.custom_vjp
    def of(params: Any) -> jax.Array:
        del params
        return value

    of.defvjp(lambda params: (value, params), lambda params, cotangent: (gradient(params, cotangent),))
    return of(params)


def _through_velocities(
    config: RewardLearning,
    flow: Flow,
    params: Any,
    states: jax.Array,
    sigmas: jax.Array,
    weights: jax.Array,
    cotangent: jax.Array,
) -> Any:
    """Pull weight·cotangent, (B, N, T), back through every v_θ(x_k, σ_k) and sum: a tree like `params`.

    Args:
      states, sigmas, weights: (K, B, N, T), (K, B), (K, B).
    """
    guidance_scale = config.gradient_guidance_scale
    shares, conditions = flow.branches(config.gradient_true_cfg_scale)

    def pulled(number: jax.Array) -> Any:
        state, sigma, weight = (x[number // len(shares)] for x in (states, sigmas, weights))
        share, condition = jax.tree.map(lambda x: x[number % len(shares)], (shares, conditions))
        under = dataclasses.replace(flow, condition=condition)
        _, pull = jax.vjp(lambda params: under.velocity(flow.whole(params), guidance_scale)(state, sigma), params)
        return pull(share * weight[:, None, None] * cotangent)[0]

    with jax.named_scope(PREDICTION):
        return sum_over(pulled, jnp.arange(len(sigmas) * len(shares)))


# --------------------------------------------------------------------------------------- up the reward, then towards it


@flax.struct.dataclass
class Target:
    """A prediction of the posterior, and where flow matching draws it.

    Attributes:
      tokens: (B, N, T), x_t; sigmas: (B,), σ_t.
      predicted: (B, N, T), x̂.
      change: (B, N, T), x* − x̂.
    """

    draw: PredictionDraw
    tokens: jax.Array
    sigmas: jax.Array
    predicted: jax.Array
    change: jax.Array


@dataclasses.dataclass(frozen=True)
class Ascent:
    """Flow matching towards the posterior's prediction as the reward would have it (after DiffusionOPSD, 2026).

    x* is x̂ after `ascent_steps` steps down the loss, each normalised to a root mean square of `ascent_step_size`, and
    held within `trust_radius` of x̂. The gradient is that of `mean((v_θ(x_t, σ_t) − v*)²)` with v* = (x_t − x*)/σ_t: the
    judge's graph ends before the policy's begins, and its gradient's length does not matter. The value is still x̂.
    """

    config: RewardLearning

    def rollout(self, flow: Flow, params: Any, draws: Draws) -> Stop:
        return Posterior(self.config).rollout(flow, params, draws)

    def judged(self, flow: Flow, params: Any, rolled: Stop, loss: ImageLoss) -> Target:
        config = self.config
        scales = config.gradient_guidance_scale, config.gradient_true_cfg_scale
        with jax.named_scope(PREDICTION):
            predicted = sampler.predict_data(flow.velocity(flow.whole(params), *scales), rolled.tokens, rolled.sigmas)
        downhill = jax.grad(functools.partial(_decoded, flow, loss))

        def step(change: jax.Array, _: None) -> tuple[jax.Array, None]:
            gradient = downhill(predicted + change)
            size = _root_mean_square(gradient)
            change -= jnp.where(size > 0, config.ascent_step_size / jnp.where(size > 0, size, 1.0), 0.0) * gradient
            return change * jnp.minimum(1.0, config.trust_radius / jnp.maximum(_root_mean_square(change), 1e-12)), None

        change, _ = jax.lax.scan(step, jnp.zeros_like(predicted), length=config.ascent_steps)
        return Target(rolled.draw, rolled.tokens, rolled.sigmas, predicted, change)

    def image(self, flow: Flow, params: Any, rolled: Target) -> jax.Array:
        weights = 2 / (rolled.sigmas * rolled.change.size)
        steps = rolled.tokens[None], rolled.sigmas[None], weights[None]
        towards = lambda params, _: _through_velocities(self.config, flow, params, *steps, rolled.change)
        with jax.named_scope(DECODING):
            return flow.decode(_with_gradient(rolled.predicted, params, towards))


def _decoded(flow: Flow, loss: ImageLoss, tokens: jax.Array) -> jax.Array:
    """The loss of what tokens decode to."""
    with jax.named_scope(DECODING):
        image = flow.decode(tokens)
    return loss(image)


def _root_mean_square(tokens: jax.Array) -> jax.Array:
    """Of each sample, (B, 1, 1)."""
    return jnp.sqrt(jnp.square(tokens).mean(axis=(1, 2), keepdims=True))
