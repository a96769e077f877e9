"""Gradients of dimensions and of tasks, compared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.rl import gradient_cosines
from onereward_jax.rl.gradient_cosines import GradientCosines, cosines, groups, sketch, sketches
from onereward_jax.rl.step import make_reward_gradient
from onereward_jax.tasks import CELLS, DIMENSIONS, TASKS
from tests.support import tiny_rl


def test_a_sketch_keeps_inner_products():
    draw = np.random.default_rng(0)
    tree = lambda: {
        "a": draw.normal(size=(100, 333)),
        "b": {"c": draw.normal(size=50), "d": draw.normal(size=(7, 900))},
    }
    first, other = tree(), tree()
    near = jax.tree.map(lambda x, y: 0.8 * x + 0.6 * y, first, other)
    flat = lambda of: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(of)])
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for one in (other, near, jax.tree.map(np.negative, first)):
        kept = cosine(*(np.asarray(sketch(of)) for of in (first, one)))
        assert kept == pytest.approx(cosine(flat(first), flat(one)), abs=0.06)


@pytest.mark.parametrize(("pull", "beyond"), [(1.0, False), (-1.0, True)])
def test_dimensions_that_pull_together_or_apart(pull, beyond):
    """The gradient of structure is g, that of aesthetics its like or its opposite, and other dimensions have others."""
    draw = np.random.default_rng(0)
    of_cell = {cell: draw.normal(size=3000) for cell in CELLS}
    for task in TASKS:
        if (task, "structure") in of_cell:
            of_cell[task, "aesthetics"] = pull * of_cell[task, "structure"]
    gradients = jnp.asarray(np.stack([of_cell[cell] for cell in CELLS]), jnp.float32)

    def gradient(state, frozen, batch):
        weights = batch.questions.weights * (batch.questions.cell >= 0)
        return jnp.einsum("be,bec->c", weights, gradients[batch.questions.cell])

    found = cosines(*map(np.asarray, jax.jit(lambda b: sketches(gradient, None, None, b))(tiny_rl.batch(4))))
    assert (found["gradients/structure/aesthetics"] < -0.5) == beyond
    assert abs(found["gradients/structure/aesthetics"]) > 0.99
    assert abs(found["gradients/text_alignment/consistency"]) < 0.15
    assert len(found) == len(DIMENSIONS) * (len(DIMENSIONS) - 1) / 2 + len(TASKS) * (len(TASKS) - 1) / 2


def test_what_a_batch_lacks_is_not_compared():
    rows = np.ones((len(groups()), 8))
    weights = np.array([name != "structure" for name in groups()], float)
    found = cosines(rows, weights)
    assert not any("structure" in name for name in found)
    assert cosines(0 * rows, weights) == {}


def test_the_updates_own_gradients(monkeypatch):
    """The gradient of all answers is the sum of the tasks', and flow matching is in none."""
    made = tiny_rl.models()
    config = dataclasses.replace(tiny_rl.CONFIG, flow_matching_weight=0.5)
    gradient = make_reward_gradient(FluxFill(made.transformer, made.vae), tiny_rl.scorer, config)
    fill = np.array([task == "image_fill" for task, _ in CELLS])
    monkeypatch.setattr(gradient_cosines, "groups", lambda: {"fill": fill, "rest": ~fill, "all": fill | ~fill})
    program = jax.jit(lambda state, frozen, batch: sketches(gradient, state, frozen, batch)[0])
    first, rest, whole = program(tiny_rl.state(), made.frozen, tiny_rl.batch(2))
    np.testing.assert_allclose(first + rest, whole, rtol=1e-3, atol=1e-5 * float(jnp.abs(whole).max()))
    assert float(jnp.linalg.norm(first)) > 0


def test_gradients_are_compared_at_evaluations():
    asked = []

    def gradient(state, frozen, batch):
        return jnp.einsum("be,bec->c", batch.questions.weights, frozen[batch.questions.cell])

    frozen = jnp.asarray(np.random.default_rng(0).normal(size=(len(CELLS), 99)), jnp.float32)
    compared = GradientCosines(gradient, frozen, None, every=2, last=5)
    assert compared.measure(None) == {}
    program = compared._program
    compared._program = lambda state, *more: asked.append(int(state.step)) or program(state, *more)
    state = tiny_rl.state()
    step = compared.around(lambda state, batch: (dataclasses.replace(state, step=state.step + 1), {}))
    for _ in range(5):
        state, _ = step(state, tiny_rl.batch(4))
    assert asked == [1, 3, 4]  # the state before updates 2, 4 and 5
    assert compared.measure(state)
