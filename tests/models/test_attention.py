"""Splash attention equals the reference, alone and on a mesh; "auto" chooses by platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from onereward_jax.errors import UserError
from onereward_jax.models import attention as module
from onereward_jax.models.attention import attention
from onereward_jax.parallel.mesh import AXES, P, make_mesh
from onereward_jax.planning.cost import cost_of, programs_in


def inputs(batch, length, heads, size):
    """Queries, keys, values, and the gradient of the output."""
    draw = np.random.default_rng(0)
    return [draw.standard_normal((batch, length, heads, size)).astype(np.float32) for _ in range(4)]


def output_and_gradients(implementation, blocks, query, key, value, weights):
    def loss(query, key, value):
        x = attention(query, key, value, implementation=implementation, blocks=blocks)
        return (x * weights).sum(), x

    (_, x), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    return x, *gradients


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)


@pytest.mark.parametrize("blocks", [(384, 128), (256, 256)], ids=["blocks that divide", "a last block to be filled"])
def test_splash_equals_the_reference(blocks):
    arrays = inputs(1, 384, 2, 128)  # text and image, as FLUX has them
    expected = jax.jit(functools.partial(output_and_gradients, "reference", blocks))(*arrays)
    assert_equal(jax.jit(functools.partial(output_and_gradients, "splash", blocks))(*arrays), expected)


def test_splash_on_a_mesh_equals_the_reference_on_one_device():
    """Samples over `data` and `fsdp`, heads over `tensor`."""
    arrays, mesh = inputs(4, 128, 2, 16), make_mesh(2, 2, 2)

    def on_mesh(*arrays):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return output_and_gradients("splash", (128, 128), *arrays)

    place = jax.NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    found = jax.jit(on_mesh, in_shardings=place)(*arrays)
    assert all(x.sharding.is_equivalent_to(place, 4) for x in found)
    assert_equal(found, output_and_gradients("reference", (128, 128), *arrays))


def kernels(jaxpr):
    """List the kernels in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"]
        else:
            for program in programs_in(equation.params.values()):
                yield from kernels(program)


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_auto_follows_the_platform_of_the_mesh(platform, monkeypatch):
    query = jax.ShapeDtypeStruct((4, 256, 2, 128), jnp.bfloat16)
    device = AbstractDevice(device_kind="", num_cores=None, platform=platform)
    program = lambda **more: jax.make_jaxpr(functools.partial(attention, implementation="auto", **more))(*[query] * 3)
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2, 2), AXES, abstract_device=device)):
        if platform == "gpu":
            for newer, expected in ((True, "cudnn"), (False, "xla")):
                monkeypatch.setattr(module, "_gpus_have_cudnn_attention", lambda newer=newer: newer)
                assert module._best(query, True) == expected
        else:
            names = ["splash_mha_fwd_no_residuals"] if platform == "tpu" else []
            assert list(kernels(program().jaxpr)) == names
            assert not list(kernels(program(mask=jnp.ones((256, 256), bool)).jaxpr))


def test_arguments_that_splash_lacks_are_refused():
    x = jnp.ones((1, 128, 1, 8))
    with pytest.raises(UserError):
        attention(x, x, x, bias=jnp.zeros((1, 1, 128, 128)), implementation="splash")
    with pytest.raises(UserError, match="100, 128"):
        attention(x, x, x, implementation="splash", blocks=(100, 128))
    with pytest.raises(UserError):
        attention(x, x, x, implementation="flash")


def test_a_kernel_costs_its_products_and_block_reads():
    """Of its backward pass the plain way has 4 products; the two kernels each make the logits and their gradients
    again, so they have 7."""
    length, heads, size = 1536, 2, 128
    arrays = [jax.ShapeDtypeStruct((1, length, heads, size), jnp.bfloat16)] * 4
    product = 2 * heads * length**2 * size

    def count(implementation):
        forward = lambda query, key, value, weights: attention(query, key, value, implementation=implementation)
        both = functools.partial(output_and_gradients, implementation, (768, 768))
        return cost_of(forward, *arrays), cost_of(both, *arrays)

    (forward, both), (plain, plain_both) = count("splash"), count("xla")
    assert forward.flops == pytest.approx(plain.flops, rel=0.05)
    assert both.flops - plain_both.flops == pytest.approx(3 * product, rel=0.05)
    # Keys and values are read for each of the two blocks of queries, and logits never written; beside each of the
    # program's arrays, and three blocks in which the kernel keeps its sums.
    array, kept = 2 * heads * length * size, 3 * 768 * size * 4
    assert forward.bytes == (1 + 2 * 2 + 1) * array + 5 * array + kept
