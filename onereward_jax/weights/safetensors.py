"""The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

Files are read through a memory map and written as a stream, so neither needs more memory than one tensor. bfloat16,
which NumPy lacks, is supported.
"""

import itertools
import json
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError, shown, shown_name
from onereward_jax.given_files import open_file, read_json

# dtypes that a parameter may have on disk.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
# Bits of a number of every dtype of the format, as the official library has them.
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
_BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16) | dict.fromkeys(("U32", "I32", "F32"), 32)
_BITS |= dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
_MAX_HEADER = 100_000_000  # the format's own limit
_METADATA = "__metadata__"
_SHARD = re.compile(r"[\w+-][\w .+-]{0,199}\.safetensors")
_ENTRY = ("dtype", "shape", "data_offsets")


class Tensor(NamedTuple):
    """A tensor's position in a file."""

    file: Path
    dtype: str  # the format's name for it: "BF16"
    shape: tuple[int, ...]
    offset: int  # position of its first byte
    size: int  # in bytes

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only view of the file."""
        if not self.size:
            return np.zeros(self.shape, DTYPES[self.dtype])
        count = self.size // DTYPES[self.dtype].itemsize
        raw = np.memmap(self.file, dtype=DTYPES[self.dtype], mode="r", offset=self.offset, shape=(count,))
        return raw.reshape(self.shape)


def read_header(file: Path) -> dict[str, Tensor]:
    """List the tensors in a file, whose header is checked as the official library checks it.

    Every tensor's bytes must be as many as its shape and dtype say, and all together fill the file without holes or
    overlaps. Values are not looked at.

    Raises:
      FileNotFoundError, PermissionError: the file can't be opened.
      UserError: the file is cut off or damaged; the message names it.
    """
    header, start, size = _header(file)
    tensors = {name: _tensor(file, name, entry, start) for name, entry in header.items() if name != _METADATA}
    spans = sorted((tensor.offset, tensor.offset + tensor.size, name) for name, tensor in tensors.items())
    end = start
    for begin, stop, name in spans:
        if begin != end:
            raise _damaged(
                file, f"{shown_name(name)} {'overlaps the tensor before it' if begin < end else 'follows a gap'}"
            )
        end = stop
    if size < end:
        raise UserError(f"{file} is truncated, it has {size} of {end} bytes: download it again")
    if size > end:
        raise _damaged(file, f"{size - end} bytes at its end belong to no tensor")
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """Read the metadata in a file's header.

    Raises:
      FileNotFoundError, PermissionError, UserError: see `read_header`.
    """
    return dict(_header(file)[0].get(_METADATA) or {})


def read_index(file: Path) -> dict[str, str]:
    """Read the index of a model in several files: {tensor: name of the file beside the index that holds it}.

    Raises:
      FileNotFoundError, PermissionError: the file can't be opened.
      UserError: it is damaged, or names a file elsewhere; the message names it.
    """
    weight_map = read_json(file, "download it again").get("weight_map")
    if not isinstance(weight_map, dict):
        raise _damaged(file, "it has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise _damaged(file, f"{shown(name, 60)} is no name of a file beside it")
    return weight_map


def _tensor(file: Path, name: str, entry: Any, start: int) -> Tensor:
    """Check a tensor's entry in the header of a file whose data start at `start`."""
    named = shown_name(name)
    fields: Any = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(field) for field in _ENTRY)
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(file, f"{named} has the dtype {shown(dtype, 60)}, which the format does not have")
    if not _are_sizes(shape) or any(count >= 2**64 for count in itertools.accumulate(shape, operator.mul)):
        raise _damaged(file, f"{named} has the shape {shown(shape, 60)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"{named} has the offsets {shown(offsets, 60)}")
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _damaged(file, f"the size of {named} does not match its shape")
    return Tensor(file, dtype, tuple(shape), start + offsets[0], bits // 8)


def _are_sizes(values: Any) -> bool:
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64
    return isinstance(values, list) and all(map(whole, values))


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} is damaged ({why}): download it again")


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Read the header, the offset at which the data starts, and the size of the file."""
    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or (length <= _MAX_HEADER and size < 8 + length):
            raise UserError(f"{file} is truncated, its {size} bytes do not even hold its header: download it again")
        if length > _MAX_HEADER:
            raise UserError(f"{file} is not a safetensors file, it has no valid header: give another file")
        text = stream.read(length)
    try:
        header = json.loads(
            text.decode(), parse_constant=_no_number, parse_int=_whole_number, object_pairs_hook=_entry_of
        )
        if b"\\u" in text:
            json.dumps(header, ensure_ascii=False).encode()  # fails on half of a character
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    metadata = header.get(_METADATA) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, f"its {_METADATA} are no texts")
    return header, 8 + length, size


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _whole_number(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # as the official parser


def _entry_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what can be read in two ways: an entry that gives its dtype twice."""
    entry = dict(pairs)
    if len(entry) < len(pairs) and any(sum(name == field for name, _ in pairs) > 1 for field in (*_ENTRY, _METADATA)):
        raise ValueError("given twice")
    return entry


def write(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: np.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write one file, tensor by tensor.

    Args:
      shapes: every tensor's shape, in the order of `tensors`.
      tensors: (name, array), consumed one at a time and cast to `dtype`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for (name, shape), (given, array) in zip(shapes.items(), tensors, strict=True):
            if name != given or array.shape != shape:
                raise AssertionError(f"expected {name} {shape}, got {given} {array.shape}")
            stream.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
