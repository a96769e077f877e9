"""Records with known right answers, by which annotators' attention is measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.ballot import Choice, choices_of
from onereward_jax.annotation.items import MAX_SHOWN, Items
from onereward_jax.annotation.questions import GOOD_SAME_BAD, Question, questions_of
from onereward_jax.annotation.store import answers_of
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import json_lines


class _Asked(NamedTuple):
    """What is asked about a record."""

    job: str
    questions: Sequence[Question]
    candidates: int


def read_gold(path: Path, items: Items) -> dict[str, list[Choice]]:
    """Read right answers: JSON lines `{"record": id, "answers": [...]}`.

    Answers are as `POST /api/votes` takes them, with candidates numbered as in the record: `{"question", "best",
    "worst"}`, `{"question", "marks"}`, or `{"question": "overall", "verdict": "good" | "same" | "bad"}`, of the first
    candidate.

    Returns:
      {record: answers}

    Raises:
      UserError: a line is wrong, or names no record of the data.
    """

    def asked(name: str) -> _Asked:
        place = items.place(name)
        if place is None:
            raise UserError(f"record {shown(name)} is not among the data: give record and answers of one that is")
        return _Asked(items.job, items[place].questions(items.job), len(items[place].models))

    return dict(_right(path, asked))


def read_right_answers(path: Path, answers: Iterable[Answer]) -> list[Answer]:
    """Read the right answers to gold items that were given, see `read_gold`; other records are passed over.

    Args:
      answers: all that were given; they know a record's task and job.

    Raises:
      FileNotFoundError, UserError: the file can't be read, or a line is wrong.
    """
    known: dict[str, Answer] = {}
    last: dict[str, int] = {}  # candidate that has a mark
    for answer in answers:
        if answer.kind == "gold":
            known[answer.record] = answer
            last[answer.record] = max(last.get(answer.record, -1), -1 if answer.candidate is None else answer.candidate)

    def asked(name: str) -> _Asked | None:
        if name not in known:
            return None
        given = known[name]
        # Exported answers may leave out the models, which say how many candidates there are.
        count = len(given.models) or last[name] + 1 or MAX_SHOWN
        return _Asked(given.job, questions_of(given.job, given.task, given.prompt), count)

    common = ("record", "task", "prompt", "job", "models", "source")
    right: list[Answer] = []
    for name, choices in _right(path, asked):
        fields = {field: getattr(known[name], field) for field in common}
        right += answers_of(choices, **fields, annotator="gold", kind="gold")
    return right


def _right(path: Path, asked: Callable[[str], _Asked | None]) -> Iterator[tuple[str, list[Choice]]]:
    """Yield (record, right answers) of every line.

    Args:
      asked: says what is asked about a record, or None to pass over it.

    Raises:
      UserError: a line is wrong.
    """
    for line in json_lines(path):
        try:
            fields = line.fields()
            name = fields.get("record")
            if not isinstance(name, str) or fields.keys() - {"record", "answers"}:
                raise UserError(f"record is {shown(name)}: give record, a text, and answers")
            if (found := asked(name)) is None:
                continue
            answers = _sides(found.job, fields.get("answers"))
            choices = choices_of(found.job, found.questions, range(found.candidates), answers)
        except UserError as error:
            raise UserError(f"{line.where}: {error}") from None
        yield name, choices


def _sides(job: str, answers: object) -> object:
    """Say good and bad as the page does, where the first candidate is on the left."""
    if job != GOOD_SAME_BAD or not isinstance(answers, list):
        return answers
    sides = {"good": "left", "same": "same", "bad": "right"}
    turn = lambda one: one | {"verdict": sides.get(str(one.get("verdict")))} if isinstance(one, dict) else one
    return [turn(one) for one in answers]
