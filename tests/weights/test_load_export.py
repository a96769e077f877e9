"""Reading and writing official directories: round trips, shards, and every kind of damage."""

import json
import shutil
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onereward_jax import tree as trees
from onereward_jax.errors import UserError
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.weights import load
from onereward_jax.weights.component_kinds import KINDS
from onereward_jax.weights.load import load_component, module_from_directory
from onereward_jax.weights.names import flux, name_rules, qwen2_5_vl
from onereward_jax.weights.save import save_component
from tests.support.tiny_weights import CLIP, FLUX, MODULES, QWEN, QWEN_CONFIG, T5, random_params


def assert_equal_trees(a, b):
    a, b = trees.flatten(a), trees.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def weights_of(directory):
    """Read every tensor in the directory: {name: (dtype, bytes)}."""
    contents = {}
    for file in directory.glob("*.safetensors"):
        contents |= {name: (array.dtype, array.tobytes()) for name, array in load_file(file).items()}
    return contents


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of the transformer, not to be changed."""
    directory = tmp_path_factory.mktemp("export") / "transformer"
    save_component(directory, "transformer", FLUX, random_params("transformer"))
    return directory


@pytest.fixture
def copy(exported, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(exported, tmp_path / "transformer")


@pytest.fixture
def sharded(tmp_path):
    directory = tmp_path / "sharded"
    save_component(directory, "transformer", FLUX, random_params("transformer"), max_shard_bytes=40_000)
    return directory


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_with_the_same_module_and_weights(kind, tmp_path):
    params = random_params(kind)
    save_component(tmp_path / "new" / kind, kind, MODULES[kind], params)
    module, loaded = load_component(tmp_path / "new" / kind, kind)
    assert module == MODULES[kind]
    assert_equal_trees(loaded, params)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untouched_import_is_exported_bit_exactly(dtype, tmp_path):
    code = load.PARAM_DTYPES[dtype]
    save_component(tmp_path / "first", "transformer", FLUX, random_params("transformer", dtype=code), dtype)
    for masters in ("float32", dtype):  # bfloat16 survives float32 masters
        module, params = load_component(tmp_path / "first", "transformer", masters)
        save_component(tmp_path / "second", "transformer", module, params, dtype)
        assert weights_of(tmp_path / "first") == weights_of(tmp_path / "second")
        for file in ("config.json", "diffusion_pytorch_model.safetensors"):
            assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_arrays_on_devices_are_exported_like_those_of_the_host(exported, tmp_path):
    params = jax.tree.map(jnp.asarray, random_params("transformer"))
    save_component(tmp_path / "device", "transformer", FLUX, params)
    assert weights_of(tmp_path / "device") == weights_of(exported)


def test_a_configuration_stands_for_its_module(exported, tmp_path):
    config = json.loads((exported / "config.json").read_text())
    save_component(tmp_path / "other", "transformer", config, random_params("transformer"))
    assert weights_of(tmp_path / "other") == weights_of(exported)


def test_shards_hold_the_same_tensors(sharded, exported):
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 60_000 for file in files)
    assert files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((sharded / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(len(raw) for _, raw in weights_of(sharded).values())
    assert weights_of(sharded) == weights_of(exported)
    assert_equal_trees(load_component(sharded, "transformer")[1], random_params("transformer"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_files_of_other_floats_are_read(dtype, copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    tensors = {name: array.astype(dtype) for name, array in load_file(file).items()}
    save_file(tensors, file)
    _, loaded = load_component(copy, "transformer")
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), random_params("transformer"))
    assert_equal_trees(loaded, expected)


def test_extra_fields_are_passed_to_the_module(exported):
    module, _ = load_component(exported, "transformer", fields={"dtype": jnp.bfloat16, "remat": "full"})
    assert module == FLUX.clone(dtype=jnp.bfloat16, remat="full")
    assert module_from_directory(exported, "transformer") == FLUX


def test_parameters_do_not_keep_the_file_open(copy):
    """A file that is replaced later does not change what was read."""
    _, params = load_component(copy, "transformer")
    with (copy / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.write(bytes(200_000))
    assert_equal_trees(params, random_params("transformer"))


@pytest.mark.parametrize("on_mesh", [False, True])
def test_loading_needs_little_more_memory_than_its_result(on_mesh, tmp_path):
    """Simulated devices also keep their shards in NumPy arrays."""
    wide = FLUX.clone(attention_head_dim=64, num_attention_heads=4, axes_dims_rope=(16, 24, 24))
    params = random_params("transformer", wide, load.PARAM_DTYPES["bfloat16"])
    save_component(tmp_path / "wide", "transformer", wide, params, "bfloat16")
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]) if on_mesh else None
    load_component(tmp_path / "wide", "transformer", "bfloat16", mesh=mesh)  # what the first call alone imports
    tracemalloc.start()
    try:
        _, loaded = load_component(tmp_path / "wide", "transformer", "bfloat16", mesh=mesh)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    leaves = jax.tree.leaves(loaded)
    parts = [shard.data for leaf in leaves for shard in leaf.addressable_shards] if on_mesh else leaves
    assert peak < 1.2 * sum(part.nbytes for part in parts)


# --- names that vary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["shared.weight"], ["encoder.embed_tokens.weight"], None])
def test_t5_has_its_embedding_under_either_name_or_both(names, tmp_path):
    params = random_params("text_encoder_2")
    save_component(tmp_path, "text_encoder_2", T5, params)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors.pop("shared.weight")
    tensors |= dict.fromkeys(names or ["shared.weight", "encoder.embed_tokens.weight"], embedding)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal_trees(load_component(tmp_path, "text_encoder_2")[1], params)


def test_t5_without_its_embedding_names_it(tmp_path):
    save_component(tmp_path, "text_encoder_2", T5, random_params("text_encoder_2"))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["shared.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: shared\.weight"):
        load_component(tmp_path, "text_encoder_2")


def test_position_ids_in_old_clip_files_are_ignored(tmp_path):
    params = random_params("text_encoder")
    save_component(tmp_path, "text_encoder", CLIP, params)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"text_model.embeddings.position_ids": np.arange(7)[None]}, tmp_path / "model.safetensors")
    assert_equal_trees(load_component(tmp_path, "text_encoder")[1], params)


@pytest.mark.parametrize("with_copy", [True, False])
def test_a_tied_judge_may_hold_its_output_matrix(with_copy, tmp_path):
    tied = qwen2_5_vl.module_from_config(QWEN_CONFIG | {"tie_word_embeddings": True})
    params = random_params("judge", tied)
    save_component(tmp_path, "judge", tied, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    if with_copy:
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    assert_equal_trees(load_component(tmp_path, "judge")[1], params)


def test_an_untied_judge_needs_its_output_matrix(tmp_path):
    save_component(tmp_path, "judge", QWEN, random_params("judge"))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load_component(tmp_path, "judge")


# --- damage and misuse ------------------------------------------------------------------------------------------------


def test_every_mismatch_is_in_one_message(copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["proj_out.bias"]
    del tensors["transformer_blocks.1.ff.net.2.weight"]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    tensors["x_embedder.weight"] = tensors["x_embedder.weight"].T.copy()
    tensors["x_embedder.bias"] = tensors["x_embedder.bias"].astype(np.int32)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        load_component(copy, "transformer")
    message = str(caught.value)
    for part in (
        str(copy),
        "missing: proj_out.bias, transformer_blocks.1.ff.net.2.weight",
        "unexpected: extra.weight (diffusion_pytorch_model.safetensors)",
        "x_embedder.weight (diffusion_pytorch_model.safetensors) is (12, 16), config.json says (16, 12)",
        "x_embedder.bias (diffusion_pytorch_model.safetensors) is I32, not a float",
    ):
        assert part in message
    assert "\n" not in message


def test_many_mismatches_are_counted(copy):
    save_file({"a": np.zeros(1, np.float32)}, copy / "diffusion_pytorch_model.safetensors")
    total = len(name_rules.official_shapes(flux.TABLE, random_params("transformer")))
    with pytest.raises(ValueError, match=f"and {total - 8} more; unexpected: a"):
        load_component(copy, "transformer")


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_a_truncated_file_is_named(copy, keep):
    file = copy / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(UserError, match="truncated") as caught:
        load_component(copy, "transformer")
    assert "missing" not in str(caught.value)  # what was cut off is not reported twice


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "is not a safetensors file"),
        (struct.pack("<Q", 4) + b"nope", "is damaged"),
        (struct.pack("<Q", 6) + b'{"a":1', "is damaged"),
        (struct.pack("<Q", 2) + b"[]", "is damaged"),
    ],
)
def test_other_files_are_named(copy, content, message):
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"diffusion_pytorch_model.safetensors {message}"):
        load_component(copy, "transformer")


def test_a_header_that_contradicts_itself_is_named(copy):
    file = copy / "diffusion_pytorch_model.safetensors"
    header = json.dumps({"proj_out.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(UserError, match=r"proj_out\.bias"):
        load_component(copy, "transformer")


def test_missing_and_truncated_shards_are_all_named(sharded):
    first, second, third, *_ = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    tensors = load_file(third)
    dropped = sorted(tensors)[0]
    del tensors[dropped]
    save_file(tensors, third)
    with pytest.raises(UserError) as caught:
        load_component(sharded, "transformer")
    message = str(caught.value)
    assert f"{first.name} is missing" in message
    assert f"{second.name} is truncated" in message
    assert f"; missing: {dropped}" in message
    assert " more" not in message


def test_a_damaged_index_is_named(sharded):
    (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json"):
        load_component(sharded, "transformer")


@pytest.mark.parametrize(
    "weight_map",
    [
        [],
        3,
        {"proj_out.weight": 3},
        {"proj_out.weight": ["a.safetensors"]},
        {"proj_out.weight": "../a.safetensors"},
        {"proj_out.weight": "/etc/passwd"},
        {"proj_out.weight": "/tmp/a.safetensors"},
        {"proj_out.weight": "a/b.safetensors"},
        {"proj_out.weight": "a\0.safetensors"},
        {"proj_out.weight": "a" * 300 + ".safetensors"},
    ],
)
def test_an_index_that_points_elsewhere_is_named(sharded, weight_map):
    file = sharded / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        load_component(sharded, "transformer")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"weight_map": NaN}', "[" * 100_000])
def test_an_index_that_is_no_json_is_named(sharded, content):
    (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        load_component(sharded, "transformer")


@pytest.mark.parametrize("number", [0, -1, True, "2", int(1e9), 1.5, None, [2]])
def test_an_impossible_number_in_the_configuration_is_named_before_weights_are_read(copy, number):
    config = json.loads((copy / "config.json").read_text()) | {"num_layers": number}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"config\.json: num_layers is"):
        load_component(copy, "transformer")


def test_another_possible_number_is_told_by_names_and_shapes(copy):
    config = json.loads((copy / "config.json").read_text()) | {"num_layers": 10_000}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="319928 more"):
        load_component(copy, "transformer")


def test_shards_without_their_index_are_not_guessed(sharded):
    (sharded / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(UserError):
        load_component(sharded, "transformer")


def test_one_file_beside_an_index_is_ambiguous(sharded, exported):
    shutil.copy(exported / "diffusion_pytorch_model.safetensors", sharded)
    with pytest.raises(UserError):
        load_component(sharded, "transformer")


def test_one_file_of_another_name_is_read(copy):
    (copy / "diffusion_pytorch_model.safetensors").rename(copy / "ema.safetensors")
    assert_equal_trees(load_component(copy, "transformer")[1], random_params("transformer"))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "flux.ckpt"])
def test_pickles_are_refused(copy, name):
    (copy / "diffusion_pytorch_model.safetensors").rename(copy / name)
    with pytest.raises(ValueError, match=f"only as pickle \\({name}\\)"):
        load_component(copy, "transformer")


def test_missing_files_are_named(tmp_path, copy):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_component(tmp_path / "nowhere", "transformer")
    (copy / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        load_component(copy, "transformer")
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_component(copy, "transformer")
    (copy / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="transformer"):
        load_component(copy, "transformer")


def test_wrong_configurations_are_named(copy):
    with pytest.raises(UserError, match="FluxTransformer2DModel"):
        load_component(copy, "vae")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"patch_size": 2}))
    with pytest.raises(UserError, match="patch_size"):
        load_component(copy, "transformer")
    for content in ("{", "[]"):
        (copy / "config.json").write_text(content)
        with pytest.raises(UserError):
            load_component(copy, "transformer")


def test_unknown_kinds_and_dtypes_are_named(exported, tmp_path):
    with pytest.raises(UserError):
        load_component(exported, "unet")
    with pytest.raises(UserError):
        load_component(exported, "transformer", "int8")
    with pytest.raises(UserError):
        save_component(tmp_path / "x", "transformer", FLUX, {}, "int8")


# --- writing over what is there ---------------------------------------------------------------------------------------


def test_an_export_replaces_an_earlier_one_and_keeps_other_files(sharded):
    (sharded / "tokenizer.json").write_text("{}")
    params = random_params("transformer", seed=1)
    save_component(sharded, "transformer", FLUX, params)
    assert sorted(file.name for file in sharded.iterdir()) == [
        ".onereward.json",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "tokenizer.json",
    ]
    assert_equal_trees(load_component(sharded, "transformer")[1], params)
    assert [entry.name for entry in sharded.parent.iterdir()] == ["sharded"]


def test_a_failed_export_leaves_the_earlier_one(copy, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("onereward_jax.weights.save.write", fail)
    with pytest.raises(OSError, match="no space"):
        save_component(copy, "transformer", FLUX, random_params("transformer", seed=1))
    assert_equal_trees(load_component(copy, "transformer")[1], random_params("transformer"))
    assert [entry.name for entry in copy.parent.iterdir()] == ["transformer"]


def test_a_directory_with_subdirectories_is_not_replaced(copy):
    (copy / "photos").mkdir()
    with pytest.raises(UserError, match="photos"):
        save_component(copy, "transformer", FLUX, random_params("transformer"))
    with pytest.raises(UserError):
        save_component(copy / "config.json", "transformer", FLUX, random_params("transformer"))


def test_parameters_of_another_module_are_not_written(tmp_path):
    params = random_params("transformer")
    params["proj_out"]["bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError, match="proj_out/bias"):
        save_component(tmp_path / "x", "transformer", FLUX, params)
    assert not (tmp_path / "x").exists()
