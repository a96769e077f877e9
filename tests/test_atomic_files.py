"""Files and directories are written whole or not at all; a working directory is locked by one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onereward_jax.atomic_files import (
    OUTPUT_FILE,
    atomic_directory,
    check_output,
    check_writable,
    fingerprint,
    lock,
    sweep,
    write_bytes,
    write_json,
)
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json


def files(directory):
    """{path: text}, without the file that makes a directory an output."""
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if not name.endswith(OUTPUT_FILE)}


def write(directory, **contents):
    """An output of files, and of `sub__name` in directories."""
    with atomic_directory(directory) as partial:
        for name, text in contents.items():
            path = partial / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


# -------------------------------------------------------------------------------------------------------- directories


def test_an_output_replaces_an_earlier_one_and_keeps_files_that_were_added(tmp_path):
    model = tmp_path / "new" / "model"
    write(model, weights="1", old__shard="1")
    (model / "notes").write_text("mine")
    with atomic_directory(model) as partial:
        (partial / "weights").write_text("2")
        assert files(model) == {"old/shard": "1", "notes": "mine", "weights": "1"}
    assert files(model) == {"notes": "mine", "weights": "2"}
    write(model, notes="theirs")
    assert files(model) == {"notes": "theirs"}
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_an_empty_directory_takes_an_output(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    write(tmp_path / "link", weights="1")
    assert (tmp_path / "link").is_symlink()
    assert files(tmp_path / "model") == {"weights": "1"}


def a_run(directory):
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.json").write_text("{}")


OTHERS = {
    "the parent of runs": lambda out: a_run(out / "a"),
    "a working directory": a_run,
    "a model of others": lambda out: (out.mkdir(), (out / "config.json").write_text("{}")),
    "a run beside an output": lambda out: (write(out, weights="1"), a_run(out / "a")),
    "a file": lambda out: out.write_text(""),
    "a link to itself": lambda out: out.symlink_to(out),
    "a file beside the output's in one of its folders": lambda out: (
        write(out, part__weights="1"),
        (out / "part" / "notes").write_text("mine"),
    ),
    "a pipe": lambda out: (write(out, weights="1"), os.mkfifo(out / "pipe")),
    "what was moved away is not ours": lambda out: (
        out.with_name(".RUNS.replaced").mkdir(),
        out.with_name(".RUNS.replaced").joinpath("notes").write_text("mine"),
    ),
    "no list": lambda out: (out.mkdir(), (out / OUTPUT_FILE).write_text('{"entries": 3}')),
    "no JSON": lambda out: (out.mkdir(), (out / OUTPUT_FILE).write_text("{")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_earlier_output_stays_as_it_is(tmp_path, kind):
    out = tmp_path / "RUNS"
    OTHERS[kind](out)
    before = sorted(tmp_path.rglob("*"))
    if kind != "what was moved away is not ours":
        with pytest.raises(UserError, match="RUNS") as error:
            check_output(out)
        assert "choose" in str(error.value)
    with pytest.raises(UserError), atomic_directory(out):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_the_export_of_a_run_from_before_outputs_were_marked_is_replaced(tmp_path):
    a_run(tmp_path / "run")
    for name in ("policy", "ema"):
        (tmp_path / "run" / "export" / name / "sub").mkdir(parents=True)
        (tmp_path / "run" / "export" / name / "weights-00001").write_text("1")
    lock(tmp_path / "run")
    for out in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        (out / "x").mkdir()
        with pytest.raises(UserError):
            check_output(out)
    write(tmp_path / "run" / "export" / "policy", weights="2")
    assert files(tmp_path / "run" / "export") == {"policy/weights": "2", "ema/weights-00001": "1"}


def test_one_process_writes_an_output_at_a_time(tmp_path):
    out = tmp_path / "model"
    with atomic_directory(out) as partial:
        (partial / "weights").write_text("1")
        with pytest.raises(UserError, match=r"another process is writing .*model"), atomic_directory(out):
            pass
    assert files(tmp_path) == {"model/weights": "1"}
    write(out, weights="2")
    assert files(tmp_path) == {"model/weights": "2"}


def test_a_link_to_itself_above_an_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop is a file"):
        check_writable(tmp_path / "loop" / "x.png")


def test_an_error_changes_nothing(tmp_path):
    model = tmp_path / "model"
    write(model, weights="1")

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
    (tmp_path / "mine").mkdir()
    (tmp_path / ".model.replaced").symlink_to("mine")
    write(tmp_path / "model", weights="1")
    assert files(tmp_path) == {"model/weights": "1"}
    assert sorted(os.listdir(tmp_path)) == ["mine", "model"]


def test_an_export_that_was_killed_between_its_two_renames_is_undone(tmp_path):
    write(tmp_path / ".model.replaced", weights="1")
    (tmp_path / ".model.replaced" / "notes").write_text("mine")
    (tmp_path / ".model.partial").mkdir()
    write(tmp_path / "model", weights="2")
    assert files(tmp_path) == {"model/notes": "mine", "model/weights": "2"}


# -------------------------------------------------------------------------------------------------------------- files


def test_a_failed_write_leaves_no_partial_file_and_names_the_one_that_was_to_be(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_bytes(tmp_path / "picture.png", b"1234")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "picture.png"), None)
    assert str(error.value).endswith("picture.png'")
    assert [path.name for path in tmp_path.rglob("*")] == ["picture.png"]
    with pytest.raises(FileNotFoundError) as error:
        write_bytes(tmp_path / "nowhere" / "x", b"")
    assert error.value.filename == str(tmp_path / "nowhere" / "x")


def test_no_link_leads_a_write_elsewhere(tmp_path, monkeypatch):
    """Neither under a name that can be guessed nor, should it be, under the temporary one."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    directory = tmp_path / "workdir"
    directory.mkdir()
    for name in ("config.json", "config.json.tmp"):
        (directory / name).symlink_to(mine)
    write_bytes(directory / "config.json", b"{}")
    assert not (directory / "config.json").is_symlink()
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (directory / f".{'0' * 16}.tmp").symlink_to(mine)
    with pytest.raises(FileExistsError):
        write_bytes(directory / "config.json", b"{}")
    assert mine.read_text() == "mine"


def test_the_longest_name_that_there_can_be(tmp_path):
    write_bytes(tmp_path / ("x" * 255), b"1")
    assert os.listdir(tmp_path) == ["x" * 255]


def test_leftovers_of_a_killed_write_are_swept(tmp_path):
    for name in (".0123456789abcdef.tmp", "mine.tmp", ".mine.tmp"):
        (tmp_path / name).write_text("?")
    sweep(tmp_path, older_than=3600)
    assert len(os.listdir(tmp_path)) == 3
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".0123456789abcdef.tmp").touch()
    lock(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", ".mine.tmp", "mine.tmp", "samples"]
    assert os.listdir(tmp_path / "samples") == []


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
