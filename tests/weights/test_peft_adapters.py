"""Adapter files; tests/parity compares their effect with diffusers and PEFT."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onereward_jax.errors import UserError
from onereward_jax.models import lora
from onereward_jax.weights.peft_adapters import is_adapter, load_adapters, save_adapter, with_adapters
from tests.support import tiny_fill

Q = "transformer.transformer_blocks.0.attn.to_q"


def zeros(*shape):
    return np.zeros(shape, np.float32)


def write(path, **tensors):
    save_file({name.replace("__", "."): x for name, x in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def params():
    return tiny_fill.transformer()[1]


def test_saved_adapters_load_with_their_scale(params, tmp_path):
    adapter = lora.LoRA(3, targets="attn|proj_out").init(params, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 1, adapter)
    assert not is_adapter(tmp_path)
    save_adapter(tmp_path, "transformer", adapter)
    (tmp_path / "README.md").write_text("kept")
    save_adapter(tmp_path, "transformer", adapter, 2.0)
    assert is_adapter(tmp_path)
    assert (tmp_path / "README.md").read_text() == "kept"
    found = load_adapters("transformer", params, [(tmp_path, 0.5)])
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(adapter))
    attached = with_adapters("transformer", params, [(tmp_path, 0.5)])
    jax.tree.map(np.testing.assert_array_equal, attached, lora.attach(params, adapter))
    one = f"{Q}.lora_A.weight"
    assert load_file(tmp_path / "pytorch_lora_weights.safetensors")[one].shape == (3, 32)
    assert with_adapters("transformer", params, None).keys() == params.keys()


def test_layers_without_an_adapter_and_lower_ranks_are_filled_with_zeros(tmp_path):
    kernels = {"single_transformer_blocks": {"attn": {"to_q": {"kernel": zeros(3, 4, 5)}}}}
    name = "transformer.single_transformer_blocks.{}.attn.to_q.lora_{}.weight"
    file = tmp_path / "a.safetensors"
    rank_of = {0: 1, 2: 3}
    save_file(
        {
            name.format(layer, factor): np.ones((rank, 4) if factor == "A" else (5, rank), np.float32)
            for layer, rank in rank_of.items()
            for factor in "AB"
        },
        file,
    )
    [(a, b)] = lora.factors(load_adapters("transformer", kernels, [(file, 1.0)])).values()
    assert (a.shape, b.shape) == ((3, 4, 3), (3, 3, 5))
    np.testing.assert_array_equal((a @ b)[:, 0, 0], [1, 0, 3])


def test_a_component_reads_only_its_part_of_a_file(params, tmp_path):
    """kohya's files also hold an adapter for CLIP, which is merged, since its layers can't read one."""
    names = {"lora_unet_double_blocks_0_img_attn_proj": 32, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": 16}
    tensors = {}
    for name, width in names.items():
        tensors |= {f"{name}.lora_down.weight": zeros(2, width) + 1, f"{name}.lora_up.weight": zeros(width, 2) + 1}
        tensors[f"{name}.alpha"] = np.float32([1.0])
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    [(path, (a, b))] = lora.factors(load_adapters("transformer", params, [(file, 1.0)])).items()
    assert path == "transformer_blocks/attn/to_out_0"
    np.testing.assert_array_equal(a @ b, np.ones((1, 32, 32)))  # alpha / rank = 1/2, of rank 2
    clip = {"layers": {"self_attn": {"q_proj": {"kernel": zeros(1, 16, 16)}}}}
    merged = with_adapters("text_encoder", clip, file)
    np.testing.assert_array_equal(merged["layers"]["self_attn"]["q_proj"]["kernel"], np.ones((1, 16, 16)))
    assert load_adapters("text_encoder_2", {}, [(file, 1.0)]) == {}


def test_all_mismatches_are_in_one_message(params, tmp_path):
    file = tmp_path / "bad.safetensors"
    save_file(
        {
            f"{Q}.lora_A.weight": zeros(2, 31),
            f"{Q}.lora_B.weight": zeros(32, 2),
            f"{Q}.dora_scale": zeros(32),
            "transformer.transformer_blocks.7.attn.to_q.lora_A.weight": zeros(2, 32),
            "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": zeros(2, 32),
            "transformer.proj_out.lora_A.weight": np.zeros((2, 32), np.int32),
            "transformer.proj_out.lora_B.weight": zeros(8, 2),
        },
        file,
    )
    with pytest.raises(UserError) as error:
        load_adapters("transformer", params, [(file, 1.0)])
    for part in (
        f"neither A, B nor alpha: {Q}.dora_scale",
        "no such layer: transformer_blocks.7.attn.to_q",
        "incomplete: transformer_blocks.0.attn.to_k has no B",
        "wrong dtype: proj_out is I32",
        "wrong shape: transformer_blocks.0.attn.to_q has A (2, 31) and B (32, 2), the model needs (r, 32) and",
    ):
        assert part in str(error.value)


def test_other_files_are_refused(params, tmp_path):
    load = lambda path: load_adapters("transformer", params, [(path, 1.0)])
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        load(tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError):
        load(tmp_path)
    for name in ("a", "b"):
        save_file({f"{Q}.lora_A.weight": zeros(2, 32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError):
        load(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError):
        load(tmp_path / "a.safetensors")


def test_unsupported_peft_configurations_are_refused(params, tmp_path):
    save_file({f"{Q}.lora_A.weight": zeros(2, 32), f"{Q}.lora_B.weight": zeros(32, 2)}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"use_dora": true, "bias": "all", "r": 2, "lora_alpha": 2}')
    with pytest.raises(UserError, match="use_dora"):
        load_adapters("transformer", params, [(tmp_path, 1.0)])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": 1e400}, "no number"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": 8, "alpha_pattern": [1]}, "alpha_pattern"),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": "x"}}, "alpha_pattern of 'to_q'"),
        ({"lora_alpha": 8, "alpha_pattern": {"(": 1}}, "no simple regular expression"),
        ({"lora_alpha": 8, "alpha_pattern": {"(a+)+b": 1}}, "no simple regular expression"),
        ({"lora_alpha": 8, "alpha_pattern": {".*.*.*.*.*x": 1}}, "no simple regular expression"),
        ({"lora_alpha": 8, "alpha_pattern": {"a{9999999999}": 1}}, "no simple regular expression"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ([], "no JSON object"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_damaged_configuration_is_named(params, tmp_path, config, said, inside):
    tensors = {f"{Q}.lora_A.weight": zeros(2, 32), f"{Q}.lora_B.weight": zeros(32, 2)}
    if inside:
        own = {f"transformer.{name}": value for name, value in config.items()} if config else config
        save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(own)})
    else:
        save_file(tensors, tmp_path / "a.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load_adapters("transformer", params, [(tmp_path / "a.safetensors", 1.0)])


@pytest.mark.parametrize("alpha", [np.zeros(2, np.float32), np.zeros(0, np.float32), np.float32([np.nan])])
def test_an_alpha_that_is_no_number_is_named(params, tmp_path, alpha):
    tensors = {f"{Q}.lora_A.weight": zeros(2, 32), f"{Q}.lora_B.weight": zeros(32, 2), f"{Q}.alpha": alpha}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="alpha"):
        load_adapters("transformer", params, [(tmp_path / "a.safetensors", 1.0)])
