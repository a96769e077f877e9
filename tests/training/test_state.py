"""Parts of the state that wait in the hosts' memory: the same updates, and checkpoints that a run without it reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.config.schema import OFFLOADABLE
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.parallel.offload import HOST
from onereward_jax.training import checkpoint
from onereward_jax.training.compile import Params, Placement, compile_step
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state, supervised_step

OFFLOADED = Placement(offload=OFFLOADABLE)


def trained(placement, last=1.0):
    """A linear model's state after three updates on 2 x 2 x 2 devices, and a fourth from inputs times `last`."""
    mesh = make_mesh(2, 2, 2)
    draw = np.random.default_rng(0)
    params = {"to_q": {"kernel": draw.standard_normal((8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}}
    optimizer = make_optimizer(1e-2)

    def loss(params, frozen, batch, key):
        return jnp.mean(jnp.square(batch["x"] @ params["to_q"]["kernel"] + params["to_q"]["bias"] - 1)), {}

    create = lambda params: create_state(params, optimizer, seed=0, reference=True)
    step = supervised_step(loss, optimizer, ema_decay=0.9)
    compiled, start, frozen = compile_step(step, create, Params.of(params), {}, mesh, placement)
    state = start.make()
    for factor in (1.0, 1.0, 1.0, last):
        inputs = factor * draw.standard_normal((8, 8)).astype(np.float32)
        before = jax.tree.map(np.asarray, state.replace(key=0))
        state, metrics = compiled(state, frozen, {"x": jax.device_put(inputs, batch_sharding(mesh))})
    return state, before, metrics


def memories(state):
    return {path: leaf.sharding.memory_kind for path, leaf in tree.flatten(state).items()}


@pytest.fixture(scope="module")
def states():
    return trained(Placement())[0], trained(OFFLOADED)[0]


def test_an_offloaded_state_learns_the_same(states):
    plain, offloaded = (jax.tree.map(np.asarray, state.replace(key=0)) for state in states)
    # Up to the rounding of the last digit: each array has a program of its own.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), plain, offloaded)
    assert np.abs(plain.ema["to_q"]["kernel"] - plain.reference["to_q"]["kernel"]).max() > 0


def test_matrices_of_the_named_parts_wait_on_the_hosts(states):
    found = memories(states[1])
    for path, memory in found.items():
        on_host = path.startswith(OFFLOADABLE) and path.endswith("kernel")
        assert memory == (HOST if on_host else "device"), path
    assert sum(memory == HOST for memory in found.values()) == 4  # two moments, average, reference
    assert set(memories(states[0]).values()) == {"device"}


def test_one_array_comes_after_the_other():
    """Each barrier but the first waits for something that went back to the hosts."""
    mesh = make_mesh(2, 2, 2)
    layers = {name: {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)} for name in ("to_k", "to_q", "to_v")}
    optimizer = make_optimizer(1e-2)

    def loss(params, frozen, batch, key):
        return sum(jnp.sum(batch @ layer["kernel"] + layer["bias"]) for layer in params.values()), {}

    create = lambda params: create_state(params, optimizer, seed=0)
    step = supervised_step(loss, optimizer, 0.9)
    compiled, start, _ = compile_step(step, create, Params.of(layers), {}, mesh, OFFLOADED)
    state = start.make()
    program = compiled.trace(state, {}, jnp.ones((8, 8))).jaxpr.jaxpr
    maker = {id(variable): equation.primitive.name for equation in program.eqns for variable in equation.outvars}
    barriers = [equation for equation in program.eqns if equation.primitive.name == "optimization_barrier"]
    waits = [any(maker.get(id(x)) == "device_put" for x in barrier.invars) for barrier in barriers]
    assert waits == [False, True, True]


def test_an_update_that_is_not_finite_is_skipped():
    state, before, metrics = trained(OFFLOADED, last=np.nan)
    assert metrics["learning/skipped"] == 1
    after = jax.tree.map(np.asarray, state.replace(key=0, step=before.step))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_the_average_comes_back_to_the_devices(states):
    averaged = states[1].averaged
    assert set(memories(averaged).values()) == {"device"}
    jax.tree.map(np.testing.assert_array_equal, averaged, states[1].ema)


def test_a_checkpoint_is_read_with_and_without_offloading(states, tmp_path):
    checkpoints = checkpoint.Checkpointer(tmp_path)
    checkpoints.save(3, states[1])
    checkpoints.close()
    saved = jax.tree.map(np.asarray, states[1].replace(key=0))
    for wanted in states:
        step, restored, _ = checkpoints.restore_latest(wanted)
        assert step == 3
        assert memories(restored) == memories(wanted)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored.replace(key=0)), saved)
