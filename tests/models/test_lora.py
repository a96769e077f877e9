"""Adapters as parameter trees: attached and merged, they agree in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.errors import UserError
from onereward_jax.models import lora
from onereward_jax.models.lora import LoRA
from onereward_jax.weights.names import flux
from tests.support import tiny_fill


def random(adapter):
    """No zeros in B, as after training."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.3 * draw.standard_normal(x.shape).astype(np.float32), adapter)


@pytest.fixture(scope="module")
def params():
    return tiny_fill.transformer()[1]


def test_a_new_adapter_has_the_matching_layers_and_changes_nothing(params):
    adapter = LoRA(rank=3, targets=r"attn/to_[qv]$|^proj_out$").init(params, jax.random.key(0))
    double, single = "transformer_blocks/attn", "single_transformer_blocks/attn"
    assert set(lora.factors(adapter)) == {f"{x}/{y}" for x in (double, single) for y in ("to_q", "to_v")} | {"proj_out"}
    a, b = lora.factors(adapter)["proj_out"]
    assert (a.shape, b.shape) == ((32, 3), (3, 16))
    a, b = lora.factors(adapter)[f"{double}/to_q"]
    assert (a.shape, b.shape) == ((1, 32, 3), (1, 3, 32))
    assert 0 < float(jnp.abs(a).max()) <= 32**-0.5
    merged = lora.merge(params, adapter, 2.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    with pytest.raises(UserError, match="'to_x'"):
        LoRA(rank=3, targets="to_x").init(params, jax.random.key(0))


def test_attached_and_merged_adapters_agree_in_values_and_gradients(params):
    adapter = random(LoRA(rank=3).init(params, jax.random.key(0)))
    assert set(lora.factors(adapter)) == set(lora.layers(params))
    module, _ = tiny_fill.transformer()
    inputs = [jax.random.normal(jax.random.key(5), x.shape) + x for x in flux.example_inputs(module)]

    def outputs(adapter, form):
        return jnp.sum(module.apply({"params": form(params, adapter, 0.7)}, *inputs) ** 2)

    with jax.default_matmul_precision("highest"):
        live, merged = (
            jax.jit(jax.value_and_grad(outputs), static_argnums=1)(adapter, form) for form in (lora.attach, lora.merge)
        )
        plain = jax.jit(outputs, static_argnums=1)({}, lora.attach)
    assert abs(float(live[0] - plain)) > 0.01 * float(plain)
    assert float(live[0]) == pytest.approx(float(merged[0]), rel=1e-5)
    for path, gradient in tree.flatten(merged[1]).items():
        found = tree.flatten(live[1])[path]
        assert float(jnp.linalg.norm(gradient)) > 0, path
        assert float(jnp.linalg.norm(found - gradient)) < 1e-4 * float(jnp.linalg.norm(gradient)), path


def test_detach_inverts_attach(params):
    adapter = random(LoRA(rank=2, targets="attn").init(params, jax.random.key(0)))
    plain, detached = lora.detach(lora.attach(params, adapter, 2.0))
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    jax.tree.map(np.testing.assert_array_equal, lora.factors(detached).keys(), lora.factors(adapter).keys())
    jax.tree.map(np.testing.assert_allclose, lora.merge(params, detached), lora.merge(params, adapter, 2.0))
    assert jax.tree.structure(lora.attach(params, {})) == jax.tree.structure(params)


def test_adapters_of_different_ranks_and_layers_combine(params):
    first, second = (
        jax.device_get(random(LoRA(rank, targets=targets).init(params, jax.random.key(rank))))
        for rank, targets in ((2, "to_q"), (3, "to_q|proj_out"))
    )
    one_by_one = lora.merge(lora.merge(params, first, 0.5), second, -2.0)
    together = lora.merge(params, lora.combine([(first, 0.5), (second, -2.0)]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), together, one_by_one)
