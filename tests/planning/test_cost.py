"""The analytic count equals the compiler's where that is right: without loops, or with one iteration of each."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from onereward_jax.errors import UserError
from onereward_jax.models.attention import attention
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.planning.cost import cost_of
from onereward_jax.weights.load import param_shapes
from onereward_jax.weights.names import flux, qwen2_5_vl, vae

FLUX = {
    "in_channels": 48,
    "out_channels": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
VAE = {"block_out_channels": (16, 32), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
JUDGE = {
    "text_config": {
        "vocab_size": 500,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": (4, 4, 4)},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": 96,
        "fullatt_block_indexes": (0,),
        "window_size": 112,
        "patch_size": 14,
    },
}


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def compilers_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def gradient(apply, module, kind):
    """Gradient of the sum of squares in parameters and inputs, so that every product has its backward pass."""
    params = param_shapes(module, kind)
    inputs = jax.tree.map(lambda x: array(*jnp.shape(x), dtype=jnp.result_type(x)), apply.inputs)
    loss = lambda params, inputs: jnp.square(apply(module, params, inputs)).sum()
    return jax.value_and_grad(loss, argnums=(0, 1)), params, inputs


def model(kind):
    if kind == "transformer":
        module = flux.module_from_config(FLUX, remat="full")

        def apply(module, params, inputs):
            ids = jnp.zeros((inputs[0].shape[1], 3)), jnp.zeros((inputs[1].shape[1], 3))
            return module.apply({"params": params}, *inputs[:4], *ids, inputs[4])

        apply.inputs = [array(2, 64, 48), array(2, 16, 64), array(2, 32), array(2), array(2)]
    elif kind == "vae":
        module = vae.module_from_config(VAE)
        apply = lambda module, params, images: module.apply({"params": params}, images)
        apply.inputs = array(2, 32, 24, 3)
    else:
        module = qwen2_5_vl.module_from_config(JUDGE)

        def apply(module, params, inputs):
            call = functools.partial(module.apply, {"params": params})
            tokens = call(inputs, (8, 8), method="encode_image")
            positions, mask = jnp.zeros((3, 1, tokens.shape[1])), jnp.ones((1, *[tokens.shape[1]] * 2), bool)
            return call(call(tokens, positions, mask, method="decode"), method="unembed")

        apply.inputs = array(2, 64, 3 * 2 * 14 * 14)
    return gradient(apply, module, kind)


@pytest.mark.parametrize("kind", ["transformer", "vae", "judge"])
def test_a_model_and_its_gradient_cost_what_the_compiler_counts(kind):
    function, *arguments = model(kind)
    assert cost_of(function, *arguments).flops == pytest.approx(compilers_flops(function, *arguments), rel=0.05)


@pytest.mark.parametrize(
    ("strides", "padding", "base", "window", "groups"),
    [((1, 1), "SAME", (1, 1), (1, 1), 1), ((2, 1), ((0, 1), (2, 0)), (1, 2), (1, 2), 2)],
)
def test_convolutions_count_neither_padding_nor_dilation_holes(strides, padding, base, window, groups):
    def convolve(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, base, window, names, groups)

    both = lambda x, kernel: jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))(x, kernel)
    arguments = array(2, 9, 7, 8), array(3, 3, 8 // groups, 4)
    for function in (convolve, both):
        assert cost_of(function, *arguments).flops == pytest.approx(compilers_flops(function, *arguments), rel=0.01)


def test_the_traffic_of_products_is_the_compilers():
    chain = lambda a, b, c: (a @ b) @ c
    arguments = array(32, 64), array(64, 48), array(48, 16)
    inner = cost_of(chain, *arguments).bytes - 4 * (32 * 64 + 64 * 48 + 48 * 16 + 32 * 16)  # less the program's ends
    assert inner == pytest.approx(jax.jit(chain).lower(*arguments).cost_analysis()["bytes accessed"], rel=0.05)


def test_loops_branches_and_parts():
    product = 2 * 5 * 5 * 3

    def function(x, layers, end):
        def body(x, layer):
            double, single = (lambda x: layer @ (layer @ x)), (lambda x: layer @ x)
            with jax.named_scope("choice"):
                return jax.lax.cond(end > 0, double, single, x), None

        with jax.named_scope("layers"):
            x = jax.jit(lambda x: jax.lax.scan(jax.checkpoint(body), x, layers)[0])(x)
        with jax.named_scope("rollout"):
            return jax.lax.fori_loop(0, end, lambda i, x: layers[0] @ x, x)

    arguments = array(5, 3), array(4, 5, 5), array(dtype=jnp.int32)
    count = functools.partial(cost_of, function, *arguments, parts=("layers", "rollout"))
    found = count(trips={"rollout": 10}, shares={"choice": (0.75, 0.25)})  # branch 0 is that of False
    assert found.parts["layers"] == pytest.approx(4 * 1.25 * product)
    assert found.parts["rollout"] == pytest.approx(10 * product, rel=0.1)  # and the loop's counter
    assert sum(found.parts.values()) == found.flops
    assert count(trips={"rollout": 10}).parts["layers"] == pytest.approx(4 * 2 * product)
    with pytest.raises(UserError, match="/rollout"):
        count()


def test_shares_do_not_apply_inside_a_kernel():
    attend = lambda x: attention(x, x, x, implementation="splash", blocks=(128, 128))

    def in_scope(x):
        with jax.named_scope("choice"):
            return attend(x)

    queries = array(1, 256, 1, 128)
    assert cost_of(in_scope, queries, shares={"choice": (1.0, 0.0)}).flops == cost_of(attend, queries).flops


def test_every_device_of_shard_map_counts():
    mesh = make_mesh(2, 2, 2)
    product = lambda a, b: a @ b
    split = jax.shard_map(product, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    arguments = array(8, 16), array(16, 4)
    # Whoever does the same as another does it, too: here over two axes of two.
    assert cost_of(split, *arguments).flops == 4 * cost_of(product, *arguments).flops
