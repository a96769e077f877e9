"""Tokenises the judge's question: a prefix that all questions share, and a suffix for each question.

In the order in which the model reads them:

    Prefix.begin    the system turn, "<|vision_start|>"
                    the first image
    Prefix.middle   "<|vision_end|><|vision_start|>"
                    the second image
    Prefix.end      "<|vision_end|>"
    suffix          the question, up to the answer
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from onereward_jax.config.option import MAX_TEXT
from onereward_jax.errors import UserError
from onereward_jax.questions import LONGEST
from onereward_jax.weights.tokenizer import tokenizer_errors

SYSTEM = "You are a helpful assistant."
IMAGE_TOKEN = "<|image_pad|>"
IMAGE_END = "<|vision_end|>"
ANSWERS = ("Yes", "No")

# The conversation format of Qwen2.5-VL, still images only, for tokenizers without a template of their own.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

Tokenizer = Any  # a transformers tokenizer


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Token ids around the two images; the same for all image sizes and questions."""

    begin: tuple[int, ...]
    middle: tuple[int, ...]
    end: tuple[int, ...]


# Results of `shared_prefix` and `answer_ids` for the tokenizer of the Qwen2.5-VL releases. The prefix is in
# transformers' integration test of Qwen2.5-VL; Yes and No are in qwen.tiktoken, the ranks of Qwen's byte pairs ("WWVz"
# and "Tm8=" in base64), which all releases up to 2.5 share. In lower case they are 9693 and 2152.
OFFICIAL_PREFIX = Prefix(
    begin=(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652),
    middle=(151653, 151652),
    end=(151653,),
)
OFFICIAL_ANSWERS = (9454, 2753)


def messages_of(question: str) -> list[dict[str, Any]]:
    """Build the conversation: system turn, two images and the question."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]},
    ]


def _texts(tokenizer: Tokenizer, question: str) -> tuple[str, str, str, str]:
    """Split the conversation's text: before, between and after the images, and from the question on."""
    template = None if getattr(tokenizer, "chat_template", None) else CHAT_TEMPLATE
    with tokenizer_errors(getattr(tokenizer, "name_or_path", "")):
        text = tokenizer.apply_chat_template(
            messages_of(question), tokenize=False, add_generation_prompt=True, chat_template=template
        )
    parts = text.split(IMAGE_TOKEN, 2)
    if len(parts) != 3 or IMAGE_END not in parts[2]:
        raise UserError("the tokenizer's chat template does not show two images: use the template of Qwen2.5-VL")
    end, suffix = parts[2].split(IMAGE_END, 1)
    return parts[0], parts[1], end + IMAGE_END, suffix


_PROBES = (" \n a <b> {{ c }}  ", "d")


@functools.lru_cache(maxsize=8)
def _around(tokenizer: Tokenizer, chat_template: str | None) -> tuple[str, str] | None:
    """The text before and after a question in its suffix; None if the template changes a question.

    Rendering the template takes as long as tokenising the question.
    """
    head, found, tail = _texts(tokenizer, _PROBES[0])[3].partition(_PROBES[0])
    return (head, tail) if found and _texts(tokenizer, _PROBES[1])[3] == f"{head}{_PROBES[1]}{tail}" else None


def _suffix(tokenizer: Tokenizer, question: str) -> str:
    around = _around(tokenizer, getattr(tokenizer, "chat_template", None))
    return _texts(tokenizer, question)[3] if around is None else f"{around[0]}{question}{around[1]}"


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    with tokenizer_errors(getattr(tokenizer, "name_or_path", "")):
        return tuple(tokenizer.encode(text, add_special_tokens=False))


def shared_prefix(tokenizer: Tokenizer) -> Prefix:
    """Tokenise everything up to and including the second image's `<|vision_end|>`.

    Raises:
      UserError: the tokenizer's chat template does not show two images.
    """
    begin, middle, end, _ = _texts(tokenizer, "?")
    return Prefix(_encode(tokenizer, begin), _encode(tokenizer, middle), _encode(tokenizer, end))


def question_tokens(tokenizer: Tokenizer, question: str) -> tuple[int, ...]:
    """Tokenise a question's suffix: from the question up to the answer.

    Raises:
      UserError: the question is empty or too long, or contains one of the tokenizer's special tokens.
    """
    if not question.strip():
        raise UserError("the question is empty: write one that Yes or No answers")
    for token in tokenizer.all_special_tokens:
        if token in question:
            raise UserError(f"the question contains the special token {token}: take it out")
    if len(question) > MAX_TEXT:  # before time is taken in proportion
        raise UserError(f"a question has {len(question)} characters, but a judge reads at most {MAX_TEXT}: shorten it")
    tokens = _encode(tokenizer, _suffix(tokenizer, question))
    if len(tokens) > LONGEST:
        raise UserError(f"a question has {len(tokens)} tokens, but a judge reads at most {LONGEST}: shorten its prompt")
    return tokens


def padded_length(tokens: Sequence[Sequence[int]], length: int | None) -> int:
    """Return the length to which `pad` pads.

    Raises:
      UserError: a question is longer than `length`.
    """
    longest = max(map(len, tokens), default=0)
    if length is not None and longest > length:
        raise UserError(f"a question has {longest} tokens, but there is room for {length}: raise the question length")
    return longest if length is None else length


def pad(tokens: Sequence[Sequence[int]], length: int | None = None, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad questions of different lengths to one array.

    Args:
      tokens: D token lists; empty for a dimension that is not asked.
      length: S, static; None uses the longest question.

    Returns:
      ids int32 (D, S) and lengths int32 (D,).

    Raises:
      UserError: a question is longer than `length`.
    """
    length = padded_length(tokens, length)
    ids = np.full((len(tokens), length), pad_id, np.int32)
    for row, question in zip(ids, tokens, strict=True):
        row[: len(question)] = question
    return ids, np.asarray([len(question) for question in tokens], np.int32)


def answer_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the token ids of "Yes" and "No".

    Raises:
      UserError: one of them is not a single token.
    """
    ids = []
    for answer in ANSWERS:
        tokens = _encode(tokenizer, answer)
        if len(tokens) != 1 or tokens[0] == getattr(tokenizer, "unk_token_id", None):
            raise UserError(f"the tokenizer has no single token for {answer!r}: use the tokenizer of Qwen2.5-VL")
        ids.append(tokens[0])
    return ids[0], ids[1]
