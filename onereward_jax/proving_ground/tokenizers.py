"""Tokenizers of the miniature: the classes of the full-size models with vocabularies of a few hundred tokens.

Each `write_*` function writes a directory that transformers opens with the full-size model's class (or
`AutoTokenizer`). It needs an iterable of texts, but no training, randomness or network: the same texts give the same
files.

All three spell words in capitals: 'the word "SUN"' contains S, U and N as separate tokens (s, u, n for CLIP, which
lowercases). Lowercase words of the texts are one token each.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, pre_tokenizers
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

# Special tokens of Qwen2.5-VL in the judge's prompt.
QWEN2_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2.5-VL's turns: a default system turn if the conversation has none, each image or video as one pad token between
# start and end tokens, and the start of the assistant's turn if a reply is wanted.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages and messages[0].role != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.images = seen.images + 1 -%}
        {{- 'Picture ' ~ seen.images ~ ': ' if add_vision_id -}}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'video' or 'video' in part -%}
        {%- set seen.videos = seen.videos + 1 -%}
        {{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id -}}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif 'text' in part -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}
"""

_TEMPLATE_WORDS = "system user assistant You are a helpful assistant."

_LOWERCASE_WORD = re.compile(r"(?<![^\W_])[a-z]+(?![^\W_])")
_CASED_WORD = re.compile(r"(?<![^\W_])[A-Z]?[a-z]+(?![^\W_])")
_PRINTABLE_ASCII = tuple(map(chr, range(0x21, 0x7F)))
_SPACE_IN_T5 = "▁"
_SPACE_IN_QWEN2 = "Ġ"


def _byte_letters() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level vocabularies, sorted."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _words(corpus: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    return sorted({word for text in corpus for word in pattern.findall(text)})


def write_t5_tokenizer(directory: str | Path, corpus: Iterable[str], model_max_length: int = 512) -> T5Tokenizer:
    """Write the `tokenizer_2` directory: texts end with </s>, <pad> is 0.

    Every printable ASCII character and every character of the corpus is a token; others are <unk>.

    Args:
      directory: made if it does not exist.
      corpus: texts whose lowercase words become tokens.
      model_max_length: kept in the tokenizer's configuration.

    Returns:
      the tokenizer, opened by transformers.
    """
    corpus = list(corpus)
    words = _words(corpus, _LOWERCASE_WORD)
    characters = sorted({*_PRINTABLE_ASCII, *(c for text in corpus for c in text if not c.isspace())})
    # A unigram model takes the segmentation with the highest sum of scores: the one with the fewest tokens, spaces
    # joined to their words.
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE_IN_T5, -2.0)]
    pieces += [(c, -2.0) for c in characters]
    pieces += [(piece, -1.0) for word in words for piece in (_SPACE_IN_T5 + word, word) if len(piece) > 1]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=model_max_length)
    tokenizer.save_pretrained(directory)
    return T5Tokenizer.from_pretrained(directory)


def write_clip_tokenizer(directory: str | Path, corpus: Iterable[str], model_max_length: int = 77) -> CLIPTokenizer:
    """Write the `tokenizer` directory: texts stand between <|startoftext|> and <|endoftext|>, which also pads.

    <|endoftext|> has the highest id, as in the official vocabulary, so both of CLIP's rules for the pooled state
    hold. Words outside the corpus become single characters; every byte has a token.

    Args:
      directory: made if it does not exist.
      corpus: texts whose lowercase words become tokens.
      model_max_length: texts are padded and cut to this; the encoder's `max_position_embeddings`.

    Returns:
      the tokenizer, opened by transformers.
    """
    words = [word for word in _words(corpus, _LOWERCASE_WORD) if len(word) > 1]
    letters = _byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)}, model_max_length=model_max_length
    )
    # Words are matched before the text loses its capitals: "sun" is a word, "SUN" is three letters.
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False, special=False) for word in words])
    tokenizer.save_pretrained(directory)
    return CLIPTokenizer.from_pretrained(directory)


def write_qwen2_tokenizer(
    directory: str | Path, corpus: Iterable[str], model_max_length: int = 32768
) -> Qwen2Tokenizer:
    """Write the judge's tokenizer: byte-level BPE with Qwen2.5-VL's special tokens and chat template.

    Words of the corpus, Yes and No are one token each, with and without a leading space; every byte has a token.

    Args:
      directory: made if it does not exist.
      corpus: texts whose words become tokens, except words in capitals.
      model_max_length: kept in the tokenizer's configuration.

    Returns:
      the tokenizer, opened by transformers.
    """
    words = _words(["Yes No", _TEMPLATE_WORDS, *corpus], _CASED_WORD)
    merges = _pair_merges(words)
    # A space is merged last, and only with whole words, so that it never splits a word.
    merges += [(_SPACE_IN_QWEN2, word) for word in words]
    # Two merges can give one token, as (ab, c) and (a, bc) do.
    vocabulary = list(dict.fromkeys([*_byte_letters(), *(a + b for a, b in merges), *QWEN2_SPECIAL_TOKENS]))
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,  # type: ignore[arg-type]  # pairs, as the model takes them
        eos_token="<|im_end|>",
        model_max_length=model_max_length,
        extra_special_tokens=list(QWEN2_SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(directory)
    return Qwen2Tokenizer.from_pretrained(directory)


def _pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """List byte-pair merges, most frequent pair first, until each word is one symbol."""
    divided = [list(word) for word in words]
    merges = []
    while pairs := Counter(pair for symbols in divided for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        divided = [_merged(symbols, best) for symbols in divided]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of the pair, from left to right."""
    joined: list[str] = []
    for symbol in symbols:
        # A symbol that was just joined differs from both halves of the pair.
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
