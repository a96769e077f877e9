"""The record of preference data: its fields, its checks, and how pairs follow from votes."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from onereward_jax.config.option import did_you_mean
from onereward_jax.errors import UserError, shown, shown_name
from onereward_jax.images.reading import read_image
from onereward_jax.tasks import TASKS, dimensions_of

MAX_CANDIDATES = 256
# The note that identifies the source image: records that share it are never split into trained and held-out ones.
SOURCE = "source_image"
# Notes of a record that holds one annotator's votes: the record that was voted on, and the votes of the others.
ORIGINAL, OTHER_VOTES = "original", "other_votes"


class BadRecord(UserError):
    """A record that can't be used; the message names file, place, field and remedy."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the compared images.

    Attributes:
      image: bytes of a PNG, JPEG or WebP file.
      sampling: how it was generated (steps, guidance, seed, model, ...): any JSON object.
    """

    image: bytes
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Vote:
    """One annotator's choice among the candidates in one dimension.

    Attributes:
      dimension: one of the task's dimensions.
      annotator: any text.
      best, worst: indices into the candidates; both None for "no difference".
    """

    dimension: str
    annotator: str
    best: int | None
    worst: int | None


@dataclasses.dataclass(frozen=True)
class Preference:
    """One annotated pair.

    Attributes:
      dimension: one of `tasks.DIMENSIONS`.
      winner, loser: indices into the candidates.
    """

    dimension: str
    winner: int
    loser: int


@dataclasses.dataclass(frozen=True)
class Record:
    """One request, its candidates, and the annotators' preferences.

    Attributes:
      id: unique within a dataset.
      task: one of `tasks.TASKS`.
      prompt: what the candidates should show; may be empty.
      candidates: at least two.
      votes: may be empty if `pairs` are given.
      pairs: derived from the votes, see `pairs_of_votes`, or given if there are no votes.
      image, mask: bytes of image files of one size, or None if there is no source image. The mask is white where the
        candidates were generated.
      notes: any other JSON object.
    """

    id: str
    task: str
    prompt: str
    candidates: tuple[Candidate, ...]
    votes: tuple[Vote, ...] = ()
    pairs: tuple[Preference, ...] = ()
    image: bytes | None = None
    mask: bytes | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A good record.

    Attributes:
      index: index in the dataset.
      record: its images are empty where a manifest made it needless to read them.
      sizes: (height, width) of every candidate.
    """

    index: int
    record: Record
    sizes: list[tuple[int, int]]


def pairs_of_votes(votes: Iterable[Vote]) -> tuple[Preference, ...]:
    """Derive pairs from votes: best and worst of every vote form a pair, won by most of the annotators who named both.

    As in the paper, each dimension is annotated separately, "no difference" is dropped, and a candidate may win a pair
    in one dimension and lose it in another. Of two annotators who see no difference and one who does, the one decides.
    As many votes for one candidate as for the other give no pair.
    """
    leads: Counter[tuple[str, int, int]] = Counter()  # (dimension, lower, higher index): majority for the lower one
    for vote in votes:
        if vote.best is not None and vote.worst is not None:
            first, second = sorted((vote.best, vote.worst))
            leads[vote.dimension, first, second] += 1 if vote.best == first else -1
    return tuple(
        Preference(dimension, *((first, second) if lead > 0 else (second, first)))
        for (dimension, first, second), lead in leads.items()
        if lead
    )


# ------------------------------------------------------------------------------------------------ to and from fields


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


Read = Callable[[str, Any], bytes]  # (name of a field, its value) -> bytes of the image file


