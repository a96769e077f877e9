"""Black Forest Labs' names: every tensor of the transformer once; fusing and splitting is bit-exact."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax.weights import bfl
from onereward_jax.weights.names import flux, name_rules
from tests.support.tiny_weights import FLUX, random_params


@pytest.fixture(scope="module")
def params():
    return random_params("transformer")


def test_names_and_shapes_equal_the_release(params):
    """A fused tensor has the rows of its parts."""
    names = bfl.fused_names(name_rules.official_shapes(flux.TABLE, params))
    shapes = {name: array.shape for name, array in bfl.fuse(names, _reader(params))}
    width = FLUX.num_attention_heads * FLUX.attention_head_dim
    assert shapes["double_blocks.1.img_attn.qkv.weight"] == (3 * width, width)
    assert shapes["double_blocks.0.txt_attn.norm.key_norm.scale"] == (FLUX.attention_head_dim,)
    assert shapes["single_blocks.2.linear1.bias"] == (7 * width,)
    assert shapes["final_layer.adaLN_modulation.1.weight"] == (2 * width, width)
    assert shapes["guidance_in.in_layer.weight"] == (width, 256)
    parts = [part for parts in names.values() for part in parts]
    assert sorted(parts) == sorted(name_rules.official_shapes(flux.TABLE, params))


def test_the_last_norm_has_the_shift_first(params):
    fused = dict(bfl.fuse(bfl.fused_names(name_rules.official_shapes(flux.TABLE, params)), _reader(params)))
    scale, shift = np.split(_reader(params)("norm_out.linear.bias"), 2)
    np.testing.assert_array_equal(fused["final_layer.adaLN_modulation.1.bias"], np.concatenate([shift, scale]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_round_trip_is_bit_exact(params, dtype, tmp_path):
    params = jax.tree.map(lambda x: x.astype(bfl.param_dtype_of(dtype)), params)
    bfl.save_bfl(tmp_path / "flux.safetensors", params, dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["flux.safetensors"]
    tensors = load_file(tmp_path / "flux.safetensors")
    shapes = name_rules.official_shapes(flux.TABLE, params)
    read = bfl.split(bfl.fused_names(shapes), shapes, tensors.__getitem__)
    again = name_rules.from_official(flux.TABLE, jax.eval_shape(lambda: params), read)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), params, again)
    assert all(jax.tree.leaves(same))


def test_the_full_model_has_all_its_names():
    with open("tests/goldens/flux.1-fill-dev.transformer.json") as file:
        official = json.load(file)["tensors"]
    names = bfl.fused_names(official)
    # 7 embedders and ends with two tensors each; 20 + 4 - 4 a double block, 6 + 2 a single one.
    assert len(names) == 2 * (2 + 6 + 2) + 19 * (2 * (2 + 2 * 4) + 4) + 38 * (2 * 3 + 2)
    with pytest.raises(KeyError, match=r"unknown\.weight"):
        bfl.fused_names(["unknown.weight"])


def _reader(params):
    tensors = name_rules.official_tensors(flux.TABLE, params)
    return lambda name: tensors[name]()
