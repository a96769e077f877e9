"""Label Studio: records as tasks of a project, and its JSON export as records.

`convert-preferences --form label_studio` writes a directory of images with tasks.json and config.xml, the labelling
interface: for every dimension the best and the worst candidate. Export the project as JSON, then `convert-preferences
--layout label_studio`; labels of other interfaces are read, too, see `fields_of_task`.
"""

import dataclasses
import itertools
import json
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from onereward_jax.atomic_files import write_text
from onereward_jax.data.preferences.record import Record, fields_of
from onereward_jax.errors import UserError, shown
from onereward_jax.images.decoding import suffix_of
from onereward_jax.tasks import DIMENSIONS, TASKS, dimensions_of

Fields = dict[str, Any]
TASKS_FILE, CONFIG_FILE = "tasks.json", "config.xml"
# How Label Studio names a file below the root that it serves, and one that was uploaded.
_LOCAL, _UPLOADED = "/data/local-files/?d=", "/data/"
_NEITHER = "no difference"


# ------------------------------------------------------------------------------------------------ records become tasks


def write_tasks(directory: Path, records: Iterable[Record]) -> None:
    """Write images, tasks.json and config.xml into a directory.

    Raises:
      UserError: records differ in how many candidates they have, or in whether they have a source image: the interface
        of a project is the same for all.
    """
    (directory / "images").mkdir()
    tasks: list[Fields] = []
    dimensions: dict[str, None] = {}
    shape: tuple[int, bool] | None = None
    for number, record in enumerate(records):
        if shape not in (None, of_record := (len(record.candidates), record.image is not None)):
            raise UserError(
                f"record {record.id} differs from those before it in its number of candidates, or in having a source"
                " image, and a project of Label Studio has one interface: convert records of one kind at a time"
            )
        shape = of_record
        dimensions |= dict.fromkeys(dimensions_of(record.task, record.prompt))
        tasks.append({"data": _data(directory, number, record)})
    if shape is None:
        raise UserError("there are no records to make tasks of: collect candidates first")
    write_text(directory / TASKS_FILE, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write_text(directory / CONFIG_FILE, _config(shape[0], shape[1], dimensions))


def _data(directory: Path, number: int, record: Record) -> Fields:
    def write(name: str, image: bytes) -> str:
        short = name.removesuffix(".image").replace("candidates[", "").replace("]", "")
        path = f"images/{number:06d}-{short}.{suffix_of(image)}"
        (directory / path).write_bytes(image)
        return _LOCAL + urllib.parse.quote(path)

    fields = fields_of(dataclasses.replace(record, votes=(), pairs=()), write)
    candidates = fields.pop("candidates")
    for name in ("votes", "pairs"):
        fields.pop(name)
    fields |= {f"candidate_{place}": candidate["image"] for place, candidate in enumerate(candidates, 1)}
    return fields | {"sampling": [candidate["sampling"] for candidate in candidates]}


def _config(candidates: int, has_image: bool, dimensions: Iterable[str]) -> str:
    view = xml.Element("View")
    xml.SubElement(view, "Header", value="$prompt")
    images = xml.SubElement(view, "View", style="display: flex; flex-wrap: wrap; gap: 1em;")
    names = {"source": "$image"} if has_image else {}
    names |= {f"candidate_{place}": f"$candidate_{place}" for place in range(1, candidates + 1)}
    for name, value in names.items():
        beside = xml.SubElement(images, "View", style="flex: 1 1 20em;")
        xml.SubElement(beside, "Header", value=name.replace("_", " "))
        xml.SubElement(beside, "Image", name=name, value=value)
    for dimension, end in itertools.product(dimensions, ("best", "worst")):
        xml.SubElement(view, "Header", value=f"{dimension.replace('_', ' ')}: {end}")
        choices = xml.SubElement(
            view, "Choices", name=f"{dimension}_{end}", toName="candidate_1", choice="single-radio", showInline="true"
        )
        for value in (*map(str, range(1, candidates + 1)), _NEITHER):
            xml.SubElement(choices, "Choice", value=value)
    xml.SubElement(view, "TextArea", name="reason", toName="candidate_1", placeholder="reason, if you like")
    xml.indent(view)
    return xml.tostring(view, encoding="unicode") + "\n"


# ------------------------------------------------------------------------------------------------ tasks become records


def fields_of_task(entry: Mapping[str, Any], dimension: str) -> Fields:
    """Read one task of a project's JSON export (labelstud.io/guide/task_format).

    `data` holds `prompt`, the candidates' addresses as `candidate_1`, `candidate_2`, ... or as a list `candidates`, and
    may hold `id`, `task`, `image`, `mask` and `notes`. A control is named for a dimension, or else means the overall
    preference; of the kinds of control

    - Choices named "<dimension>_best" and "<dimension>_worst" give a candidate's number, from 1, or "no difference";
      named "<dimension>" alone, of two candidates, "left", "right", "1", "2" or "no difference";
    - Pairwise gives "left" or "right", of two candidates;
    - Ranker gives candidates' numbers, from 1, best first; or buckets "best" and "worst" of them;
    - TextArea "reason" is kept in the notes.

    Cancelled annotations don't count.
    """
    data = entry["data"]
    candidates = data["candidates"] if "candidates" in data else list(_numbered(data))
    sampling = data.get("sampling") or [{}] * len(candidates)
    votes: list[Fields] = []
    reasons: list[Fields] = []
    for annotation in entry["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        annotator = _annotator(annotation.get("completed_by"))
        votes += _votes(annotation["result"], annotator, len(candidates), dimension)
        for result in annotation["result"]:
            if result["type"] == "textarea" and (words := " ".join(result["value"]["text"])):
                reasons.append({"annotator": annotator, "reason": words})
    given = {name: data[name] for name in ("id", "task") if name in data}
    if given.get("task", TASKS[0]) not in TASKS:
        raise UserError(f"task is {shown(given['task'])}: give one of {', '.join(TASKS)}")
    images = {name: _path(data[name]) for name in ("image", "mask") if data.get(name)}
    return (
        {"id": f"task {entry['id']}", "prompt": data["prompt"]}
        | given
        | images
        | {
            "candidates": [
                {"image": _path(one), "sampling": made} for one, made in zip(candidates, sampling, strict=True)
            ],
            "votes": votes,
            "notes": dict(data.get("notes") or {}) | ({"reasons": reasons} if reasons else {}),
        }
    )


def _numbered(data: Mapping[str, Any]) -> Iterator[Any]:
    for place in itertools.count(1):
        if f"candidate_{place}" not in data:
            return
        yield data[f"candidate_{place}"]


def _annotator(given: Any) -> str:
    """Name the annotator, whom exports give by number or with an address."""
    if isinstance(given, Mapping):
        given = given.get("email") or given.get("id")
    return f"annotator {given}" if isinstance(given, int) or given is None else str(given)


def _path(address: Any) -> str:
    if not isinstance(address, str) or "://" in address:
        raise UserError(f"image {shown(address)} is no file: download it, and give its path in data")
    if address.startswith(_LOCAL):
        return urllib.parse.unquote(address.removeprefix(_LOCAL))
    return address.removeprefix(_UPLOADED)


def _votes(results: Iterable[Mapping[str, Any]], annotator: str, candidates: int, overall: str) -> list[Fields]:
    ends: dict[str, dict[str, int | None]] = {}
    votes: list[Fields] = []

    def add(dimension: str, best: int | None, worst: int | None) -> None:
        votes.append({"dimension": dimension, "annotator": annotator, "best": best, "worst": worst})

    for result in results:
        kind, name, value = result["type"], str(result["from_name"]), result["value"]
        if kind == "choices" and name.endswith(("_best", "_worst")):
            stem, _, end = name.rpartition("_")
            ends.setdefault(_dimension(stem, overall), {})[end] = _choice(value["choices"])
        elif kind in ("choices", "pairwise"):
            if kind == "pairwise" and value.get("selected") is None:
                continue
            chosen = _choice(value["choices"] if kind == "choices" else value["selected"])
            if candidates != 2:
                raise UserError(f"{name} chooses one of {candidates} candidates: ask for the best and the worst")
            add(_dimension(name, overall), chosen, None if chosen is None else 1 - chosen)
        elif kind == "ranker":
            for best, worst in _ranked(value["ranker"]):
                add(_dimension(name, overall), best, worst)
    for dimension, given in ends.items():
        if len(given) != 2 or (given["best"] is None) != (given["worst"] is None):
            raise UserError(f"{dimension} has only one of best and worst: give both, or neither")
        add(dimension, given["best"], given["worst"])
    return votes


def _dimension(name: str, overall: str) -> str:
    return name if name in DIMENSIONS else overall


def _choice(value: Any) -> int | None:
    word = value[0] if isinstance(value, list) and len(value) == 1 else value
    if word == _NEITHER:
        return None
    return ("left", "right").index(word) if word in ("left", "right") else _number(word)


def _number(value: Any) -> int:
    if not str(value).isdecimal() or not 1 <= int(value) <= 256:
        raise UserError(f"it chooses {shown(value)}: give a candidate's number, from 1")
    return int(value) - 1


def _ranked(value: Any) -> Iterator[tuple[int, int]]:
    """Yield the ordered pairs of a ranking, or of its buckets."""
    if isinstance(value, Mapping) and {"best", "worst"} <= set(value):
        return itertools.product(map(_number, value["best"]), map(_number, value["worst"]))
    if isinstance(value, Mapping):
        (value,) = value.values()
    return itertools.combinations(map(_number, value), 2)
