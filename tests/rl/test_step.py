"""Algorithms 1 and 2 as one pure step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax import tree
from onereward_jax.config.schema import RewardLearning
from onereward_jax.errors import UserError
from onereward_jax.flow import conditioning
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import sigmas
from onereward_jax.judge.scorer import one_dimension_a_call
from onereward_jax.rl.batch import MatchingTargets
from onereward_jax.rl.reward_loss import reward_loss
from onereward_jax.rl.step import make_step
from onereward_jax.tasks import CELLS
from onereward_jax.training.state import create_state
from tests.support import tiny_rl
from tests.support.tiny_rl import TOKENS, WIDTH, Linear


def distance(a, b) -> float:
    return float(optax.global_norm(jax.tree.map(jnp.subtract, a, b)))


def test_objective_is_a_hinge_averaged_over_a_samples_dimensions():
    p_yes = jnp.array([[0.2, 0.9, 0.5], [0.7, 0.0, 0.0]])
    weights = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # ((.8 − .2) + 0)/2 and .8 − .7, averaged over the two samples
    assert float(reward_loss(p_yes, weights, 0.8)) == pytest.approx((0.3 + 0.1) / 2)
    gradient = jax.grad(lambda p: reward_loss(p, weights, 0.8))(p_yes)
    np.testing.assert_allclose(gradient, [[-0.25, 0, 0], [-0.5, 0, 0]])


@pytest.mark.parametrize("algorithm", ["fixed", "dynamic"])
def test_update_moves_policy_and_ema_and_nothing_else(algorithm):
    before = tiny_rl.state(algorithm)
    after, metrics = tiny_rl.step()(before, tiny_rl.models().frozen, tiny_rl.batch(4))
    assert int(after.step) == 1
    assert float(metrics["learning/grad_norm"]) > 0
    moved = distance(after.params, before.params)
    assert moved > 0
    # ema ← .9·ema + .1·θ, and the two began alike
    averaged = jax.tree.map(lambda ema, params: 0.9 * ema + 0.1 * params, before.ema, after.params)
    chex.assert_trees_all_close(after.ema, averaged, rtol=1e-5, atol=1e-8)
    if algorithm == "fixed":
        chex.assert_trees_all_equal(after.reference, before.reference)
    else:
        assert after.reference is None
    assert (jax.random.key_data(after.key) == jax.random.key_data(before.key)).all()


def test_algorithm_decides_which_parameters_make_the_reference():
    """From equal parameters both algorithms take the same step; when EMA and reference part, they part too."""
    batch, frozen, step = tiny_rl.batch(4), tiny_rl.models().frozen, tiny_rl.step()
    fixed, fixed_metrics = step(tiny_rl.state("fixed"), frozen, batch)
    _, dynamic_metrics = step(tiny_rl.state("dynamic"), frozen, batch)
    assert float(fixed_metrics["learning/loss"]) == pytest.approx(float(dynamic_metrics["learning/loss"]), rel=1e-6)
    other = jax.tree.map(lambda x: x + 0.05 * jnp.ones_like(x), fixed.params)
    _, moved_ema = step(tiny_rl.state("dynamic").replace(ema=other), frozen, batch)
    _, moved_ema_fixed = step(tiny_rl.state("fixed").replace(ema=other), frozen, batch)
    assert float(moved_ema["learning/loss"]) != pytest.approx(float(fixed_metrics["learning/loss"]), rel=1e-6)
    assert float(moved_ema_fixed["learning/loss"]) == pytest.approx(float(fixed_metrics["learning/loss"]), rel=1e-6)


def test_gradient_reaches_every_parameter_of_the_policy():
    before = tiny_rl.state()
    after, _ = tiny_rl.step()(before, tiny_rl.models().frozen, tiny_rl.batch(4))
    still = [
        path
        for path, moved in tree.flatten(jax.tree.map(lambda a, b: (a != b).any(), after.params, before.params)).items()
        if not moved
    ]
    assert still == []


def test_gradient_is_the_derivative_of_the_loss():
    """Along the gradient, a finite difference of the loss has the gradient's norm (float32, central); true guidance and
    flow matching, whose losses other tests check by hand, included."""
    config = dataclasses.replace(
        tiny_rl.CONFIG, first_index=0, last_index=0, gradient_true_cfg_scale=2.0, flow_matching_weight=0.5
    )
    plain = optax.sgd(1.0)
    made = tiny_rl.models()
    step = jax.jit(make_step(FluxFill(made.transformer, made.vae), tiny_rl.scorer, plain, config))
    state = create_state(made.params, plain, seed=0, reference=True)
    after, metrics = step(state, made.frozen, tiny_rl.batch(4))
    norm = float(metrics["learning/grad_norm"])
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    size = 0.003 / norm

    def loss(sign):
        params = jax.tree.map(lambda p, g: p + sign * size / norm * g, state.params, gradient)
        return float(step(state.replace(params=params), made.frozen, tiny_rl.batch(4))[1]["learning/loss"])

    assert (loss(1) - loss(-1)) / (2 * size) == pytest.approx(norm, rel=0.02)


def test_a_samples_randomness_depends_on_its_index_only():
    """The same samples in another order and company give the same rewards."""
    frozen, step = tiny_rl.models().frozen, tiny_rl.step()
    batch = tiny_rl.batch(4)
    order = np.array([2, 0, 3, 1])
    _, straight = step(tiny_rl.state(), frozen, batch)
    _, shuffled = step(tiny_rl.state(), frozen, jax.tree.map(lambda x: x[order], batch))
    for name, value in straight.items():
        np.testing.assert_allclose(shuffled[name], value, rtol=1e-4, err_msg=name)
    _, others = step(tiny_rl.state(), frozen, tiny_rl.batch(4, first_index=4))
    assert float(others["rewards/mean"]) != pytest.approx(float(straight["rewards/mean"]), rel=1e-6)


def test_rewards_are_reported_for_the_cells_of_the_batch():
    _, metrics = tiny_rl.step()(tiny_rl.state(), tiny_rl.models().frozen, tiny_rl.batch(4))
    rewards = {name: float(value) for name, value in metrics.items() if name.startswith("rewards/")}
    assert set(rewards) == {f"rewards/{task}/{dimension}" for task, dimension in CELLS} | {"rewards/mean"}
    assert all(0 <= value <= 1 for value in rewards.values())
    one_task = jax.tree.map(lambda x: x[2:3].repeat(4, axis=0), tiny_rl.batch(4))
    _, metrics = tiny_rl.step()(tiny_rl.state(), tiny_rl.models().frozen, one_task)
    present = {name for name, value in metrics.items() if name.startswith("rewards/") and not np.isnan(value)}
    assert present == {"rewards/object_removal/removal_quality", "rewards/mean"}


class Watched:
    """The update with a `Linear` transformer, and a judge that notes the images it is shown and answers ½."""

    def __init__(self, config):
        self.frozen, self.vae = tiny_rl.models().frozen, tiny_rl.models().vae
        self._seen = {}
        self._step = jax.jit(make_step(FluxFill(Linear(), self.vae), self._judge, optax.sgd(0.0), config))

    def _judge(self, params, first, second, questions):
        jax.debug.callback(lambda **images: self._seen.update(images), first=first, second=second)
        return jnp.full((*questions.lengths.shape, 2), jnp.log(0.5)) + 0 * first.sum()

    def __call__(self, batch, step=0, policy=0.0, reference=0.0):
        """(metrics, policy's images, reference's images) of the update number `step`."""
        state = create_state({"w": jnp.float32(policy)}, optax.sgd(0.0), seed=0)
        state = state.replace(step=jnp.int32(step), ema={"w": jnp.float32(reference)})
        _, metrics = self._step(state, self.frozen, batch)
        jax.effects_barrier()
        return {name: float(value) for name, value in metrics.items()}, self._seen["first"], self._seen["second"]

    def decode(self, tokens):
        latents = conditioning.unpack(tokens, 8, 8)
        return np.asarray(conditioning.to_unit_range(conditioning.decode_latents(self.vae, self.frozen.vae, latents)))


def draws_of(batch, config):
    """By hand: reference's noise, policy's noise, noise of flow matching, and stopping index of each sample."""
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), index), 6) for index in batch.index]
    noises = [np.stack([jax.random.normal(key[i], (TOKENS, WIDTH)) for key in keys]) for i in range(3)]
    return *noises, np.array([jax.random.randint(k[3], (), config.first_index, config.last_index + 1) for k in keys])


@pytest.mark.parametrize("matched_reference", [False, True])
def test_images_are_those_of_the_algorithm(matched_reference):
    """Reference and policy by hand, each from its own noise; every guidance scale, each another number, acts in its own
    place only. A matched reference predicts from the sample's t, as the policy does; another one here takes fewer
    steps."""
    config = dataclasses.replace(
        tiny_rl.CONFIG,
        num_steps=5,
        reference_steps=5 if matched_reference else 3,
        first_index=1,
        last_index=4,
        rollout_guidance_scale=2.5,
        rollout_true_cfg_scale=3.0,
        gradient_guidance_scale=1.5,
        gradient_true_cfg_scale=2.0,
        matched_reference=matched_reference,
    )
    batch, watched, policy, reference = tiny_rl.batch(6), Watched(config), 0.7, -0.4
    _, first, second = watched(batch, policy=policy, reference=reference)

    reference_noise, policy_noise, _, stop = draws_of(batch, config)
    assert abs(np.corrcoef(reference_noise.ravel(), policy_noise.ravel())[0, 1]) < 0.2
    assert len(set(stop)) > 1
    schedule, prompt = sigmas(5, TOKENS), batch.text.prompt_embeds[:, :1, :1]
    rollout = config.rollout_guidance_scale * config.rollout_true_cfg_scale * prompt
    gradient = config.gradient_guidance_scale * config.gradient_true_cfg_scale * prompt

    def euler(w, tokens, stop, schedule=schedule):
        for i in range(len(schedule) - 1):
            moved = tokens + (schedule[i + 1] - schedule[i]) * (w * tokens + rollout)
            tokens = np.where((i < stop)[:, None, None], moved, tokens)
        return tokens

    def predicted(w, noise, guidance):
        tokens = euler(w, noise, stop)
        return tokens - schedule[stop][:, None, None] * (w * tokens + guidance)

    if config.matched_reference:
        expected = predicted(reference, reference_noise, rollout)
    else:
        expected = euler(reference, reference_noise, np.full(6, 3), sigmas(3, TOKENS))
    np.testing.assert_allclose(second, np.clip(watched.decode(expected), 0, 1), atol=1e-5)
    np.testing.assert_allclose(first, watched.decode(predicted(policy, policy_noise, gradient)), atol=1e-5)


def test_the_judge_sees_both_images_moved_alike():
    config = dataclasses.replace(tiny_rl.CONFIG, num_steps=5, first_index=1, last_index=4)
    batch = tiny_rl.batch(6)
    _, *still = Watched(config)(batch, policy=0.7, reference=-0.4)
    _, *moved = Watched(dataclasses.replace(config, judge_shift=2))(batch, policy=0.7, reference=-0.4)
    still, moved = np.stack(still), np.stack(moved)
    padded = np.pad(still, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    offsets = []
    for row in range(6):
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.allclose(padded[:, row, down : down + 16, right : right + 16], moved[:, row], atol=1e-5)
        ]
        assert len(fits) == 1, f"sample {row}: policy and reference were not moved by one offset"
        offsets += fits
    assert len(set(offsets)) > 1


def test_the_judge_may_see_what_a_user_gets():
    """Untouched pixels are the request's own, in both images; inside the mask nothing changes."""
    batch = tiny_rl.batch(2)
    hole = np.asarray(batch.mask) > 0
    _, *made = Watched(tiny_rl.CONFIG)(batch, policy=0.7)
    made = [np.array(image) for image in made]
    _, *seen = Watched(dataclasses.replace(tiny_rl.CONFIG, keep_outside=True))(batch, policy=0.7)
    for whole, composite in zip(made, seen, strict=True):
        np.testing.assert_array_equal(composite[hole], whole[hole])
        np.testing.assert_allclose(composite[~hole], np.asarray(batch.image)[~hole] / 255, atol=1e-6)


