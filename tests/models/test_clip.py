"""CLIP text encoder: causality, pooling, limits, the full-size tree."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.errors import UserError
from onereward_jax.models.clip import CLIPTextEncoder, pooled_position
from onereward_jax.weights.names import clip as weights
from onereward_jax.weights.names.name_rules import official_shapes
from tests.support.random_params import random_params

GOLDEN = Path(__file__).parents[1] / "goldens" / "flux.1-fill-dev.text_encoder.json"
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
}
START, END = 48, 49


def _model(**fields):
    module = CLIPTextEncoder(**(SIZES | fields))
    return module, {"params": random_params(module, weights)}


@pytest.fixture(scope="module")
def model():
    return _model()


def _apply(module, *args):
    return jax.jit(module.apply)(*args)


def test_states_depend_on_nothing_later(model):
    module, variables = model
    a, _ = _apply(module, variables, np.array([[START, 5, 6, 7, END]]))
    b, _ = _apply(module, variables, np.array([[START, 5, 6, 8, END]]))
    np.testing.assert_allclose(a[:, :3], b[:, :3], atol=1e-6)
    assert np.abs(a[:, 3:] - b[:, 3:]).max() > 1e-3


def test_pooled_position_by_both_rules():
    ids = np.array([[START, 5, END, END, END], [START, 5, 6, 7, END]])
    assert pooled_position(ids, 2).tolist() == [2, 4]
    assert pooled_position(ids, END).tolist() == [2, 4]
    # The two rules differ where the end of text is not the highest token.
    assert pooled_position(np.array([[1, 9, 3, 3]]), 2).tolist() == [1]
    assert pooled_position(np.array([[1, 9, 3, 3]]), 3).tolist() == [2]


def test_pooled_state_ignores_padding(model):
    module, variables = model
    hidden, pooled = _apply(module, variables, np.array([[START, 5, END, END, END], [START, 5, END, 0, 0]]))
    assert hidden.shape == (2, 5, 16)
    np.testing.assert_array_equal(pooled, hidden[:, 2])
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)


def test_masked_tokens_are_not_attended_to(model):
    module, variables = model
    mask = np.array([[1, 0, 1, 1]])
    a, _ = _apply(module, variables, np.array([[START, 5, 6, END]]), mask)
    b, _ = _apply(module, variables, np.array([[START, 7, 6, END]]), mask)
    np.testing.assert_allclose(a[:, 2:], b[:, 2:], atol=1e-6)


def test_remat_changes_nothing(model):
    module, variables = model
    ids = np.array([[START, 5, 6, END], [START, 9, END, END]])

    def gradient(m):
        return jax.jit(jax.grad(lambda v: jnp.sum(m.apply(v, ids)[1] ** 2)))(variables)

    chex.assert_trees_all_close(gradient(module), gradient(module.clone(remat="full")), rtol=1e-5, atol=1e-5)


def test_bfloat16_follows_float32(model):
    module, variables = model
    ids = np.array([[START, 5, 6, END]])
    _, full = _apply(module, variables, ids)
    hidden, half = _apply(module.clone(dtype=jnp.bfloat16), variables, ids)
    assert hidden.dtype == half.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(half.astype(jnp.float32) - full) / jnp.linalg.norm(full)) < 0.03


def test_too_long_texts_and_unknown_activations_are_refused(model):
    module, variables = model
    with pytest.raises(UserError):
        _apply(module, variables, np.zeros((1, 10), np.int32))
    with pytest.raises(UserError, match="'swish'"):
        module.clone(hidden_act="swish").apply(variables, np.zeros((1, 2), np.int32))


def test_full_size_tree_has_the_official_names_and_shapes():
    golden = json.loads(GOLDEN.read_text())
    module = weights.module_from_config(golden["config"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *weights.example_inputs(module))["params"]
    assert official_shapes(weights.TABLE, shapes) == {name: tuple(shape) for name, shape in golden["tensors"].items()}
    assert tree.count(shapes) == golden["parameters"]


def test_config_round_trip():
    golden = json.loads(GOLDEN.read_text())["config"]
    module = weights.module_from_config(golden, dtype=jnp.bfloat16)
    assert module.dtype == jnp.bfloat16
    exported = weights.config_of(module)
    assert {name: exported[name] for name in golden} == golden
    assert weights.module_from_config(exported, dtype=jnp.bfloat16) == module


def test_the_default_end_of_text():
    assert weights.module_from_config(SIZES).eos_token_id == 49407


def test_incomplete_configurations_are_refused():
    with pytest.raises(ValueError, match="hidden_size"):
        weights.module_from_config({"vocab_size": 50})
