"""The judge's public interface; tests/parity compares its files with transformers."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from onereward_jax.errors import UserError
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.vision import ImageSettings
from tests.support import tiny_judge


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (32, 24, 3), np.uint8) for _ in range(2)]


def test_one_pass_for_all_dimensions_equals_comparing_one_by_one(images):
    judge = tiny_judge.judge()
    together = judge.compare_all(*images, task="image_fill", prompt="a red circle")
    assert list(together) == ["text_alignment", "consistency", "structure", "aesthetics"]
    for dimension, p in together.items():
        alone = judge.compare(*images, task="image_fill", dimension=dimension, prompt="a red circle")
        assert 0 < p < 1
        assert alone == pytest.approx(p, rel=1e-4)


def test_lists_equal_single_comparisons():
    """Several sizes, tasks and dimensions, in more than one batch."""
    judge, generator = tiny_judge.judge(), np.random.default_rng(1)
    sizes = [(32, 24), (32, 24), (20, 30), (32, 24), (20, 30), (32, 24)]
    first = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    second = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes[1:] + sizes[:1]]
    dimensions = ["structure", "text_alignment", "structure", "aesthetics", "consistency", "structure"]
    prompts = [None, "a red circle", None, None, None, None]
    together = judge.compare(first, second, task="image_fill", dimension=dimensions, prompt=prompts, batch_size=2)
    assert (together.shape, together.dtype) == ((6,), np.float32)
    for number, p in enumerate(together):
        alone = judge.compare(
            first[number],
            second[number],
            task="image_fill",
            dimension=dimensions[number],
            prompt=prompts[number],
        )
        assert alone == pytest.approx(float(p), rel=1e-5)
    encoded = [judge.encode(image) for image in first]
    once = judge.compare(encoded[:1], second[:1], task=["image_fill"], dimension="structure")
    assert once == pytest.approx(together[:1], rel=1e-5)
    assert judge.compare([], [], task="image_fill", dimension="structure").shape == (0,)
    with pytest.raises(UserError):
        judge.compare(first, second[:2], task="image_fill", dimension="structure")


def test_extension_without_a_prompt_has_no_text_alignment(images):
    extended = tiny_judge.judge().compare_all(*images, task="image_extend")
    assert list(extended) == ["consistency", "structure", "aesthetics"]


def test_image_types_agree(images):
    judge = tiny_judge.judge()
    ask = lambda *pair: judge.ask(*pair, question="Is the first better?")
    expected = ask(*images)
    assert expected["yes"] + expected["no"] < 1  # of the whole vocabulary
    for pair in (
        [PIL.Image.fromarray(image) for image in images],
        [PIL.Image.fromarray(image).convert("RGBA") for image in images],
        [image / 255.0 for image in images],
        [judge.encode(image) for image in images],
    ):
        assert ask(*pair) == pytest.approx(expected, rel=1e-4)
    assert ask(*images[::-1]) != pytest.approx(expected, rel=1e-3)


def test_log_p_yes_is_pure_in_its_parameters(images):
    judge = tiny_judge.judge()
    first, second = (jnp.asarray(image / 255.0, jnp.float32) for image in images)
    log_p = jax.jit(lambda a, b, params: judge.log_p_yes(a, b, question="Is the first better?", params=params))
    assert float(jnp.exp(log_p(first, second, judge.params))) == pytest.approx(
        judge.ask(*images, question="Is the first better?")["yes"], rel=1e-4
    )
    zeros = jax.tree.map(jnp.zeros_like, judge.params)
    assert float(log_p(first, second, zeros)) == pytest.approx(-np.log(judge.model.model.vocab_size), rel=1e-5)


def test_uint8_batches_are_read_as_images(images):
    judge = tiny_judge.judge()
    ids, lengths = judge.encode_questions(["Is the first better?"])
    questions = {"question_ids": ids[None], "question_lengths": lengths[None]}
    batch = questions | {"first": jnp.asarray(images[0])[None], "second": jnp.asarray(images[1])[None]}
    p = jnp.exp(judge._answer(judge.params, batch))[0, 0, 0]
    assert float(p) == pytest.approx(judge.ask(*images, question="Is the first better?")["yes"], rel=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "image_fill", "dimension": "removal_quality"},
        {"task": "image_fill", "dimension": "text_alignment"},
        {"task": "painting", "dimension": "structure"},
    ],
)
def test_wrong_questions_are_refused(images, arguments):
    with pytest.raises(UserError):
        tiny_judge.judge().compare(*images, **arguments)


def test_other_arrays_are_refused(images):
    with pytest.raises(UserError):
        tiny_judge.judge().encode(images[0][..., 0])
    with pytest.raises(UserError, match="int64"):
        tiny_judge.judge().encode(images[0].astype(np.int64))


def test_rows_are_never_taken_for_channels():
    """The official processor would guess that an image of three rows has its channels first."""
    judge = tiny_judge.judge()
    image = np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8)
    official, ours = (np.asarray(judge.encode(x).features) for x in (image, image / 255.0))
    np.testing.assert_allclose(official, ours, atol=0.05 * np.abs(ours).max())


def test_judge_is_imported_lazily():
    import onereward_jax

    assert onereward_jax.Judge is Judge
    assert "Judge" in dir(onereward_jax)
    with pytest.raises(AttributeError, match="Juge"):
        _ = onereward_jax.Juge
    heavy = "{'jax', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, onereward_jax; assert not {heavy}, {heavy}"], check=True)


def test_parameters_are_bfloat16_by_default(tmp_path, images):
    judge = tiny_judge.judge()
    judge.save_pretrained(tmp_path)
    half, full = Judge.from_pretrained(tmp_path), Judge.from_pretrained(tmp_path, "float32")
    for opened, dtype in ((half, "bfloat16"), (full, "float32")):
        assert {leaf.dtype for leaf in jax.tree.leaves(opened.params)} == {jnp.dtype(dtype)}
    ask = lambda judge: judge.ask(*images, question="Is the first better?")
    assert ask(full) == ask(judge)
    assert ask(half) != ask(full)
    assert ask(half)["yes"] == pytest.approx(ask(full)["yes"], rel=0.1)


def test_nan_answers_are_refused(images):
    judge = tiny_judge.judge()
    broken = Judge(judge.model, jax.tree.map(lambda x: x * np.nan, judge.params), judge.tokenizer, judge.settings)
    with pytest.raises(ValueError, match="NaN"):
        broken.ask(*images, question="Is the first better?")


def test_files_of_different_releases_are_refused():
    judge = tiny_judge.judge()
    with pytest.raises(UserError, match="patch_size"):
        Judge(judge.model, judge.params, judge.tokenizer, ImageSettings())
    with pytest.raises(UserError):
        Judge.create(tiny_judge.config(100), judge.tokenizer, judge.settings)


def test_missing_files_and_other_architectures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Judge.from_pretrained(tmp_path)
    config = tiny_judge.config(100)
    for text, error, message in (
        (config, FileNotFoundError, r"preprocessor_config\.json"),
        (config | {"model_type": "qwen2_vl"}, ValueError, "qwen2_vl"),
        ({"_class_name": "AutoencoderKL"}, ValueError, "AutoencoderKL"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(text))
        with pytest.raises(error, match=message):
            Judge.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("questions.json", {"template": 3}, "question template"),
        ("questions.json", {"template": "{task.__class__}"}, "question template"),
        ("questions.json", {"template": "{task:>1000000000}"}, "question template"),
        ("questions.json", {"template": "{image}"}, "question template"),
        ("questions.json", {"template": "{"}, "question template"),
        ("questions.json", {"else": "?"}, r"questions\.json has else"),
        ("preprocessor_config.json", {"patch_size": 0}, r"preprocessor_config\.json: patch_size is 0"),
        ("preprocessor_config.json", {"image_mean": 3}, r"preprocessor_config\.json: image_mean is 3"),
        ("preprocessor_config.json", [], r"preprocessor_config\.json can't be read"),
    ],
)
def test_damaged_files_beside_the_weights_are_one_sentence(tmp_path, file, content, said):
    tiny_judge.judge().save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        Judge.from_pretrained(tmp_path, "float32")
