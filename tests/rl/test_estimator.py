"""Estimators of the gradient: the endpoint's value, its two stages, and what is drawn."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.config.schema import RewardLearning
from onereward_jax.errors import UserError
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.conditioning import Condition
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import sigmas
from onereward_jax.rl.accumulation import mean_over_micro_batches
from onereward_jax.rl.estimator import Ascent, Endpoint, Posterior
from onereward_jax.rl.random_draws import PredictionDraw, draw
from onereward_jax.rl.reference_images import Fresh
from onereward_jax.rl.rollout import Flow, Frozen
from onereward_jax.rl.step import RewardFeedback
from onereward_jax.training.state import create_state
from tests.support import tiny_rl
from tests.support.tiny_rl import TOKENS, WIDTH, Linear

NOTHING = Frozen(vae=None, judge=None)
ENDPOINT = RewardLearning(num_steps=4, first_index=1, last_index=2, threshold=1.0, estimator="endpoint")
GUIDED = dataclasses.replace(
    ENDPOINT, rollout_true_cfg_scale=3.0, gradient_guidance_scale=1.5, gradient_true_cfg_scale=2.0
)
ASCENT = dataclasses.replace(GUIDED, estimator="ascent")


class Flat(FluxFill):
    """The family with a linear autoencoder, which compiles in no time: a latent is a square of 2×2 pixels."""

    COLOURS = np.array([[0.5, -0.2, 0.3], [0.1, 0.4, -0.6]], np.float32)

    def condition(self, vae_params, images, masks, text, negative=None):
        negative_states = (None, None) if negative is None else (negative.prompt_embeds, negative.pooled)
        masked = self.encode(vae_params, images)
        mask = conditioning.pack_mask(jnp.asarray(masks, jnp.float32), 2)
        return Condition(masked, mask, text.prompt_embeds, text.pooled, *negative_states)

    def encode(self, vae_params, images):
        squares = conditioning.to_model_range(jnp.asarray(images)).reshape(len(images), 8, 2, 8, 2, 3).mean((2, 4))
        return conditioning.pack(squares @ self.COLOURS.T)

    def decode(self, vae_params, tokens, size):
        squares = conditioning.unpack(tokens, 8, 8) @ self.COLOURS
        return conditioning.to_unit_range(squares.repeat(2, axis=1).repeat(2, axis=2))


class Surrogate(Endpoint):
    """The sum as it stands in the method, differentiated plainly: what the two stages must equal."""

    def image(self, flow, params, rolled):
        scales = self.config.gradient_guidance_scale, self.config.gradient_true_cfg_scale
        velocity = flow.velocity(flow.whole(params), *scales)
        end = rolled.end
        for state, sigma, weight in zip(rolled.states, rolled.sigmas, rolled.weights, strict=True):
            v = velocity(state, sigma)
            end = end + weight[:, None, None] * (v - jax.lax.stop_gradient(v))
        return flow.decode(end)


def bright(params, first, second, questions):
    """A judge that prefers bright images."""
    p_yes = jax.nn.sigmoid((first - second).mean(axis=(1, 2, 3)))
    return jnp.log(jnp.broadcast_to(p_yes[:, None, None], (*questions.lengths.shape, 2)))


def gradient(estimator, transformer=None, params=None, size=4):
    """Of what is trained, by default a number a channel, by an update: (tree of gradients, metrics)."""
    plain, config = optax.sgd(1.0), estimator.config
    transformer, params = transformer or Linear(), params or {"w": jnp.linspace(0.5, 0.9, WIDTH)}
    family = Flat(transformer, tiny_rl.models().vae)
    parts = RewardFeedback(family, Fresh(config), estimator, bright, plain, config, adapter_scale=1.0)
    state = create_state(params, plain, seed=0, reference=True)
    micro_batches = functools.partial(mean_over_micro_batches, functools.partial(parts.gradient, state, NOTHING))
    (found, metrics), _ = jax.jit(micro_batches, static_argnums=1)(tiny_rl.batch(size), config.accumulate)
    return found, metrics


def relative_error(found, expected):
    """Of all numbers together."""
    assert float(optax.global_norm(expected)) > 1e-4
    return float(optax.global_norm(jax.tree.map(jnp.subtract, found, expected)) / optax.global_norm(expected))


@pytest.fixture
def flow():
    family, batch = Flat(Linear(), tiny_rl.models().vae), tiny_rl.batch(3)
    condition = family.condition(None, batch.image, batch.mask, batch.text, batch.negative)
    return Flow(family, NOTHING, condition, (16, 16), jnp.asarray(sigmas(4, TOKENS)), 1.0)


def drawn(config, size=3):
    state = create_state({"w": jnp.float32(0.7)}, optax.sgd(1.0), seed=0)
    return draw(state, tiny_rl.batch(size), (TOKENS, WIDTH), config)


def test_the_value_is_the_whole_denoising_bit_for_bit(flow):
    params, draws, estimator = {"w": jnp.float32(0.7)}, drawn(GUIDED), Endpoint(GUIDED)
    rolled = estimator.rollout(flow, params, draws)
    velocity = flow.velocity(params, GUIDED.rollout_guidance_scale, GUIDED.rollout_true_cfg_scale)
    whole = sampler.denoise(velocity, draws.policy_noise, flow.schedule, 4)
    np.testing.assert_array_equal(estimator.image(flow, params, rolled), flow.decode(whole))
    for k in range(2):
        stops = jnp.argmin(jnp.abs(flow.schedule[:, None] - rolled.sigmas[k]), axis=0)
        np.testing.assert_array_equal(
            rolled.states[k], sampler.denoise(velocity, draws.policy_noise, flow.schedule, stops)
        )


def test_one_step_is_the_posterior():
    common = {"num_steps": 1, "first_index": 0, "last_index": 0, "gradient_steps": 1, "gradient_true_cfg_scale": 4.0}
    endpoint, _ = gradient(Endpoint(dataclasses.replace(ENDPOINT, **common)))
    posterior, _ = gradient(Posterior(dataclasses.replace(ENDPOINT, **common, estimator="posterior")))
    assert relative_error(endpoint, posterior) < 1e-6


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_steps": 1, "rescale": 0.0},
        {"gradient_steps": 2, "judge_shift": 2, "judge_noise": 0.1, "keep_outside": True},
        {"gradient_steps": 3, "gradient_first_index": 1, "flow_matching_weight": 0.5, "accumulate": 2},
        {"gradient_steps": 4, "late_bias": 2.0, "flow_matching_weight": 0.5},
    ],
    ids=str,
)
def test_two_stages_are_the_gradient_of_the_surrogate(change):
    config = dataclasses.replace(GUIDED, **change)
    (two_stage, metrics), (plain, of_plain) = gradient(Endpoint(config)), gradient(Surrogate(config))
    assert relative_error(two_stage, plain) < 1e-6
    chex.assert_trees_all_close(metrics, of_plain, rtol=1e-6)


def test_two_stages_through_the_transformer():
    config, made = dataclasses.replace(GUIDED, gradient_steps=2), tiny_rl.models()
    two_stage, plain = (
        gradient(estimator(config), made.transformer, made.params, size=2)[0] for estimator in (Endpoint, Surrogate)
    )
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(two_stage)) > 0
    assert relative_error(two_stage, plain) < 1e-6


def brightness_loss(image):
    """Falls towards bright images, of every sample by itself; the first gains nothing."""
    return -(jnp.arange(len(image)) * jnp.tanh(image).mean(axis=(1, 2, 3))).mean()


def test_an_ascent_raises_the_reward_inside_its_trust_region(flow):
    params, draws = {"w": jnp.float32(0.7)}, drawn(GUIDED)

    def target_of(steps):
        config = dataclasses.replace(ASCENT, ascent_steps=steps, ascent_step_size=0.02, trust_radius=0.05)
        judged = lambda params: Ascent(config).judged(
            flow, params, Ascent(config).rollout(flow, params, draws), brightness_loss
        )
        found = jax.jit(judged)(params)
        return found, np.sqrt(np.square(found.change).mean(axis=(1, 2)))

    found, sizes = target_of(5)
    np.testing.assert_allclose(sizes, [0, 0.05, 0.05], rtol=1e-5)
    assert brightness_loss(flow.decode(found.predicted + found.change)) < brightness_loss(flow.decode(found.predicted))
    _, sizes = target_of(2)
    np.testing.assert_allclose(sizes, [0, 0.04, 0.04], rtol=0.05)


def test_an_ascent_learns_by_flow_matching_towards_its_target(flow):
    """Whatever the cotangent is, the gradient is that of flow matching; the value is the posterior's."""
    params, draws, estimator = {"w": jnp.linspace(0.5, 0.9, WIDTH)}, drawn(GUIDED), Ascent(ASCENT)
    scales = GUIDED.gradient_guidance_scale, GUIDED.gradient_true_cfg_scale

    @jax.jit
    def both(params):
        target = estimator.judged(flow, params, estimator.rollout(flow, params, draws), brightness_loss)

        def flow_matching(params):
            level = target.sigmas[:, None, None]
            towards = (target.tokens - target.predicted - target.change) / level
            return jnp.square(flow.velocity(params, *scales)(target.tokens, target.sigmas) - towards).mean()

        image = lambda params: estimator.image(flow, params, target)
        return jax.grad(lambda params: 7 * image(params).sum())(params), jax.grad(flow_matching)(params), image(params)

    found, expected, image = both(params)
    assert relative_error(found, expected) < 1e-5
    posterior = Posterior(ASCENT)
    value = posterior.image(flow, params, posterior.rollout(flow, params, draws))
    np.testing.assert_allclose(image, value, atol=1e-5)


