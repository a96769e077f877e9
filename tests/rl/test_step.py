"""Algorithms 1 and 2 as one pure step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax import tree
from onereward_jax.flow.schedule import sigmas
from onereward_jax.rl.objective import reward_loss
from onereward_jax.rl.step import StepConfig
from onereward_jax.tasks import CELLS
from tests.rl import tiny


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
    before = tiny.state(algorithm)
    after, metrics = tiny.step()(before, tiny.models().frozen, tiny.batch(4))
    assert int(after.step) == 1
    assert float(metrics["learning/grad_norm"]) > 0
    moved = distance(after.params, before.params)
    assert moved > 0
    # ema ← .9·ema + .1·θ, and the two began alike
    chex.assert_trees_all_close(after.ema, tree.lerp(before.ema, after.params, 0.1), rtol=1e-5, atol=1e-8)
    if algorithm == "fixed":
        chex.assert_trees_all_equal(after.reference, before.reference)
    else:
        assert after.reference is None
    assert (jax.random.key_data(after.key) == jax.random.key_data(before.key)).all()


def test_algorithm_decides_which_parameters_make_the_reference():
    """From equal parameters both algorithms take the same step; when EMA and reference part, they part too."""
    batch, frozen, step = tiny.batch(4), tiny.models().frozen, tiny.step()
    fixed, fixed_metrics = step(tiny.state("fixed"), frozen, batch)
    _, dynamic_metrics = step(tiny.state("dynamic"), frozen, batch)
    assert float(fixed_metrics["learning/loss"]) == pytest.approx(float(dynamic_metrics["learning/loss"]), rel=1e-6)
    other = jax.tree.map(lambda x: x + 0.05 * jnp.ones_like(x), fixed.params)
    _, moved_ema = step(tiny.state("dynamic").replace(ema=other), frozen, batch)
    _, moved_ema_fixed = step(tiny.state("fixed").replace(ema=other), frozen, batch)
    assert float(moved_ema["learning/loss"]) != pytest.approx(float(fixed_metrics["learning/loss"]), rel=1e-6)
    assert float(moved_ema_fixed["learning/loss"]) == pytest.approx(float(fixed_metrics["learning/loss"]), rel=1e-6)


def test_gradient_reaches_every_parameter_of_the_policy():
    before = tiny.state()
    after, _ = tiny.step()(before, tiny.models().frozen, tiny.batch(4))
    still = [
        path
        for path, moved in tree.flatten(jax.tree.map(lambda a, b: (a != b).any(), after.params, before.params)).items()
        if not moved
    ]
    assert still == []


def test_gradient_is_the_derivative_of_the_loss():
    """Along the gradient, a finite difference of the loss has the gradient's norm (float32, central)."""
    config = dataclasses.replace(tiny.CONFIG, first_index=0, last_index=0)
    plain = optax.sgd(1.0)
    made = tiny.models()
    from onereward_jax.rl.step import make_step
    from onereward_jax.train_state import create_state

    step = jax.jit(make_step(made.transformer, made.vae, tiny.judge_apply, plain, config))
    state = create_state(made.params, plain, seed=0, reference=True)
    after, metrics = step(state, made.frozen, tiny.batch(4))
    norm = float(metrics["learning/grad_norm"])
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    size = 0.003 / norm

    def loss(sign):
        params = jax.tree.map(lambda p, g: p + sign * size / norm * g, state.params, gradient)
        return float(step(state.replace(params=params), made.frozen, tiny.batch(4))[1]["learning/loss"])

    assert (loss(1) - loss(-1)) / (2 * size) == pytest.approx(norm, rel=0.02)


