"""Black Forest Labs' names: diffusers' own conversion of our file gives back what diffusers' model holds."""

import inspect

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from onereward_jax.weights.bfl import save_bfl  # noqa: E402
from onereward_jax.weights.names import flux  # noqa: E402
from tests.support import official_flux, parity  # noqa: E402


def official_conversion():
    """diffusers' function, with the width of the tiny model where it has that of the full one written in."""
    from diffusers.loaders import single_file_utils

    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    width = official_flux.CONFIG["attention_head_dim"] * official_flux.CONFIG["num_attention_heads"]
    assert source.count("inner_dim = 3072") == 1
    names = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), names)
    return names["convert_flux_transformer_checkpoint_to_diffusers"]


def test_diffusers_reads_our_file(tmp_path):
    ours, theirs = official_flux.pair()
    params = parity.params_from_torch(theirs, flux.TABLE, ours, flux.example_inputs(ours))
    save_bfl(tmp_path / "flux.safetensors", params, "float32")
    tensors = safetensors_torch.load_file(tmp_path / "flux.safetensors")
    converted = official_conversion()(dict(tensors))
    expected = theirs.state_dict()
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(converted[name], tensor), name
    assert "double_blocks.0.img_attn.qkv.weight" in tensors