def test_stopping_indices_are_exactly_those_of_the_range():
    config = dataclasses.replace(tiny_rl.CONFIG, num_steps=5, first_index=1, last_index=3)
    update, sample = Watched(config), tiny_rl.batch(1)
    drawn = [update(sample.replace(index=np.array([i], np.int32)))[0]["learning/sigma"] for i in range(40)]
    expected = sigmas(5, TOKENS)[1:4]
    nearest = np.abs(np.subtract.outer(drawn, expected))
    assert nearest.min(axis=1).max() < 1e-6
    assert set(nearest.argmin(axis=1)) == set(range(len(expected)))


def test_one_index_for_the_batch_or_one_for_each_sample():
    """The mean σ of eight samples is one of the schedule's if they share their index, and else hardly ever."""
    batch, schedule = tiny_rl.batch(8), sigmas(5, TOKENS)
    nearest = {}
    for per_sample in (False, True):
        config = dataclasses.replace(
            tiny_rl.CONFIG, num_steps=5, first_index=1, last_index=3, index_per_sample=per_sample
        )
        update = Watched(config)
        # Samples of another update have other indices, as in training.
        moved = [batch.replace(index=batch.index + 8 * step) for step in range(20)]
        drawn = [update(moved[step], step=step)[0]["learning/sigma"] for step in range(20)]
        nearest[per_sample] = np.abs(np.subtract.outer(drawn, schedule))
    assert nearest[False].min(axis=1).max() < 1e-6
    assert set(nearest[False].argmin(axis=1)) == {1, 2, 3}
    assert (nearest[True].min(axis=1) > 1e-3).sum() > 15


