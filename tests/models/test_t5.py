"""T5 encoder: buckets, masking, stacked layers, the full-size tree."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.models.t5 import T5Encoder, relative_position_buckets
from onereward_jax.weights.names import t5 as weights
from onereward_jax.weights.names.name_rules import official_shapes
from tests.support.random_params import random_params

GOLDEN = Path(__file__).parents[1] / "goldens" / "flux.1-fill-dev.text_encoder_2.json"
SIZES = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}


def _model(**fields):
    module = T5Encoder(**(SIZES | fields))
    return module, {"params": random_params(module, weights)}


@pytest.fixture(scope="module")
def model():
    return _model()


def _apply(module, *args):
    return jax.jit(module.apply)(*args)


def test_buckets_of_near_and_far_offsets():
    buckets = relative_position_buckets(200, num_buckets=32, max_distance=128)
    # Keys before the query: single offsets below 8, then logarithmic, powers of two on the edges.
    before = {0: 0, 1: 1, 7: 7, 8: 8, 15: 9, 16: 10, 31: 11, 32: 12, 63: 13, 64: 14, 127: 15, 128: 15, 199: 15}
    assert {distance: int(buckets[199, 199 - distance]) for distance in before} == before
    assert all(buckets[0, distance] == 16 + bucket for distance, bucket in before.items() if distance > 0)


def test_masked_tokens_do_not_change_the_others(model):
    module, variables = model
    ids = np.array([[5, 6, 7, 1, 0, 0]])
    other = np.array([[5, 6, 7, 1, 9, 3]])
    mask = np.array([[1, 1, 1, 1, 0, 0]])
    a, b = (_apply(module, variables, x, mask)[:, :4] for x in (ids, other))
    np.testing.assert_allclose(a, b, atol=1e-6)
    unmasked, other_unmasked = (_apply(module, variables, x)[:, :4] for x in (ids, other))
    assert np.abs(unmasked - other_unmasked).max() > 1e-3  # without a mask, padding is attended to, as in FLUX


def test_remat_changes_nothing(model):
    module, variables = model
    ids = np.array([[5, 6, 7, 1], [9, 8, 1, 0]])

    def gradient(m):
        return jax.jit(jax.grad(lambda v: jnp.sum(m.apply(v, ids) ** 2)))(variables)

    chex.assert_trees_all_close(gradient(module), gradient(module.clone(remat="full")), rtol=1e-5, atol=1e-5)


def test_bfloat16_follows_float32_and_keeps_float32_parameters(model):
    module, variables = model
    ids = np.array([[5, 6, 7, 1]])
    full = _apply(module, variables, ids)
    half = _apply(module.clone(dtype=jnp.bfloat16), variables, ids)
    assert half.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(half.astype(jnp.float32) - full) / jnp.linalg.norm(full)) < 0.03
    bf16 = jax.eval_shape(module.clone(dtype=jnp.bfloat16).init, jax.random.key(0), ids)
    assert {leaf.dtype for leaf in jax.tree.leaves(bf16)} == {jnp.dtype("float32")}


def test_initial_states_keep_their_size():
    """T5's initialisation makes up for unscaled logits: nothing explodes or vanishes."""
    module = T5Encoder(**(SIZES | {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 4}))
    variables = jax.jit(module.init)(jax.random.key(0), *weights.example_inputs(module))
    x = _apply(module, variables, jax.random.randint(jax.random.key(1), (4, 12), 0, 50))
    assert 0.5 < float(jnp.std(x)) < 2.0
    assert variables["params"]["shared"]["embedding"].std() == pytest.approx(1.0, rel=0.1)


def test_full_size_tree_has_the_official_names_and_shapes():
    golden = json.loads(GOLDEN.read_text())
    module = weights.module_from_config(golden["config"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *weights.example_inputs(module))["params"]
    ours = official_shapes(weights.TABLE, shapes)
    for name, alias in weights.ALIASES.items():
        ours[alias] = ours[name]
    assert ours == {name: tuple(shape) for name, shape in golden["tensors"].items()}
    # The reference counts the tied table under both names.
    assert tree.count(shapes) == golden["parameters"] - np.prod(golden["tensors"]["shared.weight"])


def test_config_round_trip():
    golden = json.loads(GOLDEN.read_text())["config"]
    module = weights.module_from_config(golden, dtype=jnp.bfloat16, remat="full")
    assert (module.dtype, module.remat) == (jnp.bfloat16, "full")
    exported = weights.config_of(module)
    assert {name: exported[name] for name in golden} == golden
    assert weights.module_from_config(exported, dtype=jnp.bfloat16, remat="full") == module


def test_other_feed_forwards_are_refused():
    with pytest.raises(ValueError, match="'relu'"):
        weights.module_from_config(SIZES)


def test_incomplete_configurations_are_refused():
    with pytest.raises(ValueError, match="d_model"):
        weights.module_from_config({"feed_forward_proj": "gated-gelu", "vocab_size": 50})
