"""Damaged records: a bad line is one bad record, and the others are read as if it weren't there."""

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onereward_jax.cli.exit_codes import is_users_error, sentence
from onereward_jax.data.preferences.dataset import COMPLETE, MADE_OF, good_records, open_records, write_records
from onereward_jax.data.preferences.importers import Imported
from onereward_jax.data.requests import read
from onereward_jax.data.requests.record import Request
from onereward_jax.fill.requests import output_files, prompt_of, read_requests
from tests.support.hostile import Trial, Trials, is_one_sentence
from tests.support.preference_examples import picture, records

Rng = np.random.Generator

# Values that no writer of records has in mind; {} stands for what JSON can't say, or says only in a hostile way.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 2**70, 10**400, 0.5, 1e308, "", "x", "a\0b", "a\u2028b", "\x85", "\x1b[2J", "a\nb"),
    *("../a.png", "/etc/passwd", "/dev/zero", "pipe.png", "loop.png", "folder", ".", "..", "~", "no.png", "n" * 300),
    *("x" * 100_000, "./" * 5000 + "a.png", "a.png/a.png", [], {}, [[]], [None], {"": None}, [0] * 1000),
)
_RAW = (
    *("NaN", "-Infinity", "1e999", "1" * 5000, '"\\ud800"', '"\\u0000"', "[" * 10_000 + "]" * 10_000),
    *('{"a":' * 10_000 + "1" + "}" * 10_000, "[" * 900 + "]" * 900, "[" * 10_000, "1 2", ""),
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] + [place for key, child in inner for place in _places(child, (*at, key))]


def _damaged_fields(fields: dict[str, Any], rng: Rng, raw: bool = True) -> str:
    """JSON of the fields, of which some are removed, added or replaced."""
    fields = json.loads(json.dumps(fields))
    inserted = {}
    for number in range(rng.integers(1, 4)):
        places = [place for place in _places(fields) if place]
        if not places:
            break
        *way, key = places[rng.integers(len(places))]
        parent = fields
        for step in way:
            parent = parent[step]
        value = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
        if raw and rng.random() < 0.3:
            value = f"<{number}>"
            inserted[json.dumps(value)] = _RAW[rng.integers(len(_RAW))]
        change = rng.integers(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            parent["x" * int(rng.integers(5))] = value
        elif change == 2 and isinstance(parent, list):
            parent.append(value)
        else:
            parent[key] = value
    text = json.dumps(fields, ensure_ascii=bool(rng.random() < 0.5))
    for name, snippet in inserted.items():
        text = text.replace(name, snippet)
    return text


def _damaged_line(fields: dict[str, Any], rng: Rng) -> bytes:
    """One line, damaged as JSON or as bytes."""
    if rng.random() < 0.6:
        return _damaged_fields(fields, rng).encode(errors="surrogatepass")
    line = bytearray(json.dumps(fields, ensure_ascii=False).encode())
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(line) + 1))
        change = rng.integers(4)
        if change == 0:
            line[place:] = b""
        elif change == 1:
            line[place : place + 1] = bytes([rng.integers(256)])
        elif change == 2:
            insert = (b"\0", b"\r", b"\xff", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\", b'"', b"{", b"]")
            line[place:place] = insert[rng.integers(len(insert))]
        else:
            line[place:place] = line[: int(rng.integers(len(line) + 1))]
    return bytes(line).replace(b"\n", b" ")


def _among_good_ones(good: list[dict[str, Any]], rng: Rng) -> bytes:
    """A file of JSON lines: the good ones in their order, and damaged ones between them."""
    lines = []
    for fields in good:
        lines.append(json.dumps(fields, ensure_ascii=False).encode())
        for _ in range(rng.integers(3)):
            other = good[rng.integers(len(good))]
            if "id" in other:  # or, where the damage does no harm, the good one would be the second of its id
                other = other | {"id": "a copy"}
            lines.append(_damaged_line(other, rng))
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + (b"\r\n" if rng.random() < 0.2 else b"\n").join(lines)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of good images, and of what is none."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        (folder / name).write_bytes(picture(seed))
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save(folder / "mask.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder").mkdir()
    return folder


def _tried(trial: Trial, function: Callable[[], Any]) -> bool:
    """Try one record, which may be refused; return whether it wasn't."""
    try:
        function()
        return True
    except Exception as error:
        if not is_users_error(error) or not is_one_sentence(sentence(error)):
            trial.fail(f"{type(error).__name__}: {str(error)[:300]}")
        return False


_REQUESTS: list[dict[str, Any]] = [
    {"image": "a.png", "mask": "mask.png", "prompt": "one\u2028line"},
    {"image": "b.png", "extend": "left=8", "prompt": "a cat", "negative_prompt": "blur"},
    {"image": "c.png", "mask": "mask.png", "task": "object_removal"},
    {"id": "one", "image": "c.png", "mask": "mask.png", "prompt": "p", "target": "a.png", "notes": {"a": [1]}},
]


def test_requests(folder, tmp_path):
    trials = Trials("damaged requests", short=150, long=600)
    path = folder / "requests.jsonl"
    for trial in trials:
        path.write_bytes(_among_good_ones(_REQUESTS, trial.rng))
        inside_only = bool(trial.rng.random() < 0.5)
        with trial:
            found = read_requests(path, None, inside_only, prompt=None)
            good = [request for request in found if isinstance(request, Request)]
            output_files(good, tmp_path / "out", 1)
            for request in found:
                if _tried(trial, lambda request=request: prompt_of(request)):
                    _tried(trial, request.pictures)
            places = [(request.image.name, request.prompt, request.tasks) for request in good]
            for fields in _REQUESTS:
                task = fields.get("task", "image_extend" if "extend" in fields else "image_fill")
                if (fields["image"], fields.get("prompt", ""), (task,)) not in places:
                    trial.fail(f"{fields} is lost")
            outside = [x for x in good if not os.path.realpath(x.image).startswith(str(folder))]
            if inside_only and outside:
                trial.fail(f"{outside} leads out")
    trials.check()


_CAPTIONS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": "one\u2028line", "width": 32},
    {"file_name": "b.png", "caption": "two", "mask": "mask.png"},
    {"file_name": "c.png", "prompt": "three", "task": "image_extend"},
    {"media": [{"role": "source", "path": "a.png"}, {"role": "mask", "path": "mask.png"}], "prompt": "four"},
    {"gt_image_path": "a.png", "caption": "five", "segmentation": {"size": [24, 32], "counts": [30, 40, 698]}},
]


