"""Meshes, and how parameters are split over them."""

import re

import jax
import pytest
from jax.sharding import AbstractMesh

from onereward_jax import tree
from onereward_jax.errors import UserError
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel.activations import activation_axes
from onereward_jax.parallel.mesh import AXES, P, make_mesh
from onereward_jax.parallel.sharding_rules import TRANSFORMER_RULES, spec_for, warn_of_unsharded
from onereward_jax.weights.names import clip, flux, qwen2_5_vl, t5


def test_mesh_must_use_all_devices():
    with pytest.raises(UserError):
        make_mesh(3, 1, 1)
    with pytest.raises(UserError):
        make_mesh(-1, -1, 1)
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(("samples", "data", "shape"), [(4, 1, (1, 4, 2)), (8, 1, (1, 8, 1)), (6, 2, (2, 1, 4))])
def test_two_open_axes_share_the_samples_evenly_and_the_rest_splits_layers(samples, data, shape):
    assert tuple(make_mesh(data, -1, -1, samples=samples).shape.values()) == shape


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
    mesh, found = make_mesh(2, 2, 2), 0
    for path, leaf in tree.flatten(params).items():
        layer, _, kind = path.rpartition("/")
        spec = spec_for(TRANSFORMER_RULES, path, leaf.shape, mesh)
        if kind != "kernel":
            continue
        if re.search(closing, layer):
            assert tuple(spec)[-2:] == ("tensor", "fsdp"), path
            found += 1
        elif re.search(r"(blocks|layers|block|merger)/", layer) and not re.search(r"norm", layer):
            assert tuple(spec)[-2:] == ("fsdp", "tensor"), path
    assert found == count


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(2, 2, 2)
    rules = ((r"kernel$", P(..., "fsdp", "tensor")), (r".*", P()))
    assert spec_for(rules, "a/kernel", (3, 8, 6), mesh) == P(None, "fsdp", "tensor")
    assert spec_for(rules, "a/kernel", (3, 7, 6), mesh) == P(None, None, "tensor")
    assert spec_for(rules, "a/kernel", (), mesh) == P()
    assert spec_for(rules, "a/bias", (8,), mesh) == P()


def test_large_arrays_that_stay_whole_are_named():
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, "float32")
    tree = {"split/kernel": shape(512, 512), "odd/kernel": shape(511, 513), "small/bias": shape(512)}
    with pytest.warns(UserWarning, match=r"odd/kernel .*mesh\.fsdp") as said:
        warn_of_unsharded(tree, make_mesh(2, 2, 2), 0.9)
    assert len(said) == 1
    warn_of_unsharded(tree, make_mesh(2, 2, 2), 2)
    warn_of_unsharded(tree, make_mesh(8, 1, 1), 0.9)  # which splits nothing


def test_samples_come_first_and_tokens_are_split_over_what_is_left():
    def axes(mesh, *sizes):
        return activation_axes(AbstractMesh(mesh, AXES), *sizes)

    assert axes((2, 4, 2), 8, 64) == (("data", "fsdp"), None)
    assert axes((8, 8, 1), 8, 64) == (("fsdp",), ("data",))
    assert axes((8, 8, 1), 16, 64) == (("fsdp",), ("data",))
    assert axes((4, 2, 1), 4, 64) == (("data",), ("fsdp",))
    assert axes((4, 2, 1), 1, 64) == (None, ("data", "fsdp"))
    assert axes((4, 2, 1), 4, 63) == (("data",), None)
    assert axes((1, 8, 2), 3, 64)[1] == ("fsdp",)
