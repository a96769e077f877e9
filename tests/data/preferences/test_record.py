"""Checks of a record, and the pairs that follow from votes."""

import pytest

from onereward_jax.data.preferences.dataset import good_records, open_records
from onereward_jax.data.preferences.record import BadRecord, Preference, Vote, pairs_of_votes, record_of
from onereward_jax.errors import UserError
from tests.support.preference_examples import picture, write_lines

LINE = {
    "id": "a",
    "task": "image_fill",
    "prompt": "a cat",
    "candidates": [{"image": "x.png"}, {"image": "y.png"}],
    "votes": [{"dimension": "structure", "annotator": "ann", "best": 0, "worst": 1}],
}
VOTE = LINE["votes"][0]
PAIR = {"dimension": "structure", "winner": 0, "loser": 1}


def test_the_majority_wins_a_pair_in_each_dimension_separately():
    votes = [
        Vote("structure", "ann", 2, 0),
        Vote("structure", "bob", 0, 2),
        Vote("structure", "cai", 2, 0),
        Vote("structure", "dee", 2, 1),
        Vote("aesthetics", "ann", 0, 2),
        Vote("aesthetics", "bob", None, None),
        Vote("consistency", "ann", 0, 1),
        Vote("consistency", "bob", 1, 0),
    ]
    assert pairs_of_votes(votes) == (
        Preference("structure", 2, 0),
        Preference("structure", 2, 1),
        Preference("aesthetics", 0, 2),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"promt": "x"}, "promt is not a field of a record: did you mean prompt?"),
        ({"colour": "x"}, "colour is not a field of a record: put it into notes"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 3}, "id"),
        ({"task": "image_fil"}, "did you mean image_fill"),
        ({"task": "zzz"}, "'zzz'"),
        ({"prompt": ""}, "prompt"),
        ({"candidates": LINE["candidates"][:1]}, "candidates has length 1: give at least two"),
        ({"candidates": LINE["candidates"] * 129}, "candidates has length 258: give at most 256"),
        ({"candidates": "x.png"}, "candidates"),
        ({"candidates": [{}, {}]}, r"candidates\[0\].image"),
        ({"candidates": [{"image": "x.png", "seed": 3}] * 2}, r"candidates\[0\].seed"),
        ({"candidates": [{"image": "x.png", "sampling": 3}] * 2}, r"candidates\[0\].sampling"),
        ({"candidates": [{"image": "z.png"}] * 2}, r"candidates\[0\].image z.png"),
        ({"candidates": [{"image": "../x.png"}] * 2}, r"\.\./x\.png"),
        ({"candidates": [{"image": ""}] * 2}, r"candidates\[0\]"),
        ({"votes": [VOTE | {"best": 2}]}, r"votes\[0\].best"),
        ({"votes": [VOTE | {"best": True}]}, r"votes\[0\].best"),
        ({"votes": [VOTE | {"best": None}]}, "best and worst"),
        ({"votes": [VOTE | {"best": 1}]}, "candidate 1"),
        (
            {"votes": [VOTE | {"dimension": "removal_quality"}]},
            "is 'removal_quality', but this record is not judged on it",
        ),
        ({"votes": [{"dimension": "structure"}]}, r"votes\[0\].annotator"),
        ({"pairs": [PAIR | {"winner": 1, "loser": 0}]}, "pairs do not follow from the votes"),
        ({"votes": None, "pairs": [PAIR, PAIR | {"winner": 1, "loser": 0}]}, "twice in structure"),
        ({"votes": None, "pairs": [PAIR | {"loser": 0}]}, "candidate 0"),
        ({"mask": "x.png"}, "mask"),
        ({"notes": [3]}, "notes"),
        ({"notes": {"other_votes": [VOTE | {"best": 2}]}}, r"notes.other_votes\[0\].best"),
        ({"notes": {"other_votes": "ann"}}, "notes.other_votes"),
        (
            {"task": "image_extend", "prompt": "", "votes": [VOTE | {"dimension": "text_alignment"}]},
            "is 'text_alignment', but this record is not judged on it: give the record a prompt",
        ),
    ],
)
def test_errors_name_the_wrong_field(tmp_path, changes, words):
    line = {name: value for name, value in (LINE | changes).items() if value is not None or name == "votes"}
    folder = write_lines(tmp_path / "data", ["", line], {"x.png": picture(0), "y.png": picture(1), "../x.png": b""})
    records = open_records(folder)
    with pytest.raises(BadRecord, match=words) as error:
        records[0]
    assert str(error.value).startswith(f"{folder / 'preferences.jsonl'}, line 2: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ['{"id": ', "[3]", '"x"', "3"])
def test_lines_that_are_not_objects(tmp_path, line):
    with pytest.raises(BadRecord, match=r"line 1: it is (no JSON|\w+ and no object)"):
        open_records(write_lines(tmp_path, [line], {}))[0]


def test_values_that_json_lacks():
    line = LINE | {"notes": {"x": float("nan")}}
    with pytest.raises(BadRecord, match="notes"):
        record_of(line, "here", lambda name, value: b"")


def test_images_are_decoded(tmp_path, capsys):
    pictures = {"x.png": picture(0), "y.png": picture(1)[:200], "word.png": b"word", "big.png": picture(2, 30, 30)}
    good = LINE | {"candidates": [{"image": "x.png"}, {"image": "big.png"}]}
    lines = [
        LINE,
        LINE | {"id": "b", "candidates": [{"image": "x.png"}, {"image": "word.png"}]},
        good | {"id": "c", "image": "x.png", "mask": "big.png"},
        good,
        good,
        "{",
    ]
    folder = write_lines(tmp_path, lines, pictures)
    found = list(good_records(open_records(folder), bad_share=0.9))
    assert [(checked.index, checked.sizes) for checked in found] == [(3, [(24, 32), (30, 30)])]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    for line, number, words in zip(
        said,
        (1, 2, 3, 5, 6),
        (
            "candidates[1].image is a damaged image",
            "candidates[1].image is not a readable image",
            "mask is (30, 30), its image (24, 32): give both the same height and width",
            "id 'a' is there twice",
            "it is no JSON",
        ),
        strict=True,
    ):
        assert line.startswith(f"skipped: {folder / 'preferences.jsonl'}, line {number}: ")
        assert words in line


def test_too_many_bad_records_are_an_error(tmp_path, capsys):
    lines = [LINE | {"id": str(number), "prompt": "" if number < 15 else "a cat"} for number in range(100)]
    records = open_records(write_lines(tmp_path, lines, {"x.png": picture(0), "y.png": picture(1)}))
    assert len(list(good_records(records, bad_share=0.15))) == 85
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11
    assert said[-1] == f"skipped: 5 more records in {tmp_path}"
    with pytest.raises(UserError, match=r"15 of 100 records in .* are bad, .* share of 0\.14"):
        list(good_records(records, bad_share=0.14))


def test_the_callers_check(tmp_path, capsys):
    records = open_records(write_lines(tmp_path, [LINE], {"x.png": picture(0), "y.png": picture(1)}))

    def check(found):
        raise UserError(f"{found.record.prompt} is not what we want")

    assert list(good_records(records, check, bad_share=1.0)) == []
    assert "line 1: a cat is not what we want" in capsys.readouterr().err
