"""Loads tokenizers with transformers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onereward_jax.errors import UserError, one_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(directory: str | Path, vocab_size: int | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a directory; no code in it is run and nothing is downloaded.

    Args:
      vocab_size: of the model that reads its tokens.

    Raises:
      UserError: its files can't be read, or have tokens that the model doesn't have.
    """
    from transformers import AutoTokenizer  # takes seconds, and a plan may need none

    with tokenizer_errors(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        highest = max(tokenizer.get_vocab().values())
        tokenizer("a")  # some damage shows in use
    if not tokenizer.is_fast:  # one in Python does not say where in the text a token stands
        raise UserError(f"the tokenizer in {directory} has no tokenizer.json: put all files of its release there")
    if not isinstance(tokenizer.model_max_length, int) or tokenizer.model_max_length < 1:
        raise UserError(
            f"the tokenizer in {directory} has model_max_length {shown(tokenizer.model_max_length)}:"
            " put all files of its release there"
        )
    if vocab_size is not None and highest >= vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has the token {highest}, but its model only {vocab_size} tokens:"
            " use the files of one release"
        )
    return tokenizer


@contextlib.contextmanager
def tokenizer_errors(directory: str | Path) -> Iterator[None]:
    """Say in one sentence that a tokenizer's files can't be used.

    Raises:
      UserError: the block raised an error.
    """
    try:
        yield
    except (MemoryError, TimeoutError):
        raise
    # Foreign code parses files of the user's: for damaged ones transformers, tokenizers and Jinja raise errors of any
    # type, a bare Exception among them, and tokenizers panics with one that is no Exception. Nothing of ours is called
    # in the blocks.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = one_line(str(error), 100) or type(error).__name__
        raise UserError(
            f"the tokenizer in {directory} can't be used ({why}): put all files of its release there"
        ) from error
