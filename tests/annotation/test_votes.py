"""Exported answers: written and read back, and each wrong field is one bad line."""

import dataclasses
import json

import pytest

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.votes import answer_of, lines_of, read_answers
from onereward_jax.errors import UserError

CHOICE = Answer(
    "a", "image_fill", "a “cat”", "best_worst", "structure", "ann", seconds=3.5, at=2.0, best=1, worst=0,
    models=("x", ""), source="ff", reason="its paw", points=((1, 0.25, 1.0),),
)  # fmt: skip
ANSWERS = [
    CHOICE,
    dataclasses.replace(CHOICE, best=None, worst=None, at=3.0, kind="repeat"),
    Answer("b", "object_removal", "", "good_same_bad", "overall", "bob", verdict="bad", at=4.0),
    Answer("c", "image_extend", "", "rating", "structure", "bob", candidate=2, mark=5, at=5.0),
]


def test_answers_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(lines_of(reversed(ANSWERS)))
    assert read_answers(file) == ANSWERS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "paint"),
        ("job", ["best_worst"]),
        ("kind", "odd"),
        ("best", -1),
        ("best", True),
        ("worst", 1),
        ("worst", None),
        ("seconds", -1),
        ("at", "now"),
        ("models", "x"),
        ("points", [[0, 2.0, 0.5]]),
        ("annotator", 7),
        ("else", 1),
    ],
)
def test_a_wrong_field_is_named(field, value):
    fields = dataclasses.asdict(CHOICE) | {field: value}
    with pytest.raises(UserError, match=f"{field}|best"):
        answer_of(json.loads(json.dumps(fields)))


@pytest.mark.parametrize("field", ["record", "question", "annotator", "job", "task"])
def test_a_missing_field_is_named(field):
    fields = {name: value for name, value in dataclasses.asdict(CHOICE).items() if name != field}
    with pytest.raises(UserError, match=field):
        answer_of(fields)


def test_bad_lines_are_skipped_up_to_a_share(tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    file.write_text(lines_of(ANSWERS * 30) + "[]\n")
    assert len(read_answers(file)) == 120
    assert "line 121" in capsys.readouterr().err
    file.write_text(lines_of(ANSWERS) + "{\n")
    with pytest.raises(UserError, match="1 of 5"):
        read_answers(file)
    file.write_text("")
    with pytest.raises(UserError, match="no answers"):
        read_answers(file)
    with pytest.raises(FileNotFoundError):
        read_answers(tmp_path / "none.jsonl")
