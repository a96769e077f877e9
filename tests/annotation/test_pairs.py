"""Preference data from votes: whose count, which pairs they give, and that no source image is on both sides."""

import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.pairs import Rules, counted, is_held_out, voted_records, votes_of, write_preferences
from onereward_jax.annotation.votes import lines_of
from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import open_candidates, open_records
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import BadRecord, Candidate, Preference, Record, pairs_of_votes
from onereward_jax.errors import UserError
from onereward_jax.judge.pairs import read_pairs
from tests.support.preference_examples import picture

COUNT = 4  # candidates of a record
SMALL = [picture(seed, 8, 8) for seed in range(COUNT)]


def digest(source: int) -> str:
    return hashlib.sha256(picture(source, 8, 8)).hexdigest()


def record(number: int, source: int) -> Record:
    image = picture(source, 8, 8)
    candidates = tuple(Candidate(content, {"model": f"m{n % 2}"}) for n, content in enumerate(SMALL))
    return Record(f"r{number}", "image_fill", "a cat", candidates, image=image, notes={"request": number})


def vote(number: int, annotator: str, best: int | None, worst: int | None, **more) -> Answer:
    given_ = {"question": "structure", "models": ("",) * COUNT} | more
    return Answer(
        f"r{number}", "image_fill", "a cat", "best_worst", annotator=annotator, best=best, worst=worst, **given_
    )


