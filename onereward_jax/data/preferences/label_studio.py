"""Label Studio: records as tasks of a project, and its JSON export as records.

`convert-preferences --form label_studio` writes a directory of images with tasks.json and config.xml, the labelling
interface: for every dimension the best and the worst candidate. What made a candidate must not be seen by annotators,
who can open a task's data: candidates are in an order of chance, and key.jsonl, which is not imported into the project,
says which is which. Export the project as JSON, then `convert-preferences --layout label_studio`; labels of other
interfaces are read, too, see `fields_of_task`.
"""

import dataclasses
import itertools
import json
import random
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from onereward_jax.atomic_files import write_text
from onereward_jax.data.preferences.record import Record, fields_of
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import json_lines
from onereward_jax.images.decoding import suffix_of
from onereward_jax.tasks import DIMENSIONS, TASKS, dimensions_of

Fields = dict[str, Any]
TASKS_FILE, CONFIG_FILE, KEY_FILE = "tasks.json", "config.xml", "key.jsonl"
# How Label Studio names a file below the root that it serves, and one that was uploaded.
_LOCAL, _UPLOADED = "/data/local-files/?d=", "/data/"
_NEITHER = "no difference"
_COPY = "give the one that was written beside the tasks"


# ------------------------------------------------------------------------------------------------ records become tasks


def write_tasks(directory: Path, records: Iterable[Record]) -> None:
    """Write images, tasks.json, config.xml and key.jsonl into a directory.

    Raises:
      UserError: records differ in how many candidates they have, or in whether they have a source image: the interface
        of a project is the same for all.
    """
    (directory / "images").mkdir()
    tasks: list[Fields] = []
    keys: list[Fields] = []
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
        order = list(range(len(record.candidates)))
        random.SystemRandom().shuffle(order)
        sampling = [candidate.sampling for candidate in record.candidates]
        keys.append({"id": record.id, "order": order, "sampling": sampling, "notes": record.notes})
        candidates = tuple(record.candidates[candidate] for candidate in order)
        tasks.append({"data": _data(directory, number, dataclasses.replace(record, candidates=candidates))})
    if shape is None:
        raise UserError("there are no records to make tasks of: collect candidates first")
    write_text(directory / TASKS_FILE, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write_text(directory / KEY_FILE, "".join(json.dumps(key, ensure_ascii=False) + "\n" for key in keys))
    write_text(directory / CONFIG_FILE, _config(shape[0], shape[1], dimensions))


def _data(directory: Path, number: int, record: Record) -> Fields:
    def write(name: str, image: bytes) -> str:
        short = name.removesuffix(".image").replace("candidates[", "").replace("]", "")
        path = f"images/{number:06d}-{short}.{suffix_of(image)}"
        (directory / path).write_bytes(image)
        return _LOCAL + urllib.parse.quote(path)

    fields = fields_of(dataclasses.replace(record, votes=(), pairs=(), notes={}), write)
    candidates = fields.pop("candidates")
    for name in ("votes", "pairs"):
        fields.pop(name)
    return fields | {f"candidate_{place}": candidate["image"] for place, candidate in enumerate(candidates, 1)}


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


class Key:
    """What `write_tasks` keeps from annotators: candidates' order, how they were made, and notes."""

    def __init__(self, directory: Path):
        """
        Args:
          directory: holds key.jsonl; without it nothing is restored.

        Raises:
          UserError: a line is wrong.
        """
        self._file = directory / KEY_FILE
        self._keys: dict[str, Fields] = {}
        if not self._file.exists():
            return
        for line in json_lines(self._file):
            try:
                fields = line.fields()
                self._keys[str(fields["id"])] = fields
            except KeyError:
                raise UserError(f"{line.where}: id is missing: {_COPY}") from None
            except UserError as error:
                raise UserError(f"{line.where}: {error}") from None

    def restored(self, fields: Fields) -> Fields:
        """Return a task's fields as the record had them, its candidates and votes in the record's order.

        Raises:
          UserError: the key is of another project.
        """
        key = self._keys.get(fields["id"])
        if key is None:
            return fields
        candidates = fields["candidates"]
        order, sampling, notes = key.get("order"), key.get("sampling"), key.get("notes")
        numbers = list(range(len(candidates)))
        if not isinstance(order, list) or not isinstance(sampling, list) or not isinstance(notes, dict):
            raise UserError(f"{self._file} says nothing of these candidates: {_COPY}")
        if len(sampling) != len(numbers) or sorted(order, key=str) != sorted(numbers, key=str):
            raise UserError(f"{self._file} is of other candidates: {_COPY}")
        restored = [{"image": candidates[order.index(n)]["image"], "sampling": sampling[n]} for n in numbers]
        turn = lambda place: order[place] if place in numbers else place
        votes = [vote | {end: turn(vote[end]) for end in ("best", "worst")} for vote in fields["votes"]]
        return fields | {"candidates": restored, "votes": votes, "notes": notes | fields["notes"]}


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
