"""Tokenizers, as transformers reads them."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from onereward_jax.errors import UserError


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Opens the tokenizer whose files lie in a directory.

    Raises:
      UserError: they can't be read.
    """
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        if type(error) not in (OSError, ValueError):
            raise
        # Of files that are missing transformers says so in many lines, by one or the other and no kind of its own.
        raise UserError(f"the tokenizer in {directory} can't be read: put all files of its release there") from error