@pytest.mark.parametrize("others", [False, True], ids=["of its requests", "of other images, some weighing nothing"])
def test_regularisation_is_flow_matching_of_the_conditional_velocity(others):
    """By hand from the same keys, over two micro-batches; true guidance in the gradient step does not enter."""
    config = dataclasses.replace(
        tiny_rl.CONFIG, flow_matching_weight=0.5, gradient_guidance_scale=2.0, gradient_true_cfg_scale=3.0, accumulate=2
    )
    batch, watched, w = tiny_rl.batch(4), Watched(config), 0.7
    shown, weight = batch, np.ones(4, np.float32)
    if others:
        shown, weight = tiny_rl.batch(4, first_index=50), np.array([1, 0, 0, 1], np.float32)
        learned = MatchingTargets(shown.image, shown.mask, shown.text, shown.target)
        batch = batch.replace(target=None, target_weight=weight, matching=learned)
    metrics, _, _ = watched(batch, policy=w)
    _, _, noise, stop = draws_of(batch, config)
    images = conditioning.to_model_range(jnp.asarray(shown.target))
    data = np.asarray(conditioning.pack(conditioning.encode_image(watched.vae, watched.frozen.vae, images)))
    sigma = sigmas(config.num_steps, TOKENS)[stop][:, None, None]
    prompt = config.gradient_guidance_scale * shown.text.prompt_embeds[:, :1, :1]
    error = w * ((1 - sigma) * data + sigma * noise) + prompt - (noise - data)
    assert metrics["learning/flow_matching_loss"] == pytest.approx(
        float((weight[:, None, None] * np.square(error)).mean()), rel=1e-4
    )
    # The judge says ½ of everything.
    assert metrics["learning/reward_loss"] == pytest.approx(config.threshold - 0.5, rel=1e-5)
    total = metrics["learning/reward_loss"] + 0.5 * metrics["learning/flow_matching_loss"]
    assert metrics["learning/loss"] == pytest.approx(total, rel=1e-5)