def test_captions(folder):
    trials = Trials("damaged captions", short=100, long=600)
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(fields) + "\n" for fields in _CAPTIONS))
    said = lambda request: (request.image, request.mask, request.prompt, request.tasks, request.size)
    good = [said(request) for request in read.read_requests(folder)]
    for trial in trials:
        path.write_bytes(_among_good_ones(_CAPTIONS, trial.rng))
        with trial:
            found = read.read_requests(folder, bad_share=1.0, inside_only=bool(trial.rng.random() < 0.5))
            if lost := [item for item in good if item not in map(said, found)]:
                trial.fail(f"{lost} is lost")
    trials.check()


def test_preferences_in_a_folder(folder, tmp_path):
    write_records(tmp_path / "set", iter(records()), "folder")
    path = tmp_path / "set" / "preferences.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for name in ("pipe.png", "loop.png", "folder"):
        (folder / name).rename(tmp_path / "set" / name)
    trials = Trials("damaged preference records", short=100, long=600)
    for trial in trials:
        path.write_bytes(_among_good_ones(lines, trial.rng))
        with trial:
            found = [item.record for item in good_records(open_records(path.parent), bad_share=1.0)]
            if lost := [record.id for record in records() if record not in found]:
                trial.fail(f"{lost} is lost")
    trials.check()


_LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "image_reward": [
        {"image_path": name, "prompt_id": f"group-{group}", "prompt": f"of {group}", "rank": rank, "fidelity_rating": 4}
        for group in ("first", "second")
        for rank, name in enumerate(("a.png", "b.png"))
    ],
    "hpd_v2": [
        {"prompt": "a cup", "image_path": ["a.png", "b.png"], "rank": [1, 2], "raw_annotation": [{"rank": [2, 1]}]},
        {"prompt": "a cat", "file_path": ["a.png", "b.png"], "human_preference": [0, 1], "user_hash": "u1"},
    ],
    "hpd_v3": [
        {"prompt": "a lamp", "path1": "a.png", "path2": "b.png", "model1": "flux", "confidence": 0.9},
        {"prompt": "a car", "path1": "c.png", "path2": "b.png"},
    ],
    "edit_reward": [
        {"prompt": "a hat", "path_src": "c.png", "path1": "a.png", "path2": "b.png", "model1_dim1_score": 3},
        {"prompt": "a tie", "path_src": "c.png", "path1": "a.png", "path2": "b.png", "tie_case": True},
    ],
}


