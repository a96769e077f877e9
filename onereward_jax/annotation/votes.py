"""Answers as a command is given them: the database of `onereward annotate`, or answers exported as JSON lines."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

from onereward_jax.annotation.answer import Answer, Verdict, sharing
from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, JOBS, RATING
from onereward_jax.annotation.store import FILE, KINDS, Store
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.preferences.dataset import BAD_SHARE
from onereward_jax.data.preferences.record import MAX_CANDIDATES
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import json_lines
from onereward_jax.tasks import TASKS

_VERDICTS = get_args(Verdict)
_NAMES = tuple(field.name for field in dataclasses.fields(Answer))


def read_answers(path: Path, bad_share: float = BAD_SHARE) -> list[Answer]:
    """Read answers in the order of time; bad lines are reported and skipped.

    Args:
      path: a database of votes, the directory that holds votes.sqlite, or JSON lines (.jsonl) of answers.
      bad_share: the share of the lines that may be bad.

    Raises:
      FileNotFoundError, UserError: there are no votes, or too many bad ones.
    """
    if path.is_dir():
        path = path / FILE
    if path.suffix == ".jsonl":
        answers = _of_lines(path, bad_share)
    else:
        store = Store(path, create=False)
        try:
            answers = list(sharing(store.iter_answers()))
        finally:
            store.close()
    if not answers:
        raise UserError(f"{path} holds no answers: have people vote first, with `onereward annotate`")
    return answers


def lines_of(answers: Iterable[Answer]) -> str:
    """Write answers as JSON lines, which `read_answers` reads."""
    return "".join(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


def _of_lines(path: Path, bad_share: float) -> list[Answer]:
    skipped = Skipped("votes", str(path), bad_share)
    total = 0

    def good() -> Iterator[Answer]:
        nonlocal total
        for line in json_lines(path):
            total += 1
            try:
                yield answer_of(line.fields())
            except UserError as error:
                skipped.add(f"{line.where}: {error}")

    answers = sorted(sharing(good()), key=lambda answer: answer.at)
    skipped.end(total)
    return answers


def answer_of(fields: Mapping[str, Any]) -> Answer:
    """Make an answer of plain fields, those of `Answer`.

    Raises:
      UserError: a field is wrong; the message names it.
    """
    for name in fields:
        if name not in _NAMES:
            _fail(str(name), "is not a field of an answer: leave it out")
    for name in ("record", "task", "job", "question", "annotator"):
        _check(name in fields, name, "is missing: every answer needs it")
    for name in ("record", "task", "prompt", "job", "question", "annotator", "source", "reason"):
        _check(isinstance(fields.get(name, ""), str), name, "must be text")
    for name in ("seconds", "at"):
        _check(_number(fields.get(name, 0.0), 0, math.inf), name, "must be a number that is not negative")
    for name, known in (("task", TASKS), ("job", JOBS), ("kind", KINDS)):
        value = fields.get(name, "plain")
        _check(value in known, name, f"is {shown(value)}: give one of {', '.join(known)}")
    for name in ("best", "worst", "candidate"):
        value = fields.get(name)
        _check(value is None or _whole(value, MAX_CANDIDATES), name, f"is {shown(value)}: give a candidate's number")
    _ASKED[fields["job"]](fields)
    models, points = fields.get("models") or (), fields.get("points") or ()
    _check(_list_of(models, lambda model: isinstance(model, str)), "models", "must be a list of texts")
    _check(_list_of(points, _is_point), "points", "must be lists of a candidate, x and y")
    given = {name: value for name, value in fields.items() if value is not None}
    return Answer(**({"prompt": ""} | given | {"models": tuple(models), "points": tuple(map(tuple, points))}))


def _best_worst(fields: Mapping[str, Any]) -> None:
    best, worst = fields.get("best"), fields.get("worst")
    _check((best is None) == (worst is None), "best", "and worst belong together: give both, or null for both")
    _check(best is None or best != worst, "worst", "is the best candidate, too: give two")


def _verdict(fields: Mapping[str, Any]) -> None:
    value = fields.get("verdict")
    _check(value in _VERDICTS, "verdict", f"is {shown(value)}: give one of {', '.join(_VERDICTS)}")


def _mark(fields: Mapping[str, Any]) -> None:
    _check(fields.get("candidate") is not None, "candidate", "is missing: say what the mark is of")
    _check(_whole(fields.get("mark"), 6), "mark", f"is {shown(fields.get('mark'))}: give 0 to 5")


_ASKED: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    BEST_WORST: _best_worst,
    GOOD_SAME_BAD: _verdict,
    RATING: _mark,
}


def _check(valid: bool, name: str, message: str) -> None:
    if not valid:
        _fail(name, message)


def _fail(name: str, message: str) -> NoReturn:
    raise UserError(f"{name} {message}")


def _whole(value: Any, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high and value < math.inf


def _list_of(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(good, value))


def _is_point(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return _whole(value[0], MAX_CANDIDATES) and _number(value[1], 0, 1) and _number(value[2], 0, 1)