def gradient_of(config, policy=0.7):
    """The gradient of a `Linear` policy's one number, whose judge prefers bright pictures; and the metrics."""

    def judge(params, first, second, questions):
        p_yes = jax.nn.sigmoid((first - second).mean(axis=(1, 2, 3)))
        return jnp.log(jnp.broadcast_to(p_yes[:, None, None], (*questions.lengths.shape, 2)))

    step = jax.jit(make_step(FluxFill(Linear(), tiny_rl.models().vae), judge, optax.sgd(1.0), config))
    state = create_state({"w": jnp.float32(policy)}, optax.sgd(1.0), seed=0)
    after, metrics = step(state, tiny_rl.models().frozen, tiny_rl.batch(4))
    return float(state.params["w"] - after.params["w"]), metrics


def test_two_predictions_of_a_rollout_are_the_mean_of_two_gradients():
    """Each by an update that can only stop at its t."""
    config = dataclasses.replace(tiny_rl.CONFIG, num_steps=5, first_index=0, last_index=4, index_per_sample=False)
    of_batch = jax.random.fold_in(jax.random.key(0), jnp.int32(-1))
    keys = of_batch, jax.random.fold_in(of_batch, 1)
    first, second = (int(jax.random.randint(key, (), 0, 5)) for key in keys)
    assert first != second
    alone = [gradient_of(dataclasses.replace(config, first_index=t, last_index=t)) for t in (first, second)]
    both, metrics = gradient_of(dataclasses.replace(config, predictions=2))
    assert both == pytest.approx((alone[0][0] + alone[1][0]) / 2, rel=1e-4)
    assert alone[0][0] != pytest.approx(alone[1][0], rel=0.01)
    for name in ("learning/loss", "learning/sigma", "rewards/mean"):
        mean = (alone[0][1][name] + alone[1][1][name]) / 2
        assert float(metrics[name]) == pytest.approx(float(mean), rel=1e-5), name