def test_public_sets(folder):
    trials = Trials("damaged entries of public sets", short=150, long=800)
    path = folder / "set.jsonl"
    good = {}
    for layout, entries in _LAYOUTS.items():
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        good[layout] = [item.record for item in good_records(Imported(layout, path))]
        assert len(good[layout]) == 2
    for trial in trials:
        layout = str(trial.rng.choice(list(_LAYOUTS)))
        entries = _LAYOUTS[layout]
        as_lines = trial.rng.random() < 0.6
        path = folder / ("set.jsonl" if as_lines else "set.json")
        if as_lines:
            path.write_bytes(_among_good_ones(entries, trial.rng))
        else:
            damaged = [_damaged_fields(entry, trial.rng, raw=False) for entry in entries]
            mixed = [text for pair in zip(map(json.dumps, entries), damaged, strict=True) for text in pair]
            path.write_text(f"[{', '.join(mixed)}]")
        with trial:
            inside_only = bool(trial.rng.random() < 0.5)
            found = [
                item.record for item in good_records(Imported(layout, path, inside_only=inside_only), bad_share=1.0)
            ]
            if layout == "image_reward":  # a damaged entry may still belong to a good group
                continue
            plain = [dataclasses.replace(record, id="") for record in found]
            if lost := [x.prompt for x in good[layout] if dataclasses.replace(x, id="") not in plain]:
                trial.fail(f"{layout}: {lost} is lost")
    trials.check()


def _damaged_bytes(content: bytes, rng: Rng) -> bytes:
    content = bytearray(content)
    change = rng.integers(4)
    if change == 0:
        return bytes(content[: rng.integers(len(content))])
    if change == 1:
        return b"" if rng.random() < 0.5 else bytes(rng.integers(0, 256, 50, np.uint8))
    for place in rng.integers(len(content), size=rng.integers(1, 10)):
        content[place] = rng.integers(256)
    return bytes(content)


def test_files_beside_the_records(tmp_path):
    """complete.json of `make-preferences`, and a public set in parquet."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_records(tmp_path / "set", iter(records()), "folder")
    (tmp_path / "set" / MADE_OF).write_text("{}")
    complete = tmp_path / "set" / COMPLETE
    complete.write_text(json.dumps({"parts": 1, "records": 3}))
    table = tmp_path / "set" / "metadata.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(_LAYOUTS["hpd_v3"] * 20), table)
    good = complete.read_bytes(), table.read_bytes()
    trials = Trials("damaged files beside records", short=100, long=1000)
    for trial in trials:
        with trial:
            if trial.rng.random() < 0.5:
                complete.write_bytes(_damaged_bytes(good[0], trial.rng))
                open_records(tmp_path / "set")
            else:
                table.write_bytes(_damaged_bytes(good[1], trial.rng))
                imported = Imported("hpd_v3", table)
                for index in range(len(imported)):
                    _tried(trial, lambda index=index, imported=imported: imported[index])
    trials.check()


def test_tfds_directories(tmp_path):
    write_records(tmp_path / "set", iter(records()), "tfds")
    files = sorted(next((tmp_path / "set").glob("*/*")).iterdir())
    contents = [file.read_bytes() for file in files]
    trials = Trials("damaged tfds directories", short=40, long=600)
    for trial in trials:
        number = trial.rng.integers(len(files))
        files[number].write_bytes(_damaged_bytes(contents[number], trial.rng))
        with trial:
            found = [item.record for item in good_records(open_records(tmp_path / "set"), bad_share=1.0)]
            if any(record.id not in [good.id for good in records()] for record in found):
                trial.fail(f"{[record.id for record in found]} were not written")
        files[number].write_bytes(contents[number])
    trials.check()
