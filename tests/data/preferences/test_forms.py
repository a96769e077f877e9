"""The two forms hold the same records, byte for byte, and convert into each other."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from onereward_jax.data.manifest import Manifest
from onereward_jax.data.preferences import record
from onereward_jax.data.preferences.dataset import good_records, known_records, open_records, write_records
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from tests.support.preference_examples import picture, records, write_lines

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_written_records_are_read(tmp_path, form):
    write_records(tmp_path / "data", iter(records()), form)
    assert list(open_records(tmp_path / "data")) == records()
    assert [checked.sizes for checked in good_records(open_records(tmp_path / "data"))] == [
        [(24, 32), (25, 32), (26, 32)],
        [(24, 32), (40, 20)],
        [(24, 32), (24, 32)],
    ]


def test_converting_back_gives_the_same_folder(tmp_path):
    write_records(tmp_path / "a", iter(records()), "folder")
    write_records(tmp_path / "b", iter(open_records(tmp_path / "a")), "tfds")
    write_records(tmp_path / "c", iter(open_records(tmp_path / "b")), "folder")
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 1 + 5 + 2 + 2 + 1  # and .onereward.json
    assert {path.suffix for path in files} == {".json", ".jsonl", ".png", ".jpg", ".webp"}
    assert files == [path.relative_to(tmp_path / "c") for path in sorted((tmp_path / "c").rglob("*")) if path.is_file()]
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "c" / path).read_bytes()


def test_tfds_alone_reads_it(tmp_path):
    write_records(tmp_path / "data", iter(records()), "tfds")
    source = tfds.builder_from_directory(tmp_path / "data" / "preferences" / "1.0.0").as_data_source("train")
    assert len(source) == 3
    assert source[0]["candidates"]["image"][1] == picture(1, 25, 32, "JPEG")
    assert source[0]["prompt"].decode() == records()[0].prompt
    assert [int(best) for best in source[0]["votes"]["best"]] == [2, 2, 0, -1, 1]
    assert list(source[1]["image"]) == []


def test_neither_writing_nor_reading_needs_tensorflow(tmp_path):
    program = f"""
import sys
from pathlib import Path
from onereward_jax.data.preferences.dataset import open_records, write_records
from tests.support.preference_examples import records
write_records(Path({str(tmp_path / "data")!r}), iter(records()), "tfds")
assert list(open_records(Path({str(tmp_path / "data")!r}))) == records()
assert not {{"jax", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_lines_of_several_files_are_in_order(tmp_path):
    line = {"task": "object_removal", "prompt": "remove", "candidates": [{"image": "x.png"}, {"image": "x.png"}]}
    write_lines(tmp_path, [line | {"id": "a"}, line | {"id": "b"}], {"x.png": picture(0)})
    (tmp_path / "preferences-2.jsonl").write_text(json.dumps(line | {"id": "c"}))
    found = open_records(tmp_path)
    assert [record.id for record in found] == ["c", "a", "b"]
    assert found.name(2) == f"{tmp_path / 'preferences.jsonl'}, line 2"


def test_damaged_array_records_are_named(tmp_path):
    write_records(tmp_path / "data", iter(records()), "tfds")
    (path,) = tmp_path.rglob("*.array_record*")
    content = bytearray(path.read_bytes())
    middle = content.index(records()[0].candidates[1].image[:40]) + 60
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"(record 0: can't be read|records in .* are bad)"):
        list(good_records(open_records(tmp_path / "data")))


def test_existing_data_are_not_overwritten(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError):
        write_records(tmp_path, iter(records()), "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_failed_writes_leave_nothing(tmp_path):
    def broken():
        yield records()[0]
        raise UserError("no more")

    for form in ("folder", "tfds"):
        with pytest.raises(UserError):
            write_records(tmp_path / "data", broken(), form)
        assert list(tmp_path.iterdir()) == []


def test_a_directory_without_preferences(tmp_path):
    with pytest.raises(UserError, match=r"preferences\.jsonl"):
        open_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="no_such"):
        open_records(tmp_path / "no_such")


def test_the_tfds_form_leaves_nothing_in_the_systems_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    left_by_a_kill = tmp_path / ".set.partial" / "temporary" / "tfds"
    left_by_a_kill.mkdir(parents=True)
    write_records(tmp_path / "set", iter(records()), "tfds")
    assert tempfile.gettempdir() == str(tmp_path / "system")
    assert list((tmp_path / "system").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "system"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".onereward.json", "preferences"]


def test_damaged_metadata_are_one_sentence(tmp_path):
    write_records(tmp_path / "set", iter(records()), "tfds")
    directory = next((tmp_path / "set").glob("*/*"))
    for name in ("dataset_info.json", "features.json"):
        content = (directory / name).read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"[]", b"{}", b"[" * 10_000, b"\xff", b"null"):
            (directory / name).write_bytes(damaged)
            with pytest.raises(UserError) as caught:
                open_records(tmp_path / "set")
            assert str(directory) in str(caught.value)
        (directory / name).write_bytes(content)
    assert list(open_records(tmp_path / "set")) == records()