@pytest.fixture
def candidates(tmp_path):
    """Ten records of five source images, two each."""
    write_folder(tmp_path / "data", [record(n, n // 2) for n in range(10)], "candidates-0.jsonl")
    return tmp_path / "data"


def test_the_best_wins_over_the_worst_and_with_all_over_every_other():
    only = votes_of([vote(0, "ann", 1, 3)], "best_worst", COUNT)
    assert pairs_of_votes(only) == (Preference("structure", 1, 3),)
    won = {(p.winner, p.loser) for p in pairs_of_votes(votes_of([vote(0, "ann", 1, 3)], "all", COUNT))}
    assert won == {(1, 3), (1, 0), (1, 2), (0, 3), (2, 3)}
    assert pairs_of_votes(votes_of([vote(0, "ann", None, None)], "all", COUNT)) == ()


BALLOTS = st.dictionaries(
    st.sampled_from(["ann", "bob", "cai"]),
    st.one_of(st.just((None, None)), st.permutations(range(COUNT)).map(lambda order: (order[0], order[-1]))),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(BALLOTS, st.sampled_from(["best_worst", "all"]))
def test_a_pair_is_won_by_the_majority_and_draws_are_dropped(ballots, pairs):
    answers = [vote(0, name, *ends) for name, ends in ballots.items()]
    found = voted_records(record(0, 0), answers, Rules(pairs=pairs))
    orders = [ends for ends in ballots.values() if ends[0] is not None]
    assert len(found) == bool(orders)
    leads = {}
    for best, worst in orders:
        ordered = {(best, worst)}
        if pairs == "all":
            rest = set(range(COUNT)) - {best, worst}
            ordered |= {(best, other) for other in rest} | {(other, worst) for other in rest}
        for winner, loser in ordered:
            leads[winner, loser] = leads.get((winner, loser), 0) + 1
            leads[loser, winner] = leads.get((loser, winner), 0) - 1
    expected = {pair for pair, lead in leads.items() if lead > 0}
    assert {(p.winner, p.loser) for one in found for p in one.pairs} == expected


def test_all_votes_keep_both_sides_of_a_disagreement():
    answers = [vote(0, "ann", 0, 1), vote(0, "bob", 1, 0), vote(0, "cai", None, None)]
    assert voted_records(record(0, 0), answers, Rules())[0].pairs == ()
    found = voted_records(record(0, 0), answers, Rules(votes_by="all"))
    assert [(one.id, one.pairs) for one in found] == [
        ("r0/ann", (Preference("structure", 0, 1),)),
        ("r0/bob", (Preference("structure", 1, 0),)),
    ]


def test_the_record_of_one_annotator_keeps_the_votes_of_the_others(tmp_path):
    answers = [vote(0, "ann", 0, 1), vote(0, "bob", 2, 3), vote(0, "cai", None, None)]
    found = voted_records(record(0, 0), answers, Rules(pairs="all", votes_by="all"))
    assert [one.notes["original"] for one in found] == ["r0", "r0"]
    others = [[tuple(vote.values())[1:] for vote in one.notes["other_votes"]] for one in found]
    assert others == [[("bob", 2, 3), ("cai", None, None)], [("ann", 0, 1), ("cai", None, None)]]
    write_folder(tmp_path / "one", found)
    ballots = {(p.id, p.first, p.second): p.ballots["structure"] for p in read_pairs(tmp_path / "one")}
    assert ballots["r0/ann", 0, 3] == (1, 0, 1, 0, 1)
    assert ballots["r0/bob", 2, 3] == (1, 0, 0, 0, 2)


def test_a_bad_record_is_named_once(candidates, tmp_path, capsys):
    next((candidates / "images").rglob("000000-image.png")).write_bytes(b"no image")
    answers = [vote(n, "ann", 0, 1) for n in range(10)]
    found = write_preferences(tmp_path / "out", open_candidates(candidates), answers, Rules(), 0.5, bad_share=0.5)
    assert found["train"]["records"] + found["test"]["records"] == 9
    assert capsys.readouterr().err.count("skipped:") == 1


def test_reasons_and_points_are_kept_once():
    more = {"reason": "a seam", "points": ((2, 0.5, 0.25),), "at": 7.0}
    answers = [vote(0, "ann", 0, 1, **more), vote(0, "ann", 2, 1, question="aesthetics", **more)]
    notes = voted_records(record(0, 0), answers, Rules())[0].notes
    assert notes["reasons"] == [{"annotator": "ann", "reason": "a seam"}]
    assert notes["points"] == [{"annotator": "ann", "candidate": 2, "x": 0.5, "y": 0.25}]
    assert notes["request"] == 0
    assert notes["source_image"] == digest(0)


def test_crops_of_one_image_have_one_source():
    crops = [dataclasses.replace(record(n, n), notes={"source_image": "a.png"}) for n in range(2)]
    found = [voted_records(crop, [vote(n, "ann", 0, 1)], Rules())[0] for n, crop in enumerate(crops)]
    assert [one.notes["source_image"] for one in found] == ["a.png", "a.png"]


@pytest.mark.parametrize("wrong", [{"best": 7}, {"question": "removal_quality"}, {"source": "0" * 64}])
def test_votes_on_other_data_are_refused(wrong):
    with pytest.raises(BadRecord, match="r0"):
        voted_records(record(0, 0), [dataclasses.replace(vote(0, "ann", 0, 1), **wrong)], Rules())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(), min_size=1, unique=True), st.floats(0, 1), st.floats(0, 1))
def test_which_images_are_held_out_depends_on_nothing_else(names, share, other):
    low, high = sorted((share, other))
    assert {n for n in names if is_held_out(str(n), low)} <= {n for n in names if is_held_out(str(n), high)}
    assert not any(is_held_out(str(n), 0.0) for n in names)


def test_about_the_share_is_held_out():
    assert sum(is_held_out(str(n), 0.1) for n in range(5000)) == pytest.approx(500, abs=80)


def test_no_source_image_is_on_both_sides(candidates, tmp_path):
    answers = [vote(n, "ann", n % COUNT, (n + 1) % COUNT, source=digest(n // 2)) for n in range(10)]
    found = write_preferences(tmp_path / "out", open_candidates(candidates), answers, Rules(), 0.5)
    sides = [list(open_records(tmp_path / "out" / part)) for part in ("train", "test")]
    assert [len(side) for side in sides] == [found[part]["records"] for part in ("train", "test")]
    assert sorted(one.id for side in sides for one in side) == sorted(f"r{n}" for n in range(10))
    images = [{one.image for one in side} for side in sides]
    assert all(images)
    assert not images[0] & images[1]
    # What trains the judge reads the folder itself, and finds its train part.
    assert len(read_pairs(tmp_path / "out")) == found["train"]["pairs"]


def test_careless_annotators_are_left_out_by_ten_items_of_the_job(capsys):
    answers = [vote(n, name, 0, 1) for n in range(30) for name in ("ann", "bob", "cai", "dan")]
    for kind, first in (("repeat", 0), ("gold", 100)):
        answers += [vote(first + n, "ann", 0, 1, kind=kind) for n in range(10)]
        answers += [vote(first + n, "bob", 1, 0, kind=kind) for n in range(10)]
        answers += [vote(first + n, "cai", 1, 0, kind=kind) for n in range(9)]  # too few to judge by
    right = [vote(100 + n, "gold", 0, 1) for n in range(10)]
    assert {one.kind for one in counted(answers, Rules())} == {"plain"}
    names = lambda rules, right=(): {one.annotator for one in counted(answers, rules, right)}
    everybody = {"ann", "bob", "cai", "dan"}
    assert names(Rules(leave_out=frozenset({"ann"}))) == everybody - {"ann"}
    assert names(Rules(min_self=0.7)) == everybody - {"bob"}
    assert names(Rules(min_gold=0.7), right) == everybody - {"bob"}
    said = capsys.readouterr().err
    assert "left out: bob" in said
    assert "kept: cai" in said
    # Of another job nothing is known of bob.
    other = dataclasses.replace(answers[1], job="good_same_bad", question="overall", verdict="good")
    found = counted([*answers, other], Rules(min_self=0.7))
    assert [one.annotator for one in found if one.job == "good_same_bad"] == ["bob"]
    for rules in (Rules(leave_out=frozenset({"eve"})), Rules(leave_out=frozenset(everybody)), Rules(min_gold=0.5)):
        with pytest.raises(UserError):
            counted(answers, rules)


def command(*arguments) -> int:
    return cli.main(["preferences", *map(str, arguments)])


def test_the_command_makes_data_in_both_forms(candidates, tmp_path, capsys):
    votes = tmp_path / "votes.jsonl"
    votes.write_text(lines_of([vote(n, "ann", 0, 1) for n in range(4)] + [vote(5, "bob", None, None)]))
    given_ = ("--data", candidates, "--votes", votes, "--held_out_share", 0)
    assert command(*given_, "--out", tmp_path / "folder", "--pairs", "all") == 0
    assert "4 records, 20 votes, 20 pairs" in capsys.readouterr().out
    assert command(*given_, "--out", tmp_path / "tfds", "--pairs", "all", "--form", "tfds") == 0
    folder, tfds = (sorted(open_records(tmp_path / form), key=lambda one: one.id) for form in ("folder", "tfds"))
    assert folder == tfds
    assert not (tmp_path / "folder" / "test").exists()
    assert command(*given_, "--out", tmp_path / "folder") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "more", "words"),
    [
        ([vote(99, "ann", 0, 1)], (), "does not hold 1 of 1"),
        ([vote(0, "ann", 0, 1)], ("--leave_out", "eve"), "eve"),
        ([vote(0, "ann", 0, 1)], ("--min_gold", "0.5"), "--gold"),
        ([vote(0, "ann", 0, 1)], ("--held_out_share", "0.001"), "test would hold no pair"),
        ([vote(0, "ann", 0, 1)], ("--held_out_share", "0.001", "--form", "tfds"), "test would hold no pair"),
        ([vote(0, "ann", 0, 1)], ("--held_out_share", "0.999"), "train would hold no pair"),
        ([vote(0, "ann", None, None)], (), "no votes give a pair"),
        ([vote(0, "ann", 0, 3, source="0" * 64)], (), "not the one that was voted on"),
        ([], (), "no answers"),
    ],
)
def test_the_command_refuses_in_one_sentence(candidates, tmp_path, capsys, answers, more, words):
    votes = tmp_path / "votes.jsonl"
    votes.write_text(lines_of(answers))
    assert command("--data", candidates, "--votes", votes, "--out", tmp_path / "out", *more) == 2
    error = capsys.readouterr().err.splitlines()
    assert words in error[-1]
    assert not (tmp_path / "out").exists()


def test_nothing_asked_for(candidates, capsys):
    assert command("--data", candidates) == 2
    assert "--out" in capsys.readouterr().err