def test_an_ascent_without_steps_learns_nothing():
    config = dataclasses.replace(ASCENT, predictions=2, ascent_steps=0)
    still, metrics = gradient(Ascent(config))
    assert float(optax.global_norm(still)) == 0
    assert float(metrics["learning/reward_loss"]) > 0


def test_velocities_drawn_stand_for_those_not_drawn(flow):
    """With ρ = 1 the weights of a sample sum to the range's length, whatever K; with all of them r is 1."""
    params = {"w": jnp.float32(0.7)}
    for count, rescale in ((1, 1.0), (2, 1.0), (3, 0.0), (3, 0.5)):
        config = dataclasses.replace(ENDPOINT, gradient_first_index=1, gradient_steps=count, rescale=rescale)
        rolled = Endpoint(config).rollout(flow, params, drawn(config))
        np.testing.assert_allclose(-rolled.weights.sum(axis=0), flow.schedule[1], rtol=1e-6)
    half = dataclasses.replace(ENDPOINT, gradient_steps=2, rescale=0.0)
    rolled = Endpoint(half).rollout(flow, params, drawn(half))
    steps = jnp.argmin(jnp.abs(flow.schedule[:, None, None] - rolled.sigmas), axis=0)
    np.testing.assert_allclose(rolled.weights, jnp.diff(flow.schedule)[steps], rtol=1e-6)