def test_accumulated_gradient_equals_the_whole_batch():
    batch, frozen = tiny.batch(4), tiny.models().frozen
    whole, whole_metrics = tiny.step()(tiny.state(), frozen, batch)
    parts, parts_metrics = tiny.step(dataclasses.replace(tiny.CONFIG, accumulate=2))(tiny.state(), frozen, batch)
    for name in whole_metrics:
        np.testing.assert_allclose(parts_metrics[name], whole_metrics[name], rtol=2e-4, err_msg=name)
    assert distance(parts.opt_state[1][0].mu, whole.opt_state[1][0].mu) < 1e-5 * float(
        optax.global_norm(whole.opt_state[1][0].mu)
    )


def test_a_samples_randomness_depends_on_its_index_only():
    """The same samples in another order and company give the same rewards."""
    frozen, step = tiny.models().frozen, tiny.step()
    batch = tiny.batch(4)
    order = np.array([2, 0, 3, 1])
    _, straight = step(tiny.state(), frozen, batch)
    _, shuffled = step(tiny.state(), frozen, {name: value[order] for name, value in batch.items()})
    for name, value in straight.items():
        np.testing.assert_allclose(shuffled[name], value, rtol=1e-4, err_msg=name)
    _, others = step(tiny.state(), frozen, tiny.batch(4, first_index=4))
    assert float(others["rewards/mean"]) != pytest.approx(float(straight["rewards/mean"]), rel=1e-6)


def test_rewards_are_reported_for_the_cells_of_the_batch():
    _, metrics = tiny.step()(tiny.state(), tiny.models().frozen, tiny.batch(4))
    rewards = {name: float(value) for name, value in metrics.items() if name.startswith("rewards/")}
    assert set(rewards) == {f"rewards/{task}/{dimension}" for task, dimension in CELLS} | {"rewards/mean"}
    assert all(0 <= value <= 1 for value in rewards.values())
    one_task = {name: value[2:3].repeat(4, axis=0) for name, value in tiny.batch(4).items()}
    _, metrics = tiny.step()(tiny.state(), tiny.models().frozen, one_task)
    present = {name for name, value in metrics.items() if name.startswith("rewards/") and not np.isnan(value)}
    assert present == {"rewards/object_removal/removal_quality", "rewards/mean"}


def test_guidance_and_regularisation_change_the_gradient():
    """Guidance acts in the rollout and in the gradient step apart; the regularisation adds its loss."""
    frozen, batch = tiny.models().frozen, tiny.batch(4)
    _, plain = tiny.step()(tiny.state(), frozen, batch)
    changes = [
        {"rollout_true_cfg_scale": 3.0, "index_per_sample": False},
        {"gradient_true_cfg_scale": 3.0, "flow_matching_weight": 1.0},
    ]
    results = [
        tiny.step(dataclasses.replace(tiny.CONFIG, **change))(tiny.state(), frozen, batch)[1] for change in changes
    ]
    norms = [float(metrics["learning/grad_norm"]) for metrics in (plain, *results)]
    assert len({round(norm, 7) for norm in norms}) == 3, norms
    reward, matching = (float(results[1][f"learning/{name}_loss"]) for name in ("reward", "flow_matching"))
    assert float(results[1]["learning/loss"]) == pytest.approx(reward + matching, rel=1e-5)
    # One index for the batch: the mean σ is one of the schedule's.
    schedule = sigmas(3, 16)
    assert min(abs(schedule - float(results[0]["learning/sigma"]))) < 1e-6


def test_true_guidance_needs_a_negative_prompt():
    batch = {name: value for name, value in tiny.batch(4).items() if not name.startswith("negative")}
    step = tiny.step(dataclasses.replace(tiny.CONFIG, rollout_true_cfg_scale=2.0))
    with pytest.raises(ValueError, match="needs a negative prompt"):
        step(tiny.state(), tiny.models().frozen, batch)


@pytest.mark.parametrize("change", [{"first_index": 3, "last_index": 2}, {"last_index": 3}, {"first_index": -1}])
def test_prediction_range_must_lie_in_the_schedule(change):
    with pytest.raises(ValueError, match="first_index"):
        StepConfig(**{"num_steps": 3, "first_index": 0, "last_index": 2} | change)
