"""Loads tokenizers with transformers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from onereward_jax.errors import UserError, one_line, shown
from onereward_jax.given_files import read_json
from onereward_jax.models.fields import Range, check_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # one of them is enough
_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # of a tokenizer's files: a judge's weights lie beside them
_MAX_BYTES = 2**28  # of a file; Qwen2.5-VL's tokenizer.json has 7 MB


def load_tokenizer(directory: str | Path, vocab_size: int | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a directory; no code in it is run and nothing is downloaded.

    Args:
      vocab_size: of the model that reads its tokens.

    Raises:
      UserError: its files can't be read, or have tokens that the model doesn't have.
    """
    from transformers import AutoTokenizer  # takes seconds, and a plan may need none

    _check_files(Path(directory))
    config = Path(directory) / "tokenizer_config.json"
    if config.is_file():  # transformers makes as many tokens as T5's extra_ids says
        check_value(read_json(config).get("extra_ids", 0), Annotated[int, Range(0, 10_000)], f"{config}: extra_ids")
    with tokenizer_errors(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        highest = max(tokenizer.get_vocab().values())
        tokenizer("a")  # some damage shows in use, and some when special tokens are asked for
        is_fast, length = tokenizer.is_fast, tokenizer.model_max_length
        _ = tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id
    if not is_fast:  # one in Python does not say where in the text a token stands
        raise UserError(f"the tokenizer in {directory} has no tokenizer.json: put all files of its release there")
    if not isinstance(length, int) or length < 1:
        raise UserError(
            f"the tokenizer in {directory} has model_max_length {shown(length)}: put all files of its release there"
        )
    if vocab_size is not None and highest >= vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has the token {highest}, but its model only {vocab_size} tokens:"
            " use the files of one release"
        )
    return tokenizer


def _check_files(directory: Path) -> None:
    """Check that a vocabulary is there: transformers makes one of two tokens where it finds none.

    Raises:
      UserError: there is none, or a file is larger than any tokenizer's.
    """
    sizes = {path.name: path.stat().st_size for path in directory.glob("*") if path.is_file()}
    if not any(all(sizes.get(name) for name in names) for names in _VOCABULARIES):
        raise UserError(f"the tokenizer in {directory} has no tokenizer.json: put all files of its release there")
    if large := [name for name, size in sizes.items() if size > _MAX_BYTES and name.endswith(_SUFFIXES)]:
        raise UserError(f"{directory / large[0]} is too large for a tokenizer's file: put another copy there")


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
