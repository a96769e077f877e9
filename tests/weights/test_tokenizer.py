"""Whatever a tokenizer's files hold, loading and using it ends well or in one sentence."""

import json
import os

import pytest

from onereward_jax.errors import UserError
from onereward_jax.fill.prompts import _padding_tokenizer
from onereward_jax.judge import conversation
from onereward_jax.proving_ground import tokenizers
from onereward_jax.weights.tokenizer import load_tokenizer, tokenizer_errors
from tests.support import tiny_fill, tiny_judge

WRITERS = {
    "clip": lambda at: tokenizers.write_clip_tokenizer(at, tiny_fill.PROMPTS, model_max_length=8),
    "t5": lambda at: tokenizers.write_t5_tokenizer(at, tiny_fill.PROMPTS),
    "qwen": lambda at: tokenizers.write_qwen2_tokenizer(at, tiny_judge.QUESTIONS),
}


@pytest.fixture(params=WRITERS)
def directory(request, tmp_path):
    WRITERS[request.param](tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def assert_refused(directory, **given):
    with pytest.raises(UserError, match="tokenizer") as caught:
        load_tokenizer(directory, **given)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_empty_and_truncated_files_are_one_sentence(directory, name, keep):
    file = directory / name
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(directory)


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'{"a": 1}', b"\xff\xfe", b"[" * 10_000])
def test_other_content_is_one_sentence(directory, content):
    (directory / "tokenizer.json").write_bytes(content)
    assert_refused(directory)


@pytest.mark.parametrize("instead", ["nothing", "a pipe", "a directory", "a link to itself", "a terabyte"])
def test_a_vocabulary_that_is_not_there_is_one_sentence(directory, instead):
    """transformers would make one of two tokens, and every prompt be the same."""
    file = directory / "tokenizer.json"
    file.unlink()
    {
        "nothing": lambda: None,
        "a pipe": lambda: os.mkfifo(file),
        "a directory": file.mkdir,
        "a link to itself": lambda: file.symlink_to(file.name),
        "a terabyte": lambda: (file.touch(), os.truncate(file, 2**40)),
    }[instead]()
    assert_refused(directory)


def test_missing_files_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty")


def test_tokens_that_the_model_lacks_are_one_sentence(directory):
    count = max(load_tokenizer(directory).get_vocab().values()) + 1
    load_tokenizer(directory, vocab_size=count)
    assert_refused(directory, vocab_size=count - 1)


@pytest.mark.parametrize("length", ["16", -1, 0, [16], None])
def test_a_length_that_is_no_number_is_one_sentence(directory, length):
    config = json.loads((directory / "tokenizer_config.json").read_text()) | {"model_max_length": length}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if length is None:  # transformers reads it as without limit
        load_tokenizer(directory)
    else:
        assert_refused(directory)


@pytest.mark.parametrize("count", [-1, 10**9, "100", None])
def test_extra_tokens_without_end_are_one_sentence(tmp_path, count):
    WRITERS["t5"](tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"extra_ids": count}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="extra_ids is"):
        load_tokenizer(tmp_path)


def test_code_in_a_directory_is_neither_run_nor_asked_about(directory):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(directory / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert_refused(directory)
    assert not (directory / "ran").exists()


def test_a_tokenizer_without_padding_is_one_sentence(tmp_path):
    WRITERS["t5"](tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="pad_token"):
        _padding_tokenizer(tmp_path, 1000)


def test_whatever_a_library_raises_is_one_sentence():
    class PanicException(BaseException):  # as tokenizers raises it
        pass

    for kind in (Exception, ValueError, PanicException, RecursionError):
        with pytest.raises(UserError, match=r"in here can't be used \(a b\)"), tokenizer_errors("here"):
            raise kind("a\n  b")


@pytest.mark.parametrize("template", ["{% for", "{{ x.y.z }}", "{{ raise_exception('no') }}", "{% include 'x' %}", "3"])
def test_a_damaged_chat_template_is_one_sentence(tmp_path, template):
    tokenizer = WRITERS["qwen"](tmp_path)
    tokenizer.chat_template = template
    with pytest.raises(UserError):
        conversation.shared_prefix(tokenizer)


def test_defects_that_are_no_damage_are_not_hidden():
    for kind in (KeyboardInterrupt, SystemExit, MemoryError, TimeoutError):
        with pytest.raises(kind), tokenizer_errors("here"):
            raise kind


def test_only_a_tokenizers_own_files_may_not_be_large(directory):
    """A released judge's weights lie beside its tokenizer, 4 GB a file."""
    with (directory / "model-00001-of-00005.safetensors").open("wb") as file:
        file.truncate(2**32)  # sparse: takes no room
    load_tokenizer(directory)
    with (directory / "vocab.json").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(UserError, match=r"vocab\.json is too large for a tokenizer's file"):
        load_tokenizer(directory)
