"""What is kept of files: read once, trusted while size and time agree, lost to no kill."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from onereward_jax.data import manifest
from onereward_jax.data.manifest import FILE, Manifest
from onereward_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(5):
        (data / f"{number}.png").write_bytes(b"x" * number)
    (data / "\udcff.png").write_bytes(b"no UTF-8")
    return data


class Reader:
    """Counts what is read."""

    def __init__(self):
        self.read = []

    def __call__(self, path):
        self.read.append(path.name)
        return {"size": [len(path.read_bytes()), 1]}


def look_at_all(folder, reader, file=None):
    found = Manifest.of(folder) if file is None else Manifest(file, folder)
    return list(found.map(lambda path: found.look(path, reader), sorted(folder.glob("*.png")), "reading", 2))


def test_a_file_is_read_again_only_when_it_has_changed(folder):
    first, second, third = Reader(), Reader(), Reader()
    found = look_at_all(folder, first)
    assert found[:5] == [{"size": [number, 1]} for number in range(5)]
    assert len(first.read) == 6
    assert look_at_all(folder, second) == found
    assert not second.read
    (folder / "3.png").write_bytes(b"longer")
    os.utime(folder / "4.png", ns=(0, 0))
    assert look_at_all(folder, third)[3] == {"size": [6, 1]}
    assert sorted(third.read) == ["3.png", "4.png"]
    shutil.move(folder, folder.with_name("moved"))
    look_at_all(folder.with_name("moved"), moved := Reader())
    assert not moved.read


def test_another_kind_is_another_entry(folder):
    found = Manifest()
    found.look(folder / "1.png", lambda path: {"white": 0.5}, "mask")
    assert found.look(folder / "1.png", Reader()) == {"size": [1, 1]}


@pytest.mark.parametrize("change", ["cut", "bit", "format", "nothing", "text", "folder"])
def test_a_damaged_manifest_is_read_anew(folder, change):
    look_at_all(folder, Reader())
    file = folder / FILE
    content = file.read_bytes()
    damaged = {
        "cut": content[:-20],
        "bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "format": content.replace(b'"format": 1', b'"format": 0'),
        "nothing": b"",
        "text": b"[" * 100_000,
    }
    if change == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damaged[change])
    look_at_all(folder, again := Reader())
    assert len(again.read) == 6


def test_what_cannot_be_read_is_not_kept(folder):
    def fail(path):
        raise UserError("no image")

    found = Manifest.of(folder)
    with pytest.raises(UserError):
        found.look(folder / "1.png", fail)
    with pytest.raises(FileNotFoundError):
        found.look(folder / "none.png", fail)
    assert found.look(folder / "1.png", Reader()) == {"size": [1, 1]}


def test_a_broken_off_pass_keeps_what_it_has_read(folder, monkeypatch):
    """After an error at once, and in a long pass now and then."""

    def stop(path):
        if path.name == "4.png":
            raise KeyboardInterrupt
        return found.look(path, Reader())

    found = Manifest.of(folder)
    with pytest.raises(KeyboardInterrupt):
        list(found.map(stop, sorted(folder.glob("*.png")), "reading", 1))
    look_at_all(folder, again := Reader())
    assert sorted(again.read) == ["4.png", "\udcff.png"]

    monkeypatch.setattr(manifest, "_SAVED_EVERY", 0.0)
    monkeypatch.setattr(manifest, "_CHUNK", 2)
    (folder / FILE).unlink()
    found = Manifest.of(folder)
    passing = found.map(lambda path: found.look(path, Reader()), sorted(folder.glob("*.png")), "reading", 1)
    for _ in range(3):
        next(passing)
    assert len(Manifest.of(folder)) == 2


def test_data_that_cannot_be_written_leave_it_in_the_working_directory(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manifest.os, "access", lambda path, mode: False)
    found = Manifest.of(folder, tmp_path / "work")
    found.look(folder / "1.png", Reader())
    found.save()
    assert not (folder / FILE).exists()
    Manifest.of(folder, tmp_path / "work").look(folder / "1.png", again := Reader())
    assert not again.read
    look_at_all(folder, Reader(), tmp_path / "work" / next((tmp_path / "work").iterdir()) / "below")
    assert "the next start reads all images again" in capsys.readouterr().err


@pytest.mark.parametrize("shared", [True, False])
def test_several_processes_read_a_part_each(folder, monkeypatch, shared):
    """Two threads stand for them, each with its own view of the others; the same where each has a copy with its times,
    as of a bucket."""
    folders = folder, folder if shared else shutil.copytree(folder, folder.with_name("copy"))
    own, barrier, given = threading.local(), threading.Barrier(2), [None, None]

    def gather(value, what):
        given[own.index] = json.dumps(value)
        barrier.wait(30)
        values = list(map(json.loads, given))
        barrier.wait(30)
        return values

    process = SimpleNamespace(
        team=lambda: SimpleNamespace(index=own.index, count=2),
        is_primary=lambda: own.index == 0,
        on_primary=lambda function: function(),
        wait_for_all=lambda what: barrier.wait(30),
        gather=gather,
    )
    monkeypatch.setattr(manifest, "hosts", process)
    monkeypatch.setattr(manifest, "_SENT", 2)
    readers = Reader(), Reader()

    def run(index):
        own.index = index
        return look_at_all(folders[index], readers[index])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert first == second
    assert [sorted(reader.read) for reader in readers] == [
        ["0.png", "2.png", "4.png"],
        ["1.png", "3.png", "\udcff.png"],
    ]
    own.index = 0
    for data in folders:
        assert [path.name for path in data.iterdir() if path.suffix != ".png"] == [FILE]
        assert len(Manifest.of(data)) == 6