def test_a_call_for_every_dimension_answers_as_one_for_all():
    batch, judge = tiny_rl.batch(4), tiny_rl.models()
    asked = batch.image, batch.target, jax.tree.map(jnp.asarray, batch.questions)
    together = tiny_rl.scorer(judge.frozen.judge, *asked)
    alone = jax.jit(one_dimension_a_call(tiny_rl.scorer))(judge.frozen.judge, *asked)
    real = np.asarray(batch.questions.weights) > 0
    np.testing.assert_allclose(np.asarray(alone)[real], np.asarray(together)[real], atol=1e-5)


def test_true_guidance_needs_a_negative_prompt():
    batch = tiny_rl.batch(4).replace(negative=None)
    step = tiny_rl.step(dataclasses.replace(tiny_rl.CONFIG, rollout_true_cfg_scale=2.0))
    with pytest.raises(UserError):
        step(tiny_rl.state(), tiny_rl.models().frozen, batch)


@pytest.mark.parametrize("change", [{"first_index": 3, "last_index": 2}, {"last_index": 3}, {"first_index": -1}])
def test_prediction_range_must_lie_in_the_schedule(change):
    with pytest.raises(ValueError, match="_index"):
        RewardLearning(**{"num_steps": 3, "first_index": 0, "last_index": 2} | change)


def test_a_matched_reference_has_one_t():
    with pytest.raises(UserError):
        RewardLearning(matched_reference=True, predictions=2)
