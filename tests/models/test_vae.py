"""AutoencoderKL alone; tests/parity compares it with diffusers."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree as trees
from onereward_jax.errors import UserError
from onereward_jax.weights.names import name_rules, vae
from tests.support.random_params import random_params

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "flux.1-fill-dev.vae.json").read_text())
TINY = {
    "block_out_channels": [4, 8, 8],
    "layers_per_block": 1,
    "latent_channels": 6,
    "norm_num_groups": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(module, params, x, method=None):
    return module.apply(params, x, method=method)


@pytest.fixture(scope="module")
def tiny():
    module = vae.module_from_config(TINY)
    return module, {"params": random_params(module, vae)}


def images(height=16, width=8):
    return np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def test_the_full_size_has_every_official_tensor():
    module = vae.module_from_config(GOLDEN["config"])
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *vae.example_inputs(module)))["params"]
    official = name_rules.official_shapes(vae.TABLE, shapes)
    assert official == {name: tuple(shape) for name, shape in GOLDEN["tensors"].items()}
    assert trees.count(shapes) == GOLDEN["parameters"]
    assert (module.scaling_factor, module.shift_factor) == (0.3611, 0.1159)


def test_shapes(tiny):
    module, params = tiny
    mean, log_variance = apply(module, params, images(), "encode")
    assert mean.shape == log_variance.shape == (2, 4, 2, 6)
    assert apply(module, params, mean, "decode").shape == (2, 16, 8, 3)


def test_sides_that_do_not_fit_are_explained(tiny):
    module, params = tiny
    with pytest.raises(UserError):
        apply(module, params, images(height=18), "encode")


def test_bfloat16_returns_float32_and_stays_close(tiny):
    module, params = tiny
    rough = module.clone(dtype=jnp.bfloat16)
    exact, close = (apply(m, params, images()) for m in (module, rough))
    assert close.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(close - exact) / np.linalg.norm(exact) < 0.1
    shapes = jax.eval_shape(lambda: rough.init(jax.random.key(0), *vae.example_inputs(rough)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


def test_remat_computes_activations_again_with_the_same_result(tiny):
    """The backward pass of the rematerialised decoder holds more convolutions, its gradient is the same."""
    module, params = tiny
    latents = np.random.default_rng(1).standard_normal((1, 2, 4, 6)).astype(np.float32)

    def gradient(policy):
        decode = lambda z: module.clone(remat=policy).apply(params, z, method="decode").sum()
        return jax.jit(jax.grad(decode))

    def convolutions(policy):
        return str(jax.make_jaxpr(gradient(policy))(latents)).count("conv_general_dilated[")

    assert convolutions("full") > convolutions("none")
    np.testing.assert_allclose(gradient("full")(latents), gradient("none")(latents), rtol=1e-4, atol=1e-4)


def test_missing_fields_have_the_official_defaults():
    module = vae.module_from_config({})
    assert (module.latent_channels, module.use_quant_conv, module.shift_factor) == (4, True, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "relu"}, "act_fn"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "down_block_types"),
    ],
)
def test_configurations_that_cannot_be_loaded_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        vae.module_from_config(TINY | changes)


def test_unknown_fields_are_explained():
    with pytest.raises(ValueError, match="speed"):
        vae.module_from_config(TINY, speed=3)
