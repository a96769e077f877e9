"""An annotator's answers as the page sends them: checked, and numbered as in the record instead of as shown."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, Question
from onereward_jax.errors import UserError, shown

MAX_REASON = 2000  # characters
MAX_POINTS = 50
MAX_SECONDS = 86_400.0
MAX_KEY = 64  # characters
VERDICTS = ("left", "same", "right")
_GOOD, _SAME, _BAD = "good", "same", "bad"

Choice = dict[str, Any]  # one question's answer, as stored: {"question", "best", "worst"}, ... "verdict", ... "marks"


@dataclasses.dataclass(frozen=True)
class Ballot:
    """What an annotator's page sends; candidates are numbered by the places at which they were shown.

    Attributes:
      code: of the assignment.
      key: the page's own name for this vote: sent again, it is not counted again.
      answers, reason, points, seconds: see the functions below.
    """

    code: Any
    key: Any
    answers: Any
    reason: Any = None
    points: Any = None
    seconds: Any = 0.0


class BadBallot(UserError):
    """Answers that can't be taken; the message says why."""


def fail(message: str) -> NoReturn:
    raise BadBallot(message)


def choices_of(job: str, questions: Sequence[Question], shown_order: Sequence[int], answers: Any) -> list[Choice]:
    """Check the answers to all questions of an item, and number candidates as in the record.

    Args:
      job: one of `questions.JOBS`.
      shown_order: the candidate shown at each place.
      answers: what the page sent, candidates numbered by their places.

    Raises:
      BadBallot: a question is missing, there twice or unknown, or an answer is none.
    """
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        fail("answers must be a list of objects, one for each question")
    names = [answer.get("question") for answer in answers]
    expected = [question.name for question in questions]
    if not all(isinstance(name, str) for name in names) or sorted(names) != sorted(expected):
        fail(f"answers must answer each question once: {', '.join(expected)}")
    given = dict(zip(names, answers, strict=True))
    check = {BEST_WORST: _best_worst, GOOD_SAME_BAD: _verdict}.get(job, _marks)
    return [{"question": question.name} | check(question, shown_order, given[question.name]) for question in questions]


def _best_worst(question: Question, shown_order: Sequence[int], answer: Mapping[str, Any]) -> Choice:
    _only(answer, ("question", "best", "worst"))
    best, worst = answer.get("best"), answer.get("worst")
    if best is None and worst is None:
        return {"best": None, "worst": None}
    if best is None or worst is None:
        fail(f"{question.name} has only one of best and worst: give both, or null for both")
    best, worst = (_place(value, name, shown_order) for name, value in (("best", best), ("worst", worst)))
    if best == worst:
        fail(f"{question.name} has one candidate as best and as worst: give two")
    return {"best": best, "worst": worst}


def _verdict(question: Question, shown_order: Sequence[int], answer: Mapping[str, Any]) -> Choice:
    _only(answer, ("question", "verdict"))
    verdict = answer.get("verdict")
    if verdict not in VERDICTS:
        fail(f"verdict is {shown(verdict)}: give one of {', '.join(VERDICTS)}")
    if verdict == "same":
        return {"verdict": _SAME}
    chosen = shown_order[0 if verdict == "left" else 1]
    return {"verdict": _GOOD if chosen == 0 else _BAD}


def _marks(question: Question, shown_order: Sequence[int], answer: Mapping[str, Any]) -> Choice:
    _only(answer, ("question", "marks"))
    marks = answer.get("marks")
    low, high = question.scale or (0, 1)
    if not isinstance(marks, list) or len(marks) != len(shown_order):
        fail(f"{question.name} needs a list of {len(shown_order)} marks, one for each candidate")
    if not all(type(mark) is int and low <= mark <= high for mark in marks):
        fail(f"{question.name} has a mark that is no whole number from {low} to {high}")
    of_candidate = dict(zip(shown_order, marks, strict=True))
    return {"marks": [of_candidate[candidate] for candidate in range(len(marks))]}


def as_shown(choices: Iterable[Choice], shown_order: Sequence[int]) -> list[Choice]:
    """Number stored choices by the places at which candidates are shown: the inverse of `choices_of`."""
    place = {candidate: number for number, candidate in enumerate(shown_order)}
    found = []
    for choice in choices:
        turned = dict(choice)
        if "best" in choice:
            turned |= {end: None if choice[end] is None else place[choice[end]] for end in ("best", "worst")}
        elif "verdict" in choice:
            sides = {_SAME: "same", _GOOD: VERDICTS[2 * place[0]], _BAD: VERDICTS[2 * place[1]]}
            turned["verdict"] = sides[choice["verdict"]]
        else:
            turned["marks"] = [choice["marks"][candidate] for candidate in shown_order]
        found.append(turned)
    return found


def reason_of(value: Any) -> str:
    """Check an annotator's words; None is no words."""
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_REASON:
        fail(f"reason must be text of at most {MAX_REASON} characters")
    return value.strip()


def points_of(value: Any, shown_order: Sequence[int]) -> list[tuple[int, float, float]]:
    """Check points on defects, and number their candidates as in the record; None is no points."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_POINTS:
        fail(f"points must be a list of at most {MAX_POINTS}")
    points = []
    for point in value:
        if not isinstance(point, Mapping):
            fail("a point must be an object with candidate, x and y")
        _only(point, ("candidate", "x", "y"))
        x, y = (_share(point.get(name), name) for name in ("x", "y"))
        points.append((_place(point.get("candidate"), "candidate", shown_order), x, y))
    return points


def seconds_of(value: Any) -> float:
    """Check how long the annotator took; what is longer than a day counts as one."""
    seconds = -1.0
    if _is_number(value):
        seconds = float(value) if value < MAX_SECONDS else MAX_SECONDS
    if not seconds >= 0:  # NaN is not
        fail("seconds must be a number that is not negative")
    return seconds


def key_of(value: Any) -> str:
    """Check the page's own key of a vote."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_KEY or not value.isprintable():
        fail(f"key must be text of 1 to {MAX_KEY} characters")
    return value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _place(value: Any, name: str, shown_order: Sequence[int]) -> int:
    if type(value) is not int or not 0 <= value < len(shown_order):
        fail(f"{name} is {shown(value)}: give a candidate's number, 0 to {len(shown_order) - 1}")
    return shown_order[value]


def _share(value: Any, name: str) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        fail(f"{name} of a point must be a number from 0 to 1")
    return float(value)


def _only(given: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = [name for name in given if name not in tuple(known)]
    if unknown:
        fail(f"{shown(unknown[0])} is unknown: leave it out")
