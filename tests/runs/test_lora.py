"""Reward feedback learning of an adapter: the base stands apart, frozen."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax import tree
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.models import lora
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.rl.step import make_step
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.compile import Params, compile_step
from onereward_jax.training.state import create_state
from tests.support import tiny_rl

ADAPTERS = lora.LoRA(rank=4, alpha=8.0, targets="attn|ff|proj")


def frozen():
    return tiny_rl.models().frozen.replace(base=tiny_rl.models().params)


def state(algorithm="dynamic"):
    adapter = ADAPTERS.init(tiny_rl.models().params, jax.random.key(0))
    made = create_state(adapter, tiny_rl.optimizer(), seed=0)
    # Where a restored state lies, too: one program serves both.
    return jax.device_put(made.replace(reference={}) if algorithm == "fixed" else made, jax.devices()[0])


def update():
    made = tiny_rl.models()
    arguments = FluxFill(made.transformer, made.vae), tiny_rl.scorer, tiny_rl.optimizer(), tiny_rl.CONFIG
    return make_step(*arguments, adapter_scale=ADAPTERS.scale)


@functools.cache
def step():
    return jax.jit(update())


def test_an_adapter_starts_as_the_base_and_only_it_learns():
    before, batch = state("fixed"), tiny_rl.batch(4)
    after, metrics = step()(before, frozen(), batch)
    _, of_whole_model = tiny_rl.step()(tiny_rl.state("fixed"), tiny_rl.models().frozen, batch)
    for name in ("learning/loss", "rewards/mean"):
        assert float(metrics[name]) == pytest.approx(float(of_whole_model[name]), rel=1e-5)
    # B learns first: A has no gradient while B is zero.
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), after.params, before.params)
    assert all(b for _, b in lora.factors(moved).values())
    averaged = jax.tree.map(lambda ema, params: 0.9 * ema + 0.1 * params, before.ema, after.params)
    chex.assert_trees_all_close(after.ema, averaged, rtol=1e-5, atol=1e-8)
    assert after.reference == before.reference
    later, _ = step()(after, frozen(), batch)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), later.params, after.params)
    assert all(a and b for a, b in lora.factors(moved).values())


def test_the_reference_of_algorithm_1_is_the_base():
    """Whatever policy and EMA have become; Algorithm 2's is the EMA."""
    moved = jax.tree.map(lambda x: x + 0.05 * jnp.ones_like(x), state().params)
    batch, merged = tiny_rl.batch(4), lora.merge(tiny_rl.models().params, moved, ADAPTERS.scale)
    for algorithm, reference in (("fixed", tiny_rl.models().params), ("dynamic", merged)):
        moved_on = jax.device_put(state(algorithm).replace(params=moved, ema=moved), jax.devices()[0])
        _, metrics = step()(moved_on, frozen(), batch)
        whole = tiny_rl.state("fixed").replace(params=merged, reference=reference)
        _, expected = tiny_rl.step()(whole, tiny_rl.models().frozen, batch)
        assert float(metrics["rewards/mean"]) == pytest.approx(float(expected["rewards/mean"]), rel=1e-4)


def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(tmp_path):
    def go_on(state, first, last):
        for number in range(first, last):
            state, _ = step()(state, frozen(), tiny_rl.batch(4, first_index=4 * number))
        return state

    whole = go_on(state("fixed"), 0, 3)
    half = go_on(state("fixed"), 0, 2)
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(2, half, {})
    checkpointer.close()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), half)
    _, restored, _ = Checkpointer(tmp_path, keep=1).restore_latest(abstract)
    assert restored.reference == {}
    again = go_on(restored, 2, 3)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(again, name), getattr(whole, name))


def test_the_adapter_learns():
    now, losses = state("fixed"), []
    for _ in range(8):
        now, metrics = step()(now, frozen(), tiny_rl.batch(4))
        losses.append(float(metrics["learning/loss"]))
    assert losses[-1] < losses[0] - 1e-4


def test_eight_devices_give_the_gradient_of_one():
    """Adam's first moment after one update is a tenth of the gradient. A and B have moved on from B = 0."""
    moved, mesh = jax.tree.map(lambda x: np.asarray(x) + 0.02, state().params), make_mesh(2, 2, 2)
    create = lambda params: create_state(params, tiny_rl.optimizer(), seed=0)
    compiled, start, frozen_on_mesh = compile_step(update(), create, Params.of(moved), frozen(), mesh)
    of_eight, _ = compiled(start.make(), frozen_on_mesh, jax.device_put(tiny_rl.batch(4), batch_sharding(mesh)))
    of_one, _ = step()(jax.device_put(create(moved), jax.devices()[0]), frozen(), tiny_rl.batch(4))
    found, expected = (jax.device_get(after.opt_state[1][0].mu) for after in (of_eight, of_one))
    difference = optax.global_norm(jax.tree.map(jnp.subtract, found, expected))
    assert float(difference) < 1e-5 * float(optax.global_norm(expected))
    for path, leaf in tree.flatten(of_eight.params).items():
        assert not leaf.sharding.is_fully_replicated, path
