"""Qwen2.5-VL: windows, positions, names and shapes at full size."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.models import qwen2_5_vl as models
from onereward_jax.weights.names import qwen2_5_vl as weights
from onereward_jax.weights.names.name_rules import official_shapes
from tests.support import tiny_judge

GOLDEN = Path(__file__).parents[1] / "goldens" / "qwen2.5-vl-7b-instruct.json"


def _vision(**changes):
    fields = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": 8,
        "fullatt_block_indexes": (1,),
        "window_size": 16,
        "patch_size": 4,
    }
    return models.VisionTransformer(**(fields | changes))


def _patches(grid, batch=1):
    return jax.random.normal(jax.random.key(1), (batch, grid[0] * grid[1], 96))


def _params(module, grid):
    """Random parameters, without compiling the model's own initialisation."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), _patches(grid), grid))
    return jax.tree.map(lambda x: (0.3 * generator.standard_normal(x.shape)).astype(x.dtype), shapes)


def test_full_size_tree_has_the_official_names_and_shapes():
    golden = json.loads(GOLDEN.read_text())
    module = weights.module_from_config(golden["config"])
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *weights.example_inputs(module)))["params"]
    assert official_shapes(weights.TABLE, shapes) == {n: tuple(s) for n, s in golden["tensors"].items()}
    assert tree.count(shapes) == golden["parameters"]


def test_config_round_trip():
    golden = json.loads(GOLDEN.read_text())["config"]
    module = weights.module_from_config(golden, dtype=jnp.bfloat16, remat="full")
    assert (module.model.dtype, module.visual.remat) == (jnp.bfloat16, "full")
    assert weights.module_from_config(weights.config_of(module), dtype=jnp.bfloat16, remat="full") == module


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl'"),
        ({"text_config": {"vocab_size": 5}}, "hidden_size"),
        ({"text_config": {"use_sliding_window": True}}, "use_sliding_window"),
        ({"text_config": {"rope_scaling": {"type": "yarn"}}}, "'yarn'"),
        ({"vision_config": {"hidden_act": "relu"}}, "'relu'"),
    ],
)
def test_unsupported_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        weights.module_from_config(tiny_judge.config(50) | changes)


def test_names_in_all_transformers_versions():
    assert weights.official_name("model.visual.merger.ln_q.weight") == "visual.merger.ln_q.weight"
    assert weights.official_name("model.language_model.norm.weight") == "model.norm.weight"
    assert weights.official_name("model.norm.weight") == "model.norm.weight"


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7)])
def test_windows_hold_neighbours_and_join_again(grid):
    tokens = np.arange(2 * grid[0] * grid[1]).reshape(2, -1, 1)
    cut = models.split_windows(jnp.asarray(tokens + 1), grid, 2)  # 0 is padding
    assert cut.shape == (2 * -(-grid[0] // 2) * -(-grid[1] // 2), 4, 1)
    corner = {1, 2, grid[1] + 1, grid[1] + 2} if min(grid) > 1 else {1, 2}
    assert set(np.ravel(cut[0])) - {0} == corner
    np.testing.assert_array_equal(models.join_windows(cut, grid, 2) - 1, tokens)


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_windowed_attention_stays_in_its_window(grid):
    """Only windows: a pixel changes the tokens of its own 2 x 2 window, and all of them."""
    module = _vision(fullatt_block_indexes=())
    patches = _patches(grid)
    apply = jax.jit(lambda x: module.apply(params, x, grid))
    params = _params(module, grid)
    changed = np.abs(apply(patches.at[0, -1].add(1.0)) - apply(patches)).max(axis=(0, 2)) > 1e-6
    expected = np.zeros((grid[0] // 2, grid[1] // 2), bool)
    expected[(grid[0] // 2 - 1) // 2 * 2 :, (grid[1] // 2 - 1) // 2 * 2 :] = True
    np.testing.assert_array_equal(changed, expected.reshape(-1))


def test_full_attention_reaches_the_whole_image():
    module, grid = _vision(), (8, 8)
    patches = _patches(grid)
    params = _params(module, grid)
    apply = jax.jit(lambda x: module.apply(params, x, grid))
    assert np.abs(apply(patches.at[0, -1].add(1.0)) - apply(patches)).max(axis=(0, 2)).min() > 1e-6


def test_images_of_a_batch_do_not_mix():
    module, grid = _vision(), (6, 10)
    patches = _patches(grid, batch=3)
    params = _params(module, grid)
    apply = jax.jit(lambda x: module.apply(params, x, grid))
    np.testing.assert_allclose(apply(patches)[1:2], apply(patches[1:2]), atol=1e-5)


def test_remat_and_reference_attention_change_nothing():
    grid = (6, 10)
    patches = _patches(grid)
    params = _params(_vision(), grid)

    def gradient(module):
        return jax.jit(jax.grad(lambda p: (module.apply(p, patches, grid) ** 2).sum()))(params)

    ours = gradient(_vision(remat="dots", attention_implementation="reference"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), ours, gradient(_vision()))


def test_windowed_layers_cost_windows():
    """In the program of windowed layers alone, attention grows with the number of patches, not its square."""

    def flops(grid, **fields):
        module = _vision(hidden_size=8, intermediate_size=2, depth=1, **fields)
        params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 4, 96)), (2, 2)))
        patches = jax.ShapeDtypeStruct((1, grid[0] * grid[1], 96), jnp.float32)

        def attend(patches):
            qkv = jax.ShapeDtypeStruct((1, patches.shape[1], 2, 4), jnp.float32)
            run = lambda q, k, v: models.window_attention(
                q, k, v, grid=(grid[0] // 2, grid[1] // 2), window=2, implementation="xla"
            )
            return jax.jit(run).lower(qkv, qkv, qkv).compile().cost_analysis()["flops"]

        assert jax.eval_shape(lambda p, x: module.apply(p, x, grid), params, patches).shape[1] == grid[0] * grid[1] // 4
        return attend(patches)

    assert flops((32, 32)) / flops((16, 16)) == pytest.approx(4, rel=0.1)


def test_wrong_grids_are_refused():
    with pytest.raises(ValueError, match="5 x 4"):
        _vision().init(jax.random.key(0), _patches((5, 4)), (5, 4))


def test_sections_must_fill_a_head():
    module = models.TextModel(10, 16, 8, 1, 2, 1, mrope_section=(1, 1, 1))
    with pytest.raises(ValueError, match="mrope_section"):
        module.init(jax.random.key(0), jnp.zeros((1, 2, 16)), jnp.zeros((3, 1, 2)), jnp.ones((1, 2, 2), bool))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    module = _vision(dtype=jnp.bfloat16)
    params = _params(module, (4, 4))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low = jax.jit(lambda x: module.apply(params, x, (4, 4)))(_patches((4, 4)))
    assert low.dtype == jnp.bfloat16
    full = dataclasses.replace(module, dtype=jnp.float32)
    high = jax.jit(lambda x: full.apply(params, x, (4, 4)))(_patches((4, 4)))
    assert float(jnp.abs(low - high).max()) < 0.1 * float(jnp.abs(high).max())
