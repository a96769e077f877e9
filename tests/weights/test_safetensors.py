"""The reader of safetensors files against the official library: it reads the same and refuses the same."""

import json
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from onereward_jax.errors import UserError
from onereward_jax.weights.safetensors import DTYPES, read_header, read_metadata


def content_of(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def ours(file):
    """{name: (dtype, shape, bytes)}, or None if it is refused in one sentence."""
    try:
        content, tensors = file.read_bytes(), read_header(file)
    except UserError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert str(file) in said
        assert "\n" not in said
        return None
    for tensor in tensors.values():
        if tensor.dtype in DTYPES and len(tensor.shape) < 32 and max(tensor.shape, default=0) < 2**60:
            assert tensor.read().tobytes() == content[tensor.offset : tensor.offset + tensor.size]
    return {
        name: (tensor.dtype, tensor.shape, content[tensor.offset : tensor.offset + tensor.size])
        for name, tensor in tensors.items()
    }


def official(content: bytes):
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in tensors}


def assert_same(file, content):
    file.write_bytes(content)
    theirs = official(content)
    assert ours(file) == theirs
    return theirs


# Numbers at the edges of what fits, and values of the wrong type.
_NUMBERS = st.integers(-2, 9) | st.sampled_from(
    [2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30, 4.0, 0.5, True, None, "4"]
)
_DTYPES = st.sampled_from(
    ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F32 ", "f32", "", None, 4]
)


@st.composite
def headers(draw):
    """A header of a few tensors that may be right, and its number of bytes of data."""
    header, at = {}, 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "c", "ü", "", "dtype"]), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(["F64", "F32", "F16", "BF16", "U8"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape)) * {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    for name in list(header):
        match draw(st.sampled_from(["", "", "", "", "dtype", "shape", "offset", "field", "drop", "extra"])):
            case "dtype":
                header[name]["dtype"] = draw(_DTYPES)
            case "shape":
                header[name]["shape"] = draw(st.lists(_NUMBERS, max_size=3) | _NUMBERS)
            case "offset":
                header[name]["data_offsets"] = draw(st.lists(_NUMBERS, max_size=3) | _NUMBERS)
            case "field":
                header[name] = draw(st.none() | st.integers() | st.text(max_size=3))
            case "drop":
                del header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets"]))]
            case "extra":
                header[name]["more"] = draw(_NUMBERS)
    metadata = st.none() | st.dictionaries(st.text(max_size=2), st.text(max_size=2) | _NUMBERS, max_size=2)
    if draw(st.booleans()):
        header["__metadata__"] = draw(metadata)
    return header, max(0, at + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))


@settings(max_examples=400, deadline=None)
@given(headers())
def test_a_header_is_read_and_refused_as_the_official_library_does(tmp_path_factory, case):
    header, size = case
    assert_same(
        tmp_path_factory.getbasetemp() / "header.safetensors", content_of(header, bytes(n % 251 for n in range(size)))
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_and_refused_as_the_official_library_does(tmp_path_factory, data):
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [16, 20]},
    }
    content = bytearray(content_of(header, bytes(range(20))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[max(1, place) :]
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=3))
            case "drop":
                del content[place : place + 1]
        content = content or bytearray(b" ")
    assert_same(tmp_path_factory.getbasetemp() / "bytes.safetensors", bytes(content))


RIGHT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"w": RIGHT | {"data_offsets": [-4, 0]}}, 4, "offsets"),
        ({"w": RIGHT, "v": RIGHT}, 4, "overlaps"),
        ({"w": RIGHT, "v": RIGHT | {"data_offsets": [8, 12]}}, 12, "gap"),
        ({"w": RIGHT | {"data_offsets": [4, 8]}}, 8, "gap"),
        ({"w": RIGHT}, 3, "truncated"),
        ({"w": RIGHT}, 5, "1 bytes at its end"),
        ({"w": RIGHT | {"shape": [-1, -1]}}, 4, "shape"),
        ({"w": RIGHT | {"shape": [True]}}, 4, "shape"),
        ({"w": RIGHT | {"shape": [1.0]}}, 4, "shape"),
        ({"w": RIGHT | {"shape": [2**64]}}, 4, "shape"),
        ({"w": RIGHT | {"shape": [2]}}, 4, "does not match its shape"),
        ({"w": RIGHT | {"dtype": "Q32"}}, 4, "dtype"),
        ({"w": RIGHT | {"dtype": ["F32"]}}, 4, "dtype"),
        ({"w": 3}, 4, "dtype"),
        ({"w": RIGHT, "__metadata__": {"format": 1}}, 4, "__metadata__"),
        (b'{"w":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', 4, "no JSON"),
        (b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}', 4, "no JSON"),
        (b"[" * 100_000, 0, "no JSON"),
        (b'{"\xff":1}', 0, "no JSON"),
        (b'{"__metadata__":{"\\ud800":"x"}}', 0, "no JSON"),
        (b"[]", 0, "no JSON object"),
    ],
)
def test_a_damaged_header_is_refused_as_the_official_library_does(tmp_path, header, data, said):
    file = tmp_path / "w.safetensors"
    assert assert_same(file, content_of(header, bytes(data))) is None
    with pytest.raises(UserError, match=said):
        read_header(file)


@pytest.mark.parametrize("length", [100_000_001, 2**63, 2**64 - 1, 50_000_000])
def test_a_huge_header_length_takes_no_memory(tmp_path, length):
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match=r"w\.safetensors is"):
        read_header(file)


def test_metadata_are_texts(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(content_of({"__metadata__": {"a": "b"}, "w": RIGHT}, bytes(4)))
    assert read_metadata(file) == {"a": "b"}
    file.write_bytes(content_of({"__metadata__": None}, b""))
    assert read_metadata(file) == read_header(file) == {}
