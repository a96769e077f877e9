"""The update on a mesh of eight simulated devices is the update on one."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax import lora, tree
from onereward_jax import mesh as meshes
from onereward_jax.flow.pipeline import FillPipeline
from onereward_jax.judge.judge import Judge
from onereward_jax.rl.step import make_step
from onereward_jax.train_state import compile_step, create_state
from onereward_jax.weights import clip, flux, qwen2_5_vl, t5
from tests.rl import tiny

ADAPTERS = lora.LoRA(rank=4, targets="attn|ff|proj")


def update(mesh, algorithm="dynamic", accumulate=1, adapters=None):
    """Gradient and metrics of one update of plain gradient descent at rate 1: θ − θ' is the gradient.

    The parameters that the algorithm reads for its reference, and only those, are other than the policy's: so both
    algorithms have the same gradient.
    """
    made, plain = tiny.models(), optax.sgd(1.0)
    config = dataclasses.replace(tiny.CONFIG, accumulate=accumulate)
    scale, params, frozen = 1.0, made.params, made.frozen
    if adapters:
        # Moved on from B = 0, where A has no gradient.
        params = jax.tree.map(lambda x: x + 0.02, adapters.init(params, jax.random.key(0)))
        scale, frozen = adapters.scale, frozen.replace(base=made.params)
    step = make_step(made.transformer, made.vae, tiny.judge_apply, plain, config, adapter_scale=scale)

    def create(params):
        state = create_state(params, plain, seed=0, reference=algorithm == "fixed")
        other = jax.tree.map(lambda x: x + 0.02, state.params)
        return state.replace(reference=other) if algorithm == "fixed" else state.replace(ema=other)

    compiled, state, frozen = compile_step(step, create, params, frozen, mesh)
    before = jax.device_get(state.params)
    batch = jax.device_put(tiny.batch(16), meshes.batch_sharding(mesh))
    after, metrics = compiled(state, frozen, batch)
    return jax.tree.map(np.subtract, before, jax.device_get(after.params)), metrics, after


@pytest.fixture(scope="module")
def one_device():
    return update(meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1]))


@pytest.mark.parametrize(("shape", "algorithm", "accumulate"), [((8, 1, 1), "dynamic", 2), ((2, 2, 2), "fixed", 1)])
def test_gradient_on_eight_devices_equals_one(one_device, shape, algorithm, accumulate):
    gradient, metrics, state = update(meshes.make_mesh(*shape), algorithm, accumulate)
    expected, expected_metrics, _ = one_device
    norm = optax.global_norm(expected)
    assert float(norm) > 0
    difference = optax.global_norm(jax.tree.map(jnp.subtract, gradient, expected))
    assert float(difference / norm) < 1e-5
    for name in ("learning/loss", "rewards/mean"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-5), name
    if shape == (2, 2, 2):
        split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
        assert len(split) > 20
        for copy in (state.ema, state.reference) if algorithm == "fixed" else (state.ema,):
            assert all(
                x.sharding == y.sharding
                for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(copy), strict=True)
            )


def test_gradient_of_an_adapter_on_eight_devices_equals_one():
    expected, _, _ = update(meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1]), adapters=ADAPTERS)
    gradient, _, state = update(meshes.make_mesh(2, 2, 2), adapters=ADAPTERS)
    difference = optax.global_norm(jax.tree.map(jnp.subtract, gradient, expected))
    assert float(difference) < 1e-5 * float(optax.global_norm(expected))
    for path, leaf in tree.flatten(state.params).items():
        assert not leaf.sharding.is_fully_replicated or path in ("proj_out/lora_b",), path


def test_mesh_must_use_all_devices():
    with pytest.raises(ValueError, match="needs 3 devices, but there are 8"):
        meshes.make_mesh(3, 1, 1)
    with pytest.raises(ValueError, match="leaves two axes open"):
        meshes.make_mesh(-1, -1, 1)
    assert dict(meshes.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


# Each model's products that close a block, and how many there are.
CLOSING = {
    "transformer": (flux, r"(to_out_0|to_add_out|net_2|proj_out)$", 6),
    "text_encoder": (clip, r"(out_proj|fc2)$", 2),
    "text_encoder_2": (t5, r"(SelfAttention/o|wo)$", 2),
    "judge": (qwen2_5_vl, r"(o_proj|down_proj|attn/proj|mlp_2)$", 5),
}


@pytest.mark.parametrize("name", CLOSING)
def test_a_block_opens_over_its_outputs_and_closes_over_its_inputs(name):
    """So that one reduction over `tensor` is all that a block needs."""
    weights, closing, count = CLOSING[name]
    base, judge = (
        FillPipeline.from_pretrained("miniature/base", dtype="float32"),
        Judge.from_pretrained("miniature/judge", "float32"),
    )
    module = {
        "transformer": base.transformer,
        "text_encoder": base.prompts.text_encoder,
        "text_encoder_2": base.prompts.text_encoder_2,
        "judge": judge.model,
    }[name]
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), *weights.example_inputs(module)))["params"]
    mesh, found = meshes.make_mesh(2, 2, 2), 0
    for path, leaf in tree.flatten(params).items():
        layer, _, kind = path.rpartition("/")
        spec = meshes.spec_for(meshes.TRANSFORMER_RULES, path, leaf.shape, mesh)
        if kind != "kernel":
            continue
        if re.search(closing, layer):
            assert tuple(spec)[-2:] == ("tensor", "fsdp"), path
            found += 1
        elif re.search(r"(blocks|layers|block|merger)/", layer) and not re.search(r"norm", layer):
            assert tuple(spec)[-2:] == ("fsdp", "tensor"), path
    assert found == count


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(2, 2, 2)
    rules = ((r"kernel$", meshes.P(..., "fsdp", "tensor")), (r".*", meshes.P()))
    assert meshes.spec_for(rules, "a/kernel", (3, 8, 6), mesh) == meshes.P(None, "fsdp", "tensor")
    assert meshes.spec_for(rules, "a/kernel", (3, 7, 6), mesh) == meshes.P(None, None, "tensor")
    assert meshes.spec_for(rules, "a/kernel", (), mesh) == meshes.P()
    assert meshes.spec_for(rules, "a/bias", (8,), mesh) == meshes.P()
