"""Records with known right answers, by which annotators' attention is measured."""

from pathlib import Path

from onereward_jax.annotation.ballot import Choice, choices_of
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.questions import GOOD_SAME_BAD
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import json_lines


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
    found: dict[str, list[Choice]] = {}
    for line in json_lines(path):
        try:
            fields = line.fields()
            name = fields.get("record")
            place = items.place(name) if isinstance(name, str) else None
            if place is None or fields.keys() - {"record", "answers"}:
                raise UserError(f"record {shown(name)} is not among the data: give record and answers of one that is")
            item = items[place]
            order, answers = range(len(item.models)), _sides(items.job, fields.get("answers"))
            found[item.name] = choices_of(items.job, item.questions(items.job), order, answers)
        except UserError as error:
            raise UserError(f"{line.where}: {error}") from None
    return found


def _sides(job: str, answers: object) -> object:
    """Say good and bad as the page does, where the first candidate is on the left."""
    if job != GOOD_SAME_BAD or not isinstance(answers, list):
        return answers
    sides = {"good": "left", "same": "same", "bad": "right"}
    turn = lambda one: one | {"verdict": sides.get(str(one.get("verdict")))} if isinstance(one, dict) else one
    return [turn(one) for one in answers]
