"""Loads tokenizers with transformers."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from onereward_jax.errors import UserError


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a directory.

    Raises:
      UserError: its files can't be read.
    """
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        if type(error) not in (OSError, ValueError):
            raise
        # transformers reports missing files as a plain OSError or ValueError, in many lines.
        raise UserError(f"the tokenizer in {directory} can't be read: put all files of its release there") from error
