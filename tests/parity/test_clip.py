"""CLIPTextEncoder equals transformers.CLIPTextModel: outputs, gradients, files."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import safetensors.numpy  # noqa: E402

from onereward_jax.models.clip import CLIP  # noqa: E402
from onereward_jax.weights.clip_encoder import ClipEncoder  # noqa: E402
from onereward_jax.weights.load import load_component  # noqa: E402
from onereward_jax.weights.names import clip as weights  # noqa: E402
from onereward_jax.weights.names import clip_with_images  # noqa: E402
from onereward_jax.weights.names.name_rules import to_official  # noqa: E402
from tests.support import parity, tiny_clip  # noqa: E402

LENGTH = 11
CONFIG = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": LENGTH + 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
EOS = 40  # not the highest token, so that the two rules for the pooled state differ


def _pair(**fields):
    config = CONFIG | fields
    theirs = parity.randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)))
    ours = weights.module_from_config(config)
    params = parity.params_from_torch(
        theirs, weights.TABLE, ours, weights.example_inputs(ours), rename=weights.official_name
    )
    return ours, params, theirs


def _ids():
    ids = np.random.default_rng(0).integers(3, 61, (3, LENGTH))
    ids[ids == EOS] = 5
    ids[0, 6:], ids[1, 9:], ids[2, -1] = EOS, EOS, EOS
    return ids


@pytest.mark.parametrize(
    ("eos_token_id", "hidden_act", "masked"),
    [(2, "quick_gelu", False), (EOS, "quick_gelu", True), (EOS, "gelu", False)],
)
def test_states_and_gradients(eos_token_id, hidden_act, masked):
    ours, params, theirs = _pair(eos_token_id=eos_token_id, hidden_act=hidden_act)
    ids = _ids()
    inputs = (ids, (np.cumsum(ids == EOS, axis=1) < 2).astype(np.int64)) if masked else (ids,)

    def call(model, *args):
        output = model(*args)
        return output.last_hidden_state, output.pooler_output

    parity.assert_same(
        ours,
        params,
        inputs,
        theirs,
        call,
        [torch.from_numpy(x) for x in inputs],
        table=weights.TABLE,
        rename=weights.official_name,
    )


def test_gradient_of_the_pooled_state_alone():
    ours, params, theirs = _pair(eos_token_id=EOS)
    parity.assert_same(
        ours,
        params,
        (_ids(),),
        theirs,
        lambda model, ids: model(ids).pooler_output,
        (torch.from_numpy(_ids()),),
        output_of=lambda output: output[1],
        table=weights.TABLE,
        rename=weights.official_name,
    )


def test_transformers_opens_what_we_write(tmp_path):
    ours, params, theirs = _pair()
    (tmp_path / "config.json").write_text(json.dumps(weights.config_of(ours)))
    safetensors.numpy.save_file(
        dict(to_official(weights.TABLE, params)), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    opened, info = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.from_numpy(_ids())
    with torch.no_grad():
        np.testing.assert_array_equal(opened(ids).pooler_output, theirs(ids).pooler_output)


def test_transformers_writes_what_we_read(tmp_path):
    ours, params, theirs = _pair()
    theirs.save_pretrained(tmp_path)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
    assert {weights.official_name(name) for name in names} == {name for name, _ in to_official(weights.TABLE, params)}
    assert weights.module_from_config(json.loads((tmp_path / "config.json").read_text())) == ours


def test_clip_with_images(tmp_path):
    """Features of texts and images, from the files that transformers writes; and it opens what we write."""
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.CLIPConfig(
        text_config=CONFIG | {"eos_token_id": EOS},
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        projection_dim=20,
    )
    theirs = parity.randomize(transformers.CLIPModel(config)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, params = load_component(tmp_path / "theirs", "clip")
    ids, pixels = _ids(), np.random.default_rng(1).standard_normal((3, 32, 32, 3)).astype(np.float32)
    with torch.no_grad(), parity.one_thread():
        of_texts = theirs.get_text_features(torch.from_numpy(ids)).pooler_output
        of_images = theirs.get_image_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).pooler_output
    features = ours.apply({"params": params}, ids, method=CLIP.text_features)
    assert parity.relative_error(features, of_texts) < parity.TOLERANCE
    features = ours.apply({"params": params}, pixels, method=CLIP.image_features)
    assert parity.relative_error(features, of_images) < parity.TOLERANCE
    (tmp_path / "config.json").write_text(json.dumps(clip_with_images.config_of(ours)))
    tensors = dict(to_official(clip_with_images.TABLE, params)) | {
        "logit_scale": np.array(theirs.logit_scale.item(), np.float32)
    }
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in opened.state_dict().items())


def test_clip_encoder(tmp_path):
    """Vectors of images of any size, as transformers prepares and encodes them."""
    directory = tiny_clip.write(tmp_path / "clip")
    encoder = ClipEncoder(str(directory), batch_size=2)
    theirs = transformers.CLIPModel.from_pretrained(directory).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*size, 3), np.uint8) for size in ((20, 30), (16, 16), (70, 33))]
    with torch.no_grad(), parity.one_thread():
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        expected = theirs.get_image_features(pixels).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert parity.relative_error(encoder.images(images), expected) < parity.TOLERANCE
