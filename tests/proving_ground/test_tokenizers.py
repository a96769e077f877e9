"""The miniature's tokenizers: spelling, whole words, any text, the turns of the judge's prompt."""

import filecmp
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

from onereward_jax import questions, tasks
from onereward_jax.proving_ground import tokenizers

PROMPTS = [
    *(f"a {size} {colour} circle" for size in ("small", "large") for colour in ("red", "dark blue", "sunny")),
    'the word "SUN"',
    'the word "Yes"',
    tasks.REMOVAL_PROMPT,
    tasks.EXTEND_PROMPT,
    tasks.NEGATIVE_PROMPT,
]
QUESTIONS = [questions.question(task, dimension, "a small red circle") for task, dimension in tasks.CELLS]
WRITERS = {
    "t5": (tokenizers.write_t5_tokenizer, T5Tokenizer),
    "clip": (tokenizers.write_clip_tokenizer, CLIPTokenizer),
    "qwen2": (tokenizers.write_qwen2_tokenizer, Qwen2Tokenizer),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizers")
    for name, (write, _) in WRITERS.items():
        write(directory / name, PROMPTS + QUESTIONS)
    return directory


@pytest.fixture(scope="module")
def opened(directory):
    return {name: AutoTokenizer.from_pretrained(directory / name) for name in WRITERS}


def _tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", WRITERS)
def test_the_official_class_opens_it(directory, opened, name):
    tokenizer = WRITERS[name][1].from_pretrained(directory / name)
    assert type(opened[name]) is type(tokenizer) is WRITERS[name][1]
    assert tokenizer.get_vocab() == opened[name].get_vocab()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))  # no row of an embedding is unused
    assert 100 < len(tokenizer) < 650


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_texts_give_the_same_files(directory, tmp_path, name):
    WRITERS[name][0](tmp_path, reversed(PROMPTS + QUESTIONS))
    files = sorted(path.name for path in tmp_path.iterdir())
    same, different, missing = filecmp.cmpfiles(directory / name, tmp_path, files, shallow=False)
    assert (sorted(same), different, missing) == (files, [], [])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("quotes", ['""', "''", "“”"])
@pytest.mark.parametrize("word", ["SUN", "RED", "REMOVE", "WORD", "YES", "NOON", "ASTHE", "A"])
def test_words_in_capitals_are_spelt(opened, name, quotes, word):
    """Known words too, and words that contain known words."""
    before = _tokens(opened[name], "the word")
    tokens = _tokens(opened[name], f"the word {quotes[0]}{word}{quotes[1]}")
    assert tokens[: len(before)] == before
    spelt = [token.removesuffix("</w>") for token in tokens[len(before) :]]
    assert [token for token in spelt if token.isascii() and token.isalpha()] == list(
        word.lower() if name == "clip" else word
    )


def test_lowercase_words_are_one_token_each(opened):
    assert _tokens(opened["t5"], "a small red circle") == ["▁a", "▁small", "▁red", "▁circle"]
    assert _tokens(opened["clip"], "a small red circle") == ["a</w>", "small", "red", "circle"]
    assert _tokens(opened["qwen2"], "a small red circle") == ["a", "Ġsmall", "Ġred", "Ġcircle"]
    assert _tokens(opened["t5"], tasks.EXTEND_PROMPT) == [
        "▁high", "-", "definition", ",", "▁perfect", "▁composition",
    ]  # fmt: skip


def test_every_prompt_of_the_miniature_is_short(opened):
    longest = max(len(opened[name](prompt)["input_ids"]) for name in ("t5", "clip") for prompt in PROMPTS)
    assert longest <= 12


def test_every_word_of_a_question_is_one_token(opened):
    for question in QUESTIONS:
        tokens = [token.removeprefix("Ġ") for token in _tokens(opened["qwen2"], question)]
        words = [token for token in tokens if token.isalpha()]
        assert words == [word.strip('.,:?"') for word in question.split()]


@pytest.mark.parametrize("answer", ["Yes", " Yes", "No", " No"])
def test_answers_are_one_token(opened, answer):
    assert len(opened["qwen2"](answer)["input_ids"]) == 1


def test_t5_ends_and_pads(opened):
    tokenizer = opened["t5"]
    ids = tokenizer(["a circle", "a small red circle"], padding="max_length", max_length=6)["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert [row.index(1) for row in ids] == [2, 4]
    assert ids[0][3:] == [0, 0, 0]


def test_clip_frames_and_pads(opened, tmp_path):
    tokenizer = opened["clip"]
    end = len(tokenizer) - 1
    assert tokenizer.model_max_length == 77
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == end
    ids = tokenizer("a circle", padding="max_length", max_length=6)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == end - 1
    assert ids[3:] == [end] * 3
    assert tokenizers.write_clip_tokenizer(tmp_path, PROMPTS, model_max_length=16).model_max_length == 16


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30))
def test_any_text_encodes(opened, text):
    clip, t5, qwen2 = (opened[name] for name in ("clip", "t5", "qwen2"))
    assert t5(text)["input_ids"][-1] == t5.eos_token_id
    inside = clip(text)["input_ids"][1:-1]
    if "<|" not in text:
        assert clip.eos_token_id not in inside  # nothing is unknown, and the pooled state stays at the end
    assert qwen2.decode(qwen2(text)["input_ids"]) == qwen2.backend_tokenizer.normalizer.normalize_str(text)


def test_turns_of_the_judge(opened):
    tokenizer = opened["qwen2"]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    content = [{"type": "image"}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "Is it?"}]

    def turns(*messages, **options):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)

    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    user = f"<|im_start|>user\n{image}{image}Is it?<|im_end|>\n"
    assert turns({"role": "user", "content": content}) == default + user
    assert turns(
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "No"}]},
        {"role": "user", "content": "Sure?"},
        add_generation_prompt=True,
    ) == (
        f"<|im_start|>system\nJudge.<|im_end|>\n{user}<|im_start|>assistant\nNo<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    video = turns({"role": "user", "content": [{"type": "video", "video": "a"}, *content]}, add_vision_id=True)
    assert video == (
        f"{default}<|im_start|>user\nVideo 1: <|vision_start|><|video_pad|><|vision_end|>"
        f"Picture 1: {image}Picture 2: {image}Is it?<|im_end|>\n"
    )


def test_marks_of_the_judge_are_one_token_each(opened):
    tokenizer = opened["qwen2"]
    ids = tokenizer("".join(tokenizers.QWEN2_SPECIAL_TOKENS))["input_ids"]
    assert ids == list(range(len(tokenizer) - len(tokenizers.QWEN2_SPECIAL_TOKENS), len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode([*ids, *tokenizer("Yes")["input_ids"]], skip_special_tokens=True) == "Yes"


def test_neither_torch_nor_warnings(tmp_path):
    code = f"""
import sys, warnings
warnings.simplefilter("error")
sys.modules["torch"] = None
from transformers.utils import logging
logging.set_verbosity_warning()
from onereward_jax.proving_ground import tokenizers
for write in (tokenizers.write_t5_tokenizer, tokenizers.write_clip_tokenizer, tokenizers.write_qwen2_tokenizer):
    tokenizer = write({str(tmp_path)!r} + "/" + write.__name__, ["a red circle"])
    print(tokenizer("a red circle", padding="max_length", max_length=9, return_tensors="np")["input_ids"].shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:3] == ["(1, 9)"] * 3
    assert run.stderr == ""