def test_a_dataset_imports_no_module_of_its_own(tmp_path, monkeypatch):
    """TFDS imports what features.json names."""
    write_records(tmp_path / "set", iter(records()), "tfds")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = next((tmp_path / "set").glob("*/*/features.json"))
    content = path.read_text()
    for name in ("evil.Feature", "tensorflow_datasets.core.features.text_feature.Text"):
        path.write_text(content.replace("tensorflow_datasets.core.features.text_feature.Text", name))
        if name.startswith("evil"):
            with pytest.raises(UserError, match=r"features\.json names 'evil\.Feature'"):
                open_records(tmp_path / "set")
    assert not (tmp_path / "ran").exists()
    assert list(open_records(tmp_path / "set")) == records()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"parts": "1"}', "[" * 10_000])
def test_damaged_complete_json_is_one_sentence(tmp_path, content):
    write_records(tmp_path / "set", iter(records()), "folder")
    (tmp_path / "set" / "made_of.json").write_text("{}")
    (tmp_path / "set" / "complete.json").write_text(content)
    with pytest.raises(UserError, match="run `onereward make-preferences` again"):
        open_records(tmp_path / "set")


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_a_second_start_decodes_nothing(form, tmp_path, monkeypatch):
    """Until a file changes; and it finds what the first has found, good records and bad ones."""
    write_records(tmp_path / "data", iter(records()), form)
    opened = open_records(tmp_path / "data")
    first = list(known_records(opened, Manifest.of(opened.directory)))
    assert [found.sizes for found in first] == [found.sizes for found in good_records(opened)]
    decoded = []
    monkeypatch.setattr(record, "read_image", lambda image, name: decoded.append(name) or read_image(image, name))
    assert list(known_records(opened, Manifest.of(opened.directory))) == first
    assert not decoded
    assert opened.candidates(0, (2, 1)) == [records()[0].candidates[number].image for number in (2, 1)]

    files = sorted(opened.directory.rglob("*"))
    changed = next(path for path in files if path.suffix == ".png" or "array_record" in path.name)
    os.utime(changed, ns=(0, 0))
    opened = open_records(tmp_path / "data")
    assert list(known_records(opened, Manifest.of(opened.directory))) == first
    assert len(decoded) == (5 if form == "folder" else 9)


def test_a_record_is_read_once_for_all_its_images(tmp_path, monkeypatch):
    write_records(tmp_path / "data", iter(records()), "tfds")
    opened, read = open_records(tmp_path / "data"), []
    get = type(opened).__getitem__
    monkeypatch.setattr(type(opened), "__getitem__", lambda self, index: read.append(index) or get(self, index))
    for given, one in enumerate(records()):
        assert opened.outline(given) == one
        for number, candidate in enumerate(one.candidates):
            assert opened.image(given, f"candidates[{number}].image") == candidate.image
    assert read == [0, 1, 2]
