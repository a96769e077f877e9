"""Qwen2_5_VL and the judge's answers equal transformers.Qwen2_5_VLForConditionalGeneration and its processor."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import safetensors.torch  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from onereward_jax.judge import answer_probabilities, conversation  # noqa: E402
from onereward_jax.judge.judge import Judge  # noqa: E402
from onereward_jax.judge.vision import ImageSettings, grid_of, preprocess  # noqa: E402
from onereward_jax.weights.load import load_component  # noqa: E402
from onereward_jax.weights.names import qwen2_5_vl as weights  # noqa: E402
from onereward_jax.weights.save import save_component  # noqa: E402
from tests.support import official_judge, parity, tiny_judge  # noqa: E402
from tests.support.official_judge import SIZES, official_inputs  # noqa: E402

SETTINGS = tiny_judge.SETTINGS
BATCH = 2


@pytest.fixture(scope="module")
def models():
    return official_judge.models()


@functools.cache
def _images(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.random((BATCH, *size, 3), np.float32) for size in SIZES]


def _sequence(grids, text):
    """Token ids of one conversation about images of these grids of patches."""
    prefix = conversation.shared_prefix(tiny_judge.tokenizer())
    image = tiny_judge.tokenizer().convert_tokens_to_ids(conversation.IMAGE_TOKEN)
    pads = [(image,) * (rows * columns // SETTINGS.merge_size**2) for rows, columns in grids]
    suffix = conversation.question_tokens(tiny_judge.tokenizer(), text)
    return prefix.begin + pads[0] + prefix.middle + pads[1] + prefix.end + suffix


def _torch_patches(image):
    """(H, W, 3) leaf -> (N, C·T·p·p), as the processor cuts it."""
    p, m, t = SETTINGS.patch_size, SETTINGS.merge_size, SETTINGS.temporal_patch_size
    x = ((image - torch.tensor(SETTINGS.image_mean)) / torch.tensor(SETTINGS.image_std)).permute(2, 0, 1)
    rows, columns = x.shape[1] // p, x.shape[2] // p
    x = x[None].expand(t, -1, -1, -1).reshape(t, 3, rows // m, m, p, columns // m, m, p)
    return x.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)


def _torch_logits(model, ids, images):
    """(B, L, V); images: the first and the second of each pair, (B, H, W, 3)."""
    grids = [grid_of(*image.shape[1:3], SETTINGS) for image in images]
    packed = torch.cat([_torch_patches(image[i]) for i in range(BATCH) for image in images])
    ids = torch.as_tensor(ids)
    return model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=packed,
        image_grid_thw=torch.tensor([[1, *grid] for grid in grids] * BATCH),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    ).logits


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_of_all_parameters(models, tied):
    ours, params, theirs = official_judge.models(tie_word_embeddings=True) if tied else models
    assert ("lm_head" in params) is not tied
    grids = [grid_of(*size, SETTINGS) for size in SIZES]
    ids = np.asarray([_sequence(grids, tiny_judge.QUESTIONS[0])] * BATCH)
    ids[1, -9:-6] = ids[0, -12:-9]  # another question of the same length
    patches = [preprocess(jnp.asarray(image), SETTINGS)[0] for image in _images()]
    tokens = [(rows // 2, columns // 2) for rows, columns in grids]
    positions = answer_probabilities.prefix_positions(conversation.shared_prefix(tiny_judge.tokenizer()), *tokens)
    length = ids.shape[1] - positions.shape[1] + 1
    positions = np.concatenate([positions[:, :-1], positions[:, -1:] + np.arange(length)], axis=1)
    mask = np.tril(np.ones((1, ids.shape[1], ids.shape[1]), bool))
    parity.assert_same(
        ours,
        params,
        (ids, patches, grids, positions[:, None], mask),
        theirs,
        lambda model: _torch_logits(model, ids, [torch.from_numpy(image) for image in _images()]),
        (),
        table=weights.TABLE,
        rename=weights.official_name,
    )


PAIRS = {"equal": ((32, 48), (32, 48)), "different": SIZES}


@pytest.mark.parametrize("sizes", PAIRS.values(), ids=PAIRS)
def test_answers_and_gradient_of_the_pixels(models, sizes):
    """All three questions, packed on one prefix here, and asked one at a time with the official text and processor
    there: logits, log P(Yes), log P(No), and the gradient of both images."""
    ours, params, theirs = models
    tokenizer = tiny_judge.tokenizer()
    yes_no = conversation.answer_ids(tokenizer)
    ids, lengths = conversation.pad([conversation.question_tokens(tokenizer, text) for text in tiny_judge.QUESTIONS])
    asked = conversation.shared_prefix(tokenizer), np.tile(ids, (BATCH, 1, 1)), np.tile(lengths, (BATCH, 1))
    generator = np.random.default_rng(5)
    images = [generator.integers(0, 256, (BATCH, *size, 3), np.uint8) for size in sizes]
    weight = generator.standard_normal((BATCH, 3, 2)).astype(np.float32)

    @jax.jit
    def answers_and_gradient(*images):
        def functional(*images):
            log_p = answer_probabilities.log_p_answers(ours, params, *images, *asked, yes_no, SETTINGS)
            return (log_p * weight).sum(), log_p

        (_, log_p), gradient = jax.value_and_grad(functional, argnums=(0, 1), has_aux=True)(*images)
        tokens = [answer_probabilities.encode_image(ours, params, image, SETTINGS) for image in images]
        return answer_probabilities.answer_logits(ours, params, *tokens, *asked), log_p, gradient

    with jax.default_matmul_precision("highest"):
        logits, log_p, gradients = answers_and_gradient(*(jnp.asarray(image / 255.0, jnp.float32) for image in images))

    leaves = [torch.from_numpy(image / np.float32(255)).requires_grad_() for image in images]
    with parity.one_thread():
        expected = []
        for text in tiny_judge.QUESTIONS:
            inputs = official_inputs(text, images)
            # The same patches, with a gradient to the pixels.
            patches = torch.cat([_torch_patches(leaf[i]) for i in range(BATCH) for leaf in leaves])
            assert parity.relative_error(patches, inputs["pixel_values"]) < 1e-6
            expected.append(theirs(**inputs | {"pixel_values": patches}).logits[:, -1])
        expected = torch.stack(expected, dim=1)
        expected_log_p = torch.log_softmax(expected, dim=-1)[..., list(yes_no)]
        (expected_log_p * torch.from_numpy(weight)).sum().backward()
    assert parity.relative_error(logits, expected) < 1e-5
    assert parity.relative_error(log_p, expected_log_p) < 1e-5
    for ours_, leaf in zip(gradients, leaves, strict=True):
        assert parity.relative_error(ours_, leaf.grad) < 1e-4


def test_judge_asks_as_transformers_does(models):
    """Through images that are resized, one up and one down, and `Judge.ask`."""
    ours, params, theirs = models
    judge = Judge(ours, params, tiny_judge.tokenizer(), SETTINGS)
    generator = np.random.default_rng(6)
    images = [generator.integers(0, 256, (1, *size, 3), np.uint8) for size in ((13, 11), (90, 75))]
    inputs = official_inputs(tiny_judge.QUESTIONS[1], images)
    grids = inputs["image_grid_thw"][:, 1:].tolist()
    assert [tuple(grid) for grid in grids] == [grid_of(*image.shape[1:3], SETTINGS) for image in images]
    with torch.no_grad(), parity.one_thread():
        p = torch.softmax(theirs(**inputs).logits[0, -1], dim=-1)
    answers = judge.ask(*(image[0] for image in images), question=tiny_judge.QUESTIONS[1])
    for answer, token in zip(("yes", "no"), judge.yes_no, strict=True):
        assert answers[answer] == pytest.approx(float(p[token]), rel=1e-4)


@pytest.mark.parametrize("size", [(40, 56), (33, 200), (100, 90), (12, 17), (190, 61), (131, 120)])
def test_pixels_equal_the_official_processor(size):
    processor = tiny_judge.judge()._official_processor()
    image = np.random.default_rng(size[0]).integers(0, 2, (*size, 3), np.uint8) * 255  # the worst overshoot
    inputs = processor(images=[image], return_tensors="np")
    patches, grid = preprocess(jnp.asarray(image / 255.0, jnp.float32)[None], SETTINGS)
    assert (1, *grid) == tuple(inputs["image_grid_thw"][0])
    grey_levels = np.abs(np.asarray(patches[0]) - inputs["pixel_values"]) * max(SETTINGS.image_std) * 255
    exact = size == (40, 56)
    assert grey_levels.max() < (1e-3 if exact else 2.0)
    assert (grey_levels.max() > 1e-3) is not exact


@pytest.mark.parametrize("size", [(1, 5), (20, 30), (57, 55), (37, 1500), (1100, 1000)])
def test_pixels_equal_the_official_processor_with_the_settings_of_the_release(size):
    settings = ImageSettings()
    limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    processor = Qwen2VLImageProcessorPil(size=limits)
    image = np.random.default_rng(0).integers(0, 2, (*size, 3), np.uint8) * 255
    inputs = processor(images=[image], input_data_format="channels_last", return_tensors="np")
    patches, grid = preprocess(jnp.asarray(image / 255.0, jnp.float32)[None], settings)
    assert (1, *grid) == tuple(inputs["image_grid_thw"][0])
    assert np.abs(np.asarray(patches[0]) - inputs["pixel_values"]).max() * max(settings.image_std) * 255 < 2.0


def test_answer_of_a_resized_image_is_close_to_the_official_one():
    judge = tiny_judge.judge()
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 256, (*size, 3), np.uint8) for size in ((90, 70), (50, 101)))
    official = judge.ask(first, second, question=tiny_judge.QUESTIONS[0])
    ours = judge.ask(first / 255.0, second / 255.0, question=tiny_judge.QUESTIONS[0])
    for answer in ("yes", "no"):
        assert ours[answer] == pytest.approx(official[answer], abs=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_go_both_ways(models, tmp_path):
    ours, params, theirs = models
    ids = np.asarray([_sequence([grid_of(*size, SETTINGS) for size in SIZES], "Is it?")] * BATCH)
    images = [torch.from_numpy(image) for image in _images()]
    with torch.no_grad(), parity.one_thread():
        expected = _torch_logits(theirs, ids, images)

        save_component(tmp_path / "ours", "judge", ours, params)
        opened = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
        assert torch.equal(_torch_logits(opened, ids, images), expected)

    theirs.save_pretrained(tmp_path / "theirs")
    module, loaded = load_component(tmp_path / "theirs", "judge")
    assert module == ours
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def _flat(config):
    """The nested configuration of current transformers in the form of the hub release."""
    text, vision = config["text_config"], dict(config["vision_config"])
    flat = {name: value for name, value in (text | config).items() if name not in ("text_config", "vision_config")}
    rope = flat.pop("rope_parameters")
    vision["in_chans"] = vision.pop("in_channels")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    return flat | {"rope_scaling": scaling, "rope_theta": rope["rope_theta"], "vision_config": vision}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_judge_of_official_files_in_both_forms(models, tmp_path, flat):
    """Sharded, beside the official tokenizer and processor; flat, with the names of the hub release."""
    ours, params, theirs = models
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    tiny_judge.tokenizer().save_pretrained(tmp_path)
    tiny_judge.judge()._official_processor().save_pretrained(tmp_path)
    if flat:
        config = tmp_path / "config.json"
        config.write_text(json.dumps(_flat(json.loads(config.read_text()))))
        index = tmp_path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] = {weights.official_name(n): file for n, file in content["weight_map"].items()}
        index.write_text(json.dumps(content))
        for file in files:
            tensors = {weights.official_name(name): x for name, x in safetensors.torch.load_file(file).items()}
            safetensors.torch.save_file(tensors, file)
    judge = Judge.from_pretrained(tmp_path, "float32")
    assert judge.model == ours
    assert judge.settings == SETTINGS
    jax.tree.map(np.testing.assert_array_equal, judge.params, params)


def test_saved_judge_opens_in_transformers(tmp_path):
    judge = tiny_judge.judge()
    judge.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert conversation.shared_prefix(tokenizer) == judge.prefix
    opened = type(judge).from_pretrained(tmp_path, "float32")
    assert opened.settings == judge.settings
    assert (opened.prefix, opened.yes_no) == (judge.prefix, judge.yes_no)
    jax.tree.map(np.testing.assert_array_equal, opened.params, judge.params)
