"""Exported answers: written and read back, and each wrong field is one bad line."""

import dataclasses
import json

import pytest

from onereward_jax.annotation.agreement import measure
from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.gold import read_right_answers
from onereward_jax.annotation.questions import questions_of
from onereward_jax.annotation.votes import answer_of, lines_of, read_answers
from onereward_jax.errors import UserError
from tests.support.annotating import answer, close, open_desk

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
    found = read_answers(file)
    assert found == ANSWERS
    assert found[0].record is found[1].record
    assert found[0].models is found[1].models


def test_a_database_is_read_while_people_vote(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    for given in desk.draw(ann, 2)[0]:
        answer(desk, ann, given)
    found = read_answers(tmp_path)
    assert found == desk.store.answers()
    assert {one.annotator for one in found} == {"ann"}
    (tmp_path / "answers.jsonl").write_text(lines_of(found))
    assert read_answers(tmp_path / "answers.jsonl") == found
    close(desk)


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
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        read_answers(tmp_path)
    (tmp_path / "votes.sqlite").write_bytes(b"no database, and longer than a header" * 9)
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        read_answers(tmp_path)


def test_right_answers_are_those_of_the_gold_file_of_annotate(tmp_path):
    file = tmp_path / "gold.jsonl"
    gold = [dataclasses.replace(answer, kind="gold") for answer in ANSWERS]

    def every(number: int, right: dict) -> list[dict]:
        asked = questions_of(gold[number].job, gold[number].task, gold[number].prompt)
        return [{"question": question.name} | right for question in asked]

    lines = [
        {"record": "a", "answers": every(0, {"best": 0, "worst": 1})},
        {"record": "b", "answers": every(2, {"verdict": "good"})},
        {"record": "c", "answers": every(3, {"marks": [1, 1, 1]})},
        {"record": "not given to anybody", "answers": [{"question": "structure"}]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    right = read_right_answers(file, gold)
    chosen = [one for one in right if one.question in ("structure", "overall")]
    assert [(one.record, one.best, one.verdict, one.candidate, one.mark) for one in chosen] == [
        ("a", 0, None, None, None),
        ("b", None, "good", None, None),
        *(("c", None, None, candidate, 1) for candidate in range(3)),
    ]
    people = measure(gold, right, draws=0)["annotators"]
    assert (people["ann"]["gold_right"], people["bob"]["gold_right"]) == (0, 0)
    assert read_right_answers(file, ANSWERS[:1]) == []


@pytest.mark.parametrize(
    "line", ['{"record": 1}', '{"record": "a", "answers": [{"question": "structure", "best": 0}]}', "[]", "{"]
)
def test_a_wrong_line_of_right_answers_is_named(tmp_path, line):
    file = tmp_path / "gold.jsonl"
    file.write_text(line)
    with pytest.raises(UserError, match="line 1"):
        read_right_answers(file, [dataclasses.replace(CHOICE, kind="gold")])
