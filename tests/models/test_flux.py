"""FluxTransformer and rope alone; tests/parity compares them with diffusers."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree as trees
from onereward_jax.errors import UserError
from onereward_jax.models import rope
from onereward_jax.models.flux import modulate
from onereward_jax.parallel.activations import activation_axes
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.weights.load import param_shapes
from onereward_jax.weights.names import flux, name_rules
from tests.support.random_params import random_params

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "flux.1-fill-dev.transformer.json").read_text())
TINY = {
    "in_channels": 12,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 5,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 2, 2),
}


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *arguments):
    return module.apply({"params": params}, *arguments)


def inputs(batch=2, seed=0):
    draw = np.random.default_rng(seed)
    normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)
    ids = np.array([[0, row, column] for row in range(2) for column in range(3)], np.float32)
    return (
        normal(batch, 6, TINY["in_channels"]),
        normal(batch, 4, TINY["joint_attention_dim"]),
        normal(batch, TINY["pooled_projection_dim"]),
        draw.uniform(size=batch).astype(np.float32),
        ids,
        np.zeros((4, 3), np.float32),
        draw.uniform(1, 4, batch).astype(np.float32),
    )


def test_the_full_size_has_every_official_tensor():
    module = flux.module_from_config(GOLDEN["config"])
    shapes = param_shapes(module, "transformer")
    official = name_rules.official_shapes(flux.TABLE, shapes)
    assert official == {name: tuple(shape) for name, shape in GOLDEN["tensors"].items()}
    assert trees.count(shapes) == GOLDEN["parameters"]


def test_parameters_are_float32_stacked_and_the_only_collection():
    module = flux.module_from_config(TINY, dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *flux.example_inputs(module)))
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    flat = trees.flatten(variables["params"])
    assert flat["transformer_blocks/attn/to_q/kernel"].shape == (2, 16, 16)
    assert flat["single_transformer_blocks/proj_out/kernel"].shape == (2, 80, 16)


def test_the_untrained_velocity_is_zero():
    module = flux.module_from_config(TINY)
    params = jax.jit(lambda: module.init(jax.random.key(0), *flux.example_inputs(module)))()["params"]
    assert not np.asarray(apply(module, params, *inputs())).any()


def test_bfloat16_computes_in_bfloat16_and_stays_close():
    params = random_params(flux.module_from_config(TINY), flux)
    exact = apply(flux.module_from_config(TINY), params, *inputs())
    rough = apply(flux.module_from_config(TINY, dtype=jnp.bfloat16), params, *inputs())
    assert rough.dtype == jnp.bfloat16
    error = np.linalg.norm(rough.astype(np.float32) - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.1


def test_samples_of_a_batch_do_not_see_each_other():
    module = flux.module_from_config(TINY)
    params = random_params(module, flux)
    batch = inputs()
    together = apply(module, params, *batch)
    for i in range(2):
        alone = [x if x.ndim == 2 and len(x) in (4, 6) else x[i : i + 1] for x in batch]
        np.testing.assert_allclose(apply(module, params, *alone)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("argument", [0, 1, 2, 3, 4, 5, 6])
def test_every_argument_matters(argument):
    """Each argument, the positions of text and image tokens among them, changes the velocity."""
    module = flux.module_from_config(TINY)
    params = random_params(module, flux)
    before = list(inputs())
    after = list(before)
    after[argument] = np.random.default_rng(9).uniform(size=before[argument].shape).astype(np.float32)
    assert np.abs(apply(module, params, *before) - apply(module, params, *after)).max() > 1e-4


def test_wrong_calls_are_explained():
    module = flux.module_from_config(TINY)
    params = random_params(module, flux)
    with pytest.raises(UserError):
        apply(module, params, *inputs()[:-1])
    wrong = flux.module_from_config(TINY | {"axes_dims_rope": (4, 4, 4)})
    with pytest.raises(UserError, match="attention_head_dim"):
        apply(wrong, params, *inputs())
    with pytest.raises(UserError, match="'some'"):
        apply(flux.module_from_config(TINY, remat="some"), params, *inputs())


def test_configurations_that_cannot_be_loaded_are_explained():
    with pytest.raises(UserError, match="patch_size"):
        flux.module_from_config(TINY | {"patch_size": 2})
    with pytest.raises(ValueError, match="num_layers"):
        flux.module_from_config({name: value for name, value in TINY.items() if name != "num_layers"})
    with pytest.raises(ValueError, match="speed"):
        flux.module_from_config(TINY, speed=3)


def test_out_channels_default_to_in_channels():
    assert flux.module_from_config(TINY | {"out_channels": None}).out_channels == TINY["in_channels"]


def test_modulate_normalises_in_float32():
    x = 1000 + jnp.arange(8, dtype=jnp.float32)[None]  # in bfloat16 the mean would swallow the differences
    y = modulate(x, jnp.zeros(8), jnp.zeros(8))
    np.testing.assert_allclose(y.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(), 1, rtol=1e-5)


def test_rope_sees_only_differences_of_positions():
    draw = np.random.default_rng(0)
    query, key = draw.standard_normal((2, 1, 1, 1, 16)).astype(np.float32)

    def product(query_position, key_position):
        turned = [
            rope.rotate(x, rope.rotation(np.array([position], np.float32), (4, 6, 6)))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    np.testing.assert_allclose(product((0, 3, 7), (0, 1, 2)), product((5, 13, 17), (5, 11, 12)), rtol=1e-4)
    assert abs(product((0, 3, 7), (0, 1, 2)) - product((0, 1, 2), (0, 3, 7))) > 1e-3


def test_rope_keeps_lengths_and_the_first_position():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 8)).astype(np.float32)
    ids = np.array([[0, 0, 0], [1, 2, 3], [0, 5, 9]], np.float32)
    turned = rope.rotate(x, rope.rotation(ids, (4, 2, 2)))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    assert rope.rotate(x.astype(jnp.bfloat16), rope.rotation(ids, (4, 2, 2))).dtype == jnp.bfloat16


@pytest.mark.parametrize(("axes", "message"), [((4, 4), "3 axes"), ((3, 3, 2), "even")])
def test_rope_explains_wrong_axes(axes, message):
    with pytest.raises(ValueError, match=message):
        rope.rotation(np.zeros((2, 3), np.float32), axes)


def test_sharding_tokens_changes_nothing():
    """Fewer samples than `data` and `fsdp` have devices."""
    module = flux.module_from_config(TINY, remat="full")
    params, mesh = random_params(module, flux), make_mesh(2, 2, 2)
    places = shardings(params, mesh)
    assert activation_axes(mesh, 2, 8) == (("fsdp",), ("data",))

    def gradient(params, *batch):
        def loss(params):
            velocity = module.apply({"params": params}, *batch)
            return jnp.square(velocity).sum(), velocity

        (_, velocity), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return velocity, gradient

    def on_mesh(params, *batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return gradient(params, *batch)

    batch = inputs()
    velocity, expected = jax.jit(gradient)(params, *batch)
    compiled = jax.jit(on_mesh, in_shardings=(places, *[None] * 7), out_shardings=(None, places))
    found_velocity, found = compiled(jax.device_put(params, places), *batch)
    assert np.linalg.norm(found_velocity - velocity) < 1e-5 * np.linalg.norm(velocity)
    for path, one in trees.flatten(jax.device_get(found)).items():
        other = trees.flatten(expected)[path]
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other), path