def test_several_predictions_are_of_one_rollout_each_with_its_own_velocities(flow):
    """As each by itself: one end, other indices."""
    config, params = dataclasses.replace(GUIDED, predictions=2), {"w": jnp.float32(0.7)}
    draws, rollout = drawn(config), jax.jit(functools.partial(Endpoint(config).rollout, flow))
    both, alone = rollout(params, draws), [rollout(params, draws._replace(predictions=[one])) for one in draws[2]]
    chex.assert_trees_all_equal(both, jax.tree.map(lambda *x: jnp.stack(x), *alone))
    assert (both.sigmas[0] != both.sigmas[1]).any()


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_indices_are_drawn_without_repetition_by_their_weights(bias):
    """4,000 samples; the first of each has the weights themselves."""
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(1), i), 6))(jnp.arange(4000))
    steps = np.asarray(PredictionDraw(keys, jnp.zeros(4000, jnp.int32)).gradient_steps(3, 2, 6, bias))
    assert steps.shape == (3, 4000)
    assert (np.diff(np.sort(steps, axis=0), axis=0) > 0).all()
    assert set(steps.ravel()) == {2, 3, 4, 5, 6}
    weights = np.arange(3, 8) ** bias
    np.testing.assert_allclose(np.bincount(steps[0] - 2) / 4000, weights / weights.sum(), atol=0.025)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_steps": 5},
        {"gradient_last_index": 4},
        {"gradient_first_index": 3},
        {"gradient_steps": 4, "policy_steps": 3},
        {"matched_reference": True},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_endpoint(change):
    with pytest.raises(UserError, match=r"endpoint|gradient_"):
        dataclasses.replace(ENDPOINT, **change)


def test_t_need_only_fit_the_policys_steps_where_it_is_used():
    fewer = dataclasses.replace(ENDPOINT, policy_steps=2)
    assert fewer.last_index == 2
    for change in ({"flow_matching_weight": 0.5}, {"estimator": "posterior"}):
        with pytest.raises(UserError, match=r"rl\.last_index \(2\) must be below rl\.policy_steps \(2\)"):
            dataclasses.replace(fewer, **change)
