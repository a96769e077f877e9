"""Files that others wrote: only files are opened, and a bad line is one bad record."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereward_jax import given_files
from onereward_jax.errors import UserError
from onereward_jax.given_files import json_lines, open_file, parse_json, path_beside, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture
def bad_paths(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    return [tmp_path / "pipe", tmp_path / "loop", tmp_path / ("n" * 300), "a\0b", "a\ud800", "/dev/zero"]


def test_only_files_are_opened(bad_paths, tmp_path):
    for path in bad_paths:
        with pytest.raises(UserError) as caught:
            open_file(path)
        assert len(str(caught.value)) < 200
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_json_comes_back(tmp_path_factory, fields, ascii_only):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text(json.dumps(fields, ensure_ascii=ascii_only) + "\r\n\n", encoding="utf-8", newline="")
    assert [line.fields() for line in json_lines(path)] == [fields]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"a": "\\ud800"}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[1]",
        b'{"a": 1',
        b"\0",
    ],
    ids=lambda bad: bad[:12].decode(errors="replace"),
)
def test_a_bad_line_is_one_bad_record(tmp_path, bad):
    path = tmp_path / "x.jsonl"
    good = '{"prompt": "a\u2028b\u0085c"}'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n" + bad + b"\n" + good)
    first, second, third = json_lines(path)
    assert first.fields() == third.fields() == {"prompt": "a\u2028b\u0085c"}
    assert third.where == f"{path}, line 3"
    with pytest.raises(UserError) as caught:
        second.fields()
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(given_files, "MAX_LINE", 16)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 1000 + b'\n{"aaaaaaaa": 3}\n' + b"{" * 17)
    first, second, third, fourth = json_lines(path)
    assert (first.fields(), third.fields()) == ({"a": 1}, {"aaaaaaaa": 3})
    assert len(second.content) == len(fourth.content) == 17
    for line in (second, fourth):
        with pytest.raises(UserError, match="longer"):
            line.fields()


def test_an_emoji_in_two_escapes_is_whole():
    assert parse_json(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_nesting_that_can_be_read_can_be_written_again():
    deep = "[" * 199 + '{"a": 1}' + "]" * 199
    assert json.dumps(parse_json(deep)) == deep
    for wrong in (f"[{deep}]", '{"a":' * 300 + "1" + "}" * 300):
        with pytest.raises(UserError, match="nested too deeply"):
            parse_json(wrong)
    wide = [[number] for number in range(1000)]
    assert parse_json(json.dumps(wide)) == wide


def test_paths_of_records(tmp_path):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "in").symlink_to(folder / "inner")
    (tmp_path / "link").symlink_to(folder)
    inside = ("a.png", "inner/../a.png", "in/a.png", "loop", str(folder / "a.png"))
    outside = ("../a.png", "/etc/passwd", "out/a.png", "in/../../a.png")
    for name in (*inside, *outside):
        assert path_beside(folder, name) == folder / name
    for root in (folder, tmp_path / "link"):
        for name in inside:
            assert path_beside(root, name, inside_only=True) == root / name
        for name in outside:
            with pytest.raises(UserError, match="leads out of"):
                path_beside(root, name, inside_only=True)
    for name in ("a\0b", "a\ud800", "", None, 3, ["a.png"]):
        with pytest.raises(UserError, match="is no path"):
            path_beside(folder, name)


def test_a_file_of_a_terabyte_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 2**40)
    with pytest.raises(UserError, match="too large"):
        read_json(tmp_path / "config.json")