def record_of(fields: Mapping[str, Any], where: str, read: Read) -> Record:
    """Build a record from plain fields, as in a line of the folder form.

    Images are read, but not decoded: see `image_sizes`.

    Args:
      fields: the fields of `Record`; `votes`, `pairs`, `image`, `mask`, `notes`, and a candidate's `sampling`, are
        optional.
      where: the record's place, for messages.
      read: reads an image's bytes.

    Raises:
      BadRecord: a field is wrong; the message names the first.
    """
    at = _At(where)
    identity, task, prompt = _request(at, fields)
    candidates = _candidates(at, fields["candidates"], read)
    votes = _votes(at, fields.get("votes") or (), task, prompt, len(candidates))
    pairs = _pairs(at, fields.get("pairs"), task, prompt, len(candidates))
    if votes:
        derived = pairs_of_votes(votes)
        at.check(pairs is None or set(pairs) == set(derived), "pairs", "do not follow from the votes: leave them out")
        pairs = derived if pairs is None else pairs
    pairs = pairs or ()
    for (dimension, *two), count in Counter((p.dimension, *sorted((p.winner, p.loser))) for p in pairs).items():
        at.check(count == 1, "pairs", f"have candidates {two[0]} and {two[1]} twice in {dimension}: give them once")
    image, mask = (
        None if fields.get(name) is None else at.image(fields[name], name, read) for name in ("image", "mask")
    )
    at.check(mask is None or image is not None, "mask", "has no image beside it: give the source image as well")
    notes = at.json_object(fields.get("notes") or {}, "notes")
    _votes(at, notes.get(OTHER_VOTES) or (), task, prompt, len(candidates), f"notes.{OTHER_VOTES}")
    return Record(identity, task, prompt, candidates, votes, pairs, image, mask, notes)


def _request(at: "_At", fields: Mapping[str, Any]) -> tuple[str, str, str]:
    """Check that all fields are known and read id, task and prompt."""
    at.check(isinstance(fields, Mapping), "", "is not a JSON object: write one object per line")
    known = _names(Record)
    for name in fields:
        if name not in known:  # a hint takes longer than all other checks
            at.fail(str(name), f"is not a field of a record{did_you_mean(str(name), known) or ': put it into notes'}")
    for name in ("id", "task", "prompt", "candidates"):
        at.check(name in fields, name, "is missing: every record needs it")
    identity, task, prompt = (at.text(fields[name], name) for name in ("id", "task", "prompt"))
    at.check(identity != "", "id", "is empty: give every record an id")
    if task not in TASKS:
        hint = did_you_mean(task, TASKS) or f": choose one of {', '.join(TASKS)}"
        at.fail("task", f"is {shown(task)}{hint}")
    at.check(
        bool(prompt) or "text_alignment" not in dimensions_of(task, prompt),
        "prompt",
        f"is empty, but {task} is judged on text alignment: say what the candidates should show",
    )
    return identity, task, prompt


def _candidates(at: "_At", given: Any, read: Read) -> tuple[Candidate, ...]:
    items = at.items(given, "candidates", ("image", "sampling"), required=("image",))
    at.check(len(items) >= 2, "candidates", f"has length {len(items)}: give at least two to compare")
    at.check(len(items) <= MAX_CANDIDATES, "candidates", f"has length {len(items)}: give at most {MAX_CANDIDATES}")
    return tuple(
        Candidate(
            at.image(item["image"], f"candidates[{number}].image", read),
            at.json_object(item.get("sampling") or {}, f"candidates[{number}].sampling"),
        )
        for number, item in enumerate(items)
    )


def _votes(at: "_At", given: Any, task: str, prompt: str, candidates: int, field: str = "votes") -> tuple[Vote, ...]:
    votes = []
    for number, item in enumerate(at.items(given, field, _names(Vote))):
        name = f"{field}[{number}]"
        at.dimension(item["dimension"], f"{name}.dimension", task, prompt)
        best, worst = (
            None if item[end] is None else at.index(item[end], f"{name}.{end}", candidates) for end in ("best", "worst")
        )
        at.check(
            (best is None) == (worst is None),
            name,
            "has only one of best and worst: give both, or null for both if there is no difference",
        )
        at.check(best is None or best != worst, name, f"has candidate {best} as best and as worst: give two")
        votes.append(Vote(item["dimension"], at.text(item["annotator"], f"{name}.annotator"), best, worst))
    return tuple(votes)


def _pairs(at: "_At", given: Any, task: str, prompt: str, candidates: int) -> tuple[Preference, ...] | None:
    """Read the pairs; None if none are given, so that they follow from the votes."""
    pairs = []
    for number, item in enumerate(at.items(given or (), "pairs", _names(Preference))):
        name = f"pairs[{number}]"
        at.dimension(item["dimension"], f"{name}.dimension", task, prompt)
        winner, loser = (at.index(item[end], f"{name}.{end}", candidates) for end in ("winner", "loser"))
        at.check(winner != loser, name, f"has candidate {winner} as winner and as loser: give two")
        pairs.append(Preference(item["dimension"], winner, loser))
    return None if given is None else tuple(pairs)


