"""The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.

Files are read through a memory map and written as a stream, so neither needs more memory than one tensor. bfloat16,
which NumPy lacks, is supported.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError

# dtypes that a parameter may have on disk.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit


class Tensor(NamedTuple):
    """A tensor's position in a file."""

    file: Path
    dtype: str  # the format's name for it: "BF16"
    shape: tuple[int, ...]
    offset: int  # position of its first byte

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only view of the file."""
        count = int(np.prod(self.shape, dtype=np.int64))
        if count == 0:
            return np.zeros(self.shape, DTYPES[self.dtype])
        raw = np.memmap(self.file, dtype=DTYPES[self.dtype], mode="r", offset=self.offset, shape=(count,))
        return raw.reshape(self.shape)


def read_header(file: Path) -> dict[str, Tensor]:
    """List the tensors in a file.

    Raises:
      UserError: the file is cut off or damaged; the message names it.
    """
    size = file.stat().st_size
    header, start = _header(file)
    try:
        header.pop("__metadata__", None)
        entries = [
            (name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file} is damaged: its header cannot be read") from None
    end = start + max((entry[4] for entry in entries), default=0)
    if size < end:
        raise UserError(f"{file} is truncated: it has {size} of {end} bytes")
    tensors = {}
    for name, dtype, shape, begin, stop in entries:
        if dtype in DTYPES and int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize != stop - begin:
            raise UserError(f"{file} is damaged: the size of {name} does not match its shape")
        tensors[name] = Tensor(file, dtype, shape, start + begin)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """Read the metadata in a file's header.

    Raises:
      UserError: the file is cut off or damaged; the message names it.
    """
    return dict(_header(file)[0].get("__metadata__") or {})


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Read the header, and the offset at which the data starts."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or (length <= _MAX_HEADER and size < 8 + length):
            raise UserError(f"{file} is truncated: {size} bytes do not even hold its header")
        if length > _MAX_HEADER:
            raise UserError(f"{file} is not a safetensors file: it has no valid header")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise UserError(f"{file} is damaged: its header cannot be read")
    return header, 8 + length


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
