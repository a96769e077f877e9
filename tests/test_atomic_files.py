"""Files and directories are written whole or not at all; a working directory is locked by one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onereward_jax.atomic_files import atomic_directory, fingerprint, lock, write_bytes, write_json
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json


def files(directory):
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_complete_directory_replaces_the_old_one_and_keeps_the_rest(tmp_path):
    model = tmp_path / "model"
    (model / "old").mkdir(parents=True)
    (model / "old" / "notes").write_text("mine")
    (model / "weights").write_text("1")
    with atomic_directory(model) as partial:
        (partial / "weights").write_text("2")
        assert files(model) == {"old/notes": "mine", "weights": "1"}
    assert files(model) == {"old/notes": "mine", "weights": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_changes_nothing(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")

    def write_half():
        with atomic_directory(model) as partial:
            (partial / "weights").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert files(tmp_path) == {"model/weights": "1"}


def test_leftovers_of_a_killed_export_are_ignored(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").write_text("?")
    with atomic_directory(tmp_path / "model") as partial:
        (partial / "weights").write_text("1")
    assert files(tmp_path) == {"model/weights": "1"}


def test_a_failed_write_leaves_no_partial_file(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "picture.png", b"1234")
    assert [path.name for path in tmp_path.rglob("*")] == ["picture.png"]


def test_a_file_of_that_name(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError), atomic_directory(tmp_path / "model"):
        pass


def test_an_export_that_was_killed_between_its_two_renames_is_undone(tmp_path):
    (tmp_path / ".model.replaced").mkdir()
    (tmp_path / ".model.replaced" / "notes").write_text("mine")
    (tmp_path / ".model.partial").mkdir()
    with atomic_directory(tmp_path / "model") as partial:
        (partial / "weights").write_text("2")
    assert files(tmp_path) == {"model/notes": "mine", "model/weights": "2"}


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]
    for wrong in ("{", "[1]"):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"x\.json"):
            read_json(path)


def test_a_working_directory_has_one_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from onereward_jax.atomic_files import lock\n"
        "lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError):
        lock(tmp_path)
    other.kill()  # however it ends
    other.communicate()
    lock(tmp_path)
    lock(tmp_path)


def test_a_fingerprint_looks_two_folders_down(tmp_path):
    assert fingerprint(tmp_path) == fingerprint(tmp_path / "none") == ""
    file = tmp_path / "model" / "transformer" / "x.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1")
    found = fingerprint(tmp_path)
    assert found
    deeper = file.parent / "old" / "x.safetensors"
    deeper.parent.mkdir()
    deeper.write_bytes(b"2")
    assert fingerprint(tmp_path) == found
    file.write_bytes(b"3")
    assert fingerprint(tmp_path) != found
    os.mkfifo(tmp_path / "y.jsonl")
    with pytest.raises(UserError, match=r"y\.jsonl is a pipe or a device"):
        fingerprint(tmp_path)


def test_the_fingerprint_of_a_whole_disk_takes_no_time():
    start = time.process_time()
    for directory in ("/", "/proc", str(Path.home())):
        fingerprint(Path(directory))
    assert time.process_time() - start < 5
