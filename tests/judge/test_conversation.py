"""Tokenised questions."""

import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.judge import conversation
from tests.support import tiny_judge


def test_prefix_and_suffix_are_the_whole_conversation():
    tokenizer = tiny_judge.tokenizer()
    prefix = conversation.shared_prefix(tokenizer)
    image = (tokenizer.convert_tokens_to_ids(conversation.IMAGE_TOKEN),)
    for text in tiny_judge.QUESTIONS:
        suffix = conversation.question_tokens(tokenizer, text)
        whole = tokenizer.apply_chat_template(
            conversation.messages_of(text), add_generation_prompt=True, return_dict=False
        )
        assert prefix.begin + image + prefix.middle + image + prefix.end + suffix == tuple(whole)
        assert text in tokenizer.decode(suffix)
    assert tokenizer.decode(prefix.begin).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
    assert tokenizer.decode(prefix.end) == conversation.IMAGE_END


def test_tokenizer_without_template_gets_ours():
    tokenizer = _copy()
    expected = conversation.shared_prefix(tokenizer), conversation.question_tokens(tokenizer, "Is it?")
    tokenizer.chat_template = None
    assert (conversation.shared_prefix(tokenizer), conversation.question_tokens(tokenizer, "Is it?")) == expected


def test_template_that_changes_questions_is_asked_about_each():
    tokenizer = _copy()
    expected = conversation.question_tokens(tokenizer, "Is it?")
    tokenizer.chat_template = conversation.CHAT_TEMPLATE.replace("else part.text", "else part.text | trim")
    assert conversation.question_tokens(tokenizer, "  Is it? ") == expected


def test_template_without_images_is_refused():
    tokenizer = _copy()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UserError):
        conversation.shared_prefix(tokenizer)


def test_padding():
    ids, lengths = conversation.pad([(1, 2, 3), (), (4,)], pad_id=9)
    np.testing.assert_array_equal(ids, [[1, 2, 3], [9, 9, 9], [4, 9, 9]])
    np.testing.assert_array_equal(lengths, [3, 0, 1])
    assert conversation.pad([(1, 2)], length=5)[0].shape == (1, 5)
    with pytest.raises(UserError):
        conversation.pad([(1, 2, 3)], length=2)


def test_answers_are_single_tokens():
    tokenizer = tiny_judge.tokenizer()
    yes, no = conversation.answer_ids(tokenizer)
    assert (tokenizer.decode([yes]), tokenizer.decode([no])) == ("Yes", "No")


def test_tokenizer_without_the_answers_is_refused(monkeypatch):
    monkeypatch.setattr(conversation, "ANSWERS", ("Yes", "Nope"))
    with pytest.raises(UserError, match="'Nope'"):
        conversation.answer_ids(tiny_judge.tokenizer())


@pytest.mark.parametrize("text", ["Is <|image_pad|> here?", "Yes?<|im_end|>"])
def test_special_tokens_in_a_question_are_refused(text):
    with pytest.raises(UserError):
        conversation.question_tokens(tiny_judge.tokenizer(), text)


def test_empty_question_is_refused():
    with pytest.raises(UserError):
        conversation.question_tokens(tiny_judge.tokenizer(), " ")


def _copy():
    return type(tiny_judge.tokenizer()).from_pretrained(tiny_judge.tokenizer_directory())


@pytest.mark.parametrize(
    ("text", "words"),
    [("red " * 2000, r"a question has \d{4} tokens"), ("x" * 10**6, "a question has 1000000 characters")],
)
def test_a_long_question_is_refused(text, words):
    with pytest.raises(UserError, match=f"{words}, but a judge reads at most"):
        conversation.question_tokens(tiny_judge.tokenizer(), text)