def fields_of(record: Record, write: Callable[[str, bytes], Any]) -> dict[str, Any]:
    """Convert a record to plain fields, leaving out missing images.

    Args:
      write: (name of a field, bytes of its image) -> the value to write for the image.
    """
    fields: dict[str, Any] = {"id": record.id, "task": record.task, "prompt": record.prompt}
    fields |= {
        name: write(name, image)
        for name, image in (("image", record.image), ("mask", record.mask))
        if image is not None
    }
    fields["candidates"] = [
        {"image": write(f"candidates[{number}].image", candidate.image), "sampling": dict(candidate.sampling)}
        for number, candidate in enumerate(record.candidates)
    ]
    fields["votes"] = [dataclasses.asdict(vote) for vote in record.votes]
    fields["pairs"] = [dataclasses.asdict(pair) for pair in record.pairs]
    return fields | ({"notes": dict(record.notes)} if record.notes else {})


def image_sizes(record: Record, where: str) -> list[tuple[int, int]]:
    """Decode all images of a record and return (height, width) of every candidate.

    Raises:
      BadRecord: an image can't be decoded, or mask and image differ in size.
    """
    decode = lambda image, name: _decode(image, f"{where}: {name}").shape[:2]
    if record.image is not None:
        size = decode(record.image, "image")
        if record.mask is not None and (other := decode(record.mask, "mask")) != size:
            raise BadRecord(f"{where}: mask is {other}, its image {size}: give both the same height and width")
    return [decode(candidate.image, f"candidates[{n}].image") for n, candidate in enumerate(record.candidates)]


def _decode(image: bytes, name: str) -> np.ndarray:
    try:
        return read_image(image, name)
    except UserError as error:
        raise BadRecord(str(error)) from None


class _At:
    """Checks one record's fields; error messages begin with the record's place."""

    def __init__(self, where: str):
        self._where = where

    def fail(self, name: str, message: str) -> NoReturn:
        raise BadRecord(f"{self._where}: {name + ' ' if name else ''}{message}")

    def check(self, valid: bool, name: str, message: str) -> None:
        if not valid:
            self.fail(name, message)

    def text(self, value: Any, name: str) -> str:
        self.check(isinstance(value, str), name, f"must be text, not {shown(value)}")
        return value

    def items(self, value: Any, name: str, known: Iterable[str], required: Iterable[str] | None = None) -> list[Any]:
        """Check a list of objects that have all required fields and only known ones."""
        known = tuple(known)
        self.check(isinstance(value, list | tuple), name, "must be a list")
        for number, item in enumerate(value):
            self.check(isinstance(item, Mapping), f"{name}[{number}]", "must be an object")
            for field in item:
                if field not in known:
                    self.fail(f"{name}[{number}].{field}", f"is unknown{did_you_mean(str(field), known)}")
            for field in known if required is None else required:
                self.check(field in item, f"{name}[{number}].{field}", "is missing: give it")
        return list(value)

    def index(self, value: Any, name: str, count: int) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        hint = f"give a candidate's number, 0 to {count - 1}"
        self.check(whole and 0 <= value < count, name, f"is {shown(value)}: {hint}")
        return value

    def dimension(self, value: Any, name: str, task: str, prompt: str) -> None:
        known = dimensions_of(task, prompt)
        hint = f"choose one of {', '.join(known)}"
        if value == "text_alignment" and value in dimensions_of(task):
            hint = "give the record a prompt of its own, or leave the dimension out"
        self.check(value in known, name, f"is {shown(value)}, but this record is not judged on it: {hint}")

    def json_object(self, value: Any, name: str) -> dict[str, Any]:
        self.check(isinstance(value, Mapping), name, "must be a JSON object")
        try:
            if value:
                json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRecord(f"{self._where}: {name} is not JSON ({error}): give text, numbers and lists") from None
        return dict(value)

    def image(self, value: Any, name: str, read: Read) -> bytes:
        try:
            return read(name, value)
        except FileNotFoundError:
            raise BadRecord(f"{self._where}: {name} {shown_name(str(value))} does not exist: check the path") from None
        except (OSError, UserError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BadRecord(f"{self._where}: {name} {shown_name(str(value))} can't be read: {why}") from None
