"""T5Encoder equals transformers.T5EncoderModel: outputs, gradients, files."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import safetensors.numpy  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

from onereward_jax.models.t5 import relative_position_buckets  # noqa: E402
from onereward_jax.weights.names import t5 as weights  # noqa: E402
from onereward_jax.weights.names.name_rules import to_official  # noqa: E402
from tests.support import parity  # noqa: E402

CONFIG = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 3,  # d_kv · num_heads differs from d_model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
LENGTH = 27  # farther than the largest distance


@pytest.fixture(scope="module")
def pair():
    theirs = transformers.T5EncoderModel(transformers.T5Config(**CONFIG))
    theirs = parity.randomize(theirs)
    ours = weights.module_from_config(CONFIG)
    return ours, parity.params_from_torch(theirs, weights.TABLE, ours, weights.example_inputs(ours)), theirs


def _ids():
    ids = np.random.default_rng(0).integers(2, 61, (3, LENGTH))
    ids[0, 9:], ids[1, 20:] = 0, 0
    return ids


@pytest.mark.parametrize("masked", [False, True])
def test_states_and_gradients(pair, masked):
    ours, params, theirs = pair
    inputs = (_ids(), (_ids() != 0).astype(np.int64)) if masked else (_ids(),)
    parity.assert_same(
        ours,
        params,
        inputs,
        theirs,
        lambda model, *args: model(*args).last_hidden_state,
        [torch.from_numpy(x) for x in inputs],
        table=weights.TABLE,
    )


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (16, 100)])
def test_buckets(num_buckets, max_distance):
    length = 600
    offsets = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = T5Attention._relative_position_bucket(offsets, True, num_buckets, max_distance)
    np.testing.assert_array_equal(relative_position_buckets(length, num_buckets, max_distance), expected.numpy())


def test_transformers_opens_what_we_write(pair, tmp_path):
    ours, params, theirs = pair
    (tmp_path / "config.json").write_text(json.dumps(weights.config_of(ours)))
    safetensors.numpy.save_file(
        dict(to_official(weights.TABLE, params)), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    opened, info = transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.from_numpy(_ids())
    with torch.no_grad():
        np.testing.assert_array_equal(opened(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_transformers_writes_what_we_read(pair, tmp_path):
    ours, params, theirs = pair
    theirs.save_pretrained(tmp_path)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
    expected = {name for name, _ in to_official(weights.TABLE, params)}
    assert {weights.official_name(name) for name in names} == expected
    assert weights.official_name("encoder.embed_tokens.weight") == "shared.weight"
    assert weights.module_from_config(json.loads((tmp_path / "config.json").read_text())) == ours
