"""Encoded prompts in files: a run encodes its prompts once, before everything else, and frees the text encoders.

At full size a prompt's states take 4 MiB in bfloat16, so the files are mapped into memory and not read.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from onereward_jax.atomic_files import make_directory, remove, sync_tree, write_json
from onereward_jax.given_files import read_json

_ABOUT, _FILES = "prompts.json", ("prompt_embeds.npy", "pooled.npy")
_MAX_BYTES = 2**30  # of prompts.json


class EncodedPrompts:
    """Encodings of a fixed set of prompts.

    directory/
      prompts.json        the prompts, in the order of the rows, and what else the encodings depend on; written last
      prompt_embeds.npy   (N, L, D), of T5
      pooled.npy          (N, P), of CLIP
    """

    def __init__(self, directory: Path):
        about = read_json(directory / _ABOUT, limit=_MAX_BYTES)
        self._rows = {prompt: row for row, prompt in enumerate(about["prompts"])}
        self._length, dtype = about["max_sequence_length"], jnp.dtype(about["dtype"])
        self._arrays = tuple(np.load(directory / name, mmap_mode="r").view(dtype) for name in _FILES)
        if any(len(array) != len(self._rows) for array in self._arrays):
            raise ValueError("the arrays are not of these prompts")

    def get(self, prompt: str, max_sequence_length: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(L, D) and (P,), or None if the prompt was not encoded, or not to this length."""
        row = self._rows.get(prompt)
        if row is None or max_sequence_length != self._length:
            return None
        states, pooled = (array[row] for array in self._arrays)
        return states, pooled


def is_there(directory: Path, about: dict[str, Any]) -> bool:
    """Whether that is what is there, whole; what can't be read is not.

    Args:
      about: of `prompts.json`: the prompts, max_sequence_length, dtype, and whatever else the encodings depend on.
    """
    try:
        EncodedPrompts(directory)
        return read_json(directory / _ABOUT, limit=_MAX_BYTES) == about
    except (OSError, ValueError):
        return False


def write(directory: Path, about: dict[str, Any], encoded: Iterable[Sequence[np.ndarray]]) -> None:
    """Write encodings, rows by rows as they come; what was there before is gone with the first of them."""
    remove(directory)
    make_directory(directory)
    arrays: list[np.memmap] = []
    start = 0
    for rows in encoded:
        if not arrays:
            arrays = [
                np.lib.format.open_memmap(
                    # As the bytes that they are: NumPy's format has no bfloat16.
                    directory / name,
                    "w+",
                    f"V{of_file.dtype.itemsize}",
                    (len(about["prompts"]), *of_file.shape[1:]),
                )
                for name, of_file in zip(_FILES, rows, strict=True)
            ]
        for array, of_file in zip(arrays, rows, strict=True):
            array[start : start + len(of_file)] = of_file.view(array.dtype)
        start += len(rows[0])
    for array in arrays:
        array.flush()
    sync_tree(directory)
    write_json(directory / _ABOUT, about)
