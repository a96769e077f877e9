import json

import numpy as np
import pytest

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.pairs import Rules, voted_records
from onereward_jax.cli.commands import evaluate_judge
from onereward_jax.data.preferences.ballots import Ballots, count_ballots
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Record, Vote, pairs_of_votes
from onereward_jax.errors import UserError
from onereward_jax.evaluation.accuracy import accuracy_difference, human_accuracy, judge_accuracy, table
from onereward_jax.evaluation.judge_predictions import ballots_of, records_of
from onereward_jax.judge.pairs import Pairs, _pairs_of, read_pairs
from onereward_jax.tasks import CELLS
from tests.support.preference_examples import picture


def test_a_cell_by_hand():
    cell = ("image_fill", "structure")
    records = [
        (*cell, 0.9, 0.1, True),  # right in both orders
        (*cell, 0.8, 0.7, True),  # right with the winner first; the mean of both orders is right
        (*cell, 0.6, 0.9, False),  # right with the winner first; the mean of both orders is wrong
        (*cell, 0.2, 0.5, True),  # wrong, and undecided
    ]
    result = judge_accuracy(records)["cells"]["image_fill"]["structure"]
    assert result["n"] == 4
    assert result["winner_first"] == 3 / 4
    assert result["loser_first"] == 1.5 / 4
    assert result["accuracy"] == (1 + 0.5 + 0.5 + 0.25) / 4
    assert result["both_orders"] == 2 / 4
    assert result["ceiling"] == 3 / 4
    assert result["truth_accuracy"] == (1 + 0.5 + 0.5 + 0.25) / 4
    assert result["position_bias"] == pytest.approx(4.7 / 8 - 0.5)
    assert result["ci95"][0] < result["accuracy"] < result["ci95"][1]


def test_a_judge_that_says_half_is_at_chance():
    result = judge_accuracy([(*cell, 0.5, 0.5, None) for cell in CELLS for _ in range(3)])
    assert table(result) == {
        task: {dimension: 0.5 for other, dimension in CELLS if other == task} for task in result["cells"]
    }
    assert result["overall"]["position_bias"] == 0
    assert result["overall"]["truth_accuracy"] is None
    assert table(result, "ceiling") == {}


def test_a_judge_that_always_says_yes_is_at_chance_with_full_bias():
    overall = judge_accuracy([(*CELLS[0], 0.99, 0.99, True)] * 10)["overall"]
    assert (overall["winner_first"], overall["loser_first"], overall["accuracy"]) == (1, 0, 0.5)
    assert overall["position_bias"] == pytest.approx(0.49)


def test_calibration_of_a_calibrated_judge():
    generator = np.random.default_rng(0)
    records = []
    for _ in range(4000):
        p = float(generator.uniform())  # P(first image is better), and it is, with that probability
        first_won = generator.uniform() < p
        records.append((*CELLS[0], p, 1 - p, None) if first_won else (*CELLS[0], 1 - p, p, None))
    overall = judge_accuracy(records)["overall"]
    assert overall["calibration_error"] < 0.02
    assert sum(b["n"] for b in overall["calibration"]) == 8000
    assert all(b["lower"] <= b["predicted"] <= b["upper"] for b in overall["calibration"])
    json.dumps(overall, allow_nan=False)


def test_the_difference_of_two_judges_by_hand():
    cell, other = ("image_fill", "structure"), ("object_removal", "removal_quality")
    records = [(*cell, 0.9, 0.1, None), (*cell, 0.8, 0.7, None), (*other, 0.2, 0.9, None)]
    others = [(*cell, 0.1, 0.1, None), (*cell, 0.2, 0.7, None), (*other, 0.9, 0.9, None)]
    found = accuracy_difference(records, others)
    assert found["cells"]["image_fill"]["structure"]["difference"] == ((1 - 0.5) + (0.5 - 0)) / 2
    assert found["cells"]["object_removal"]["removal_quality"]["difference"] == 0 - 0.5
    assert found["tasks"]["image_fill"] == found["cells"]["image_fill"]["structure"]
    assert (found["overall"]["n"], found["overall"]["difference"]) == (3, pytest.approx(0.5 / 3))
    low, high = found["overall"]["ci95"]
    assert low < found["overall"]["difference"] < high
    turned = accuracy_difference(others, records)["overall"]
    assert turned["ci95"] == pytest.approx([-high, -low])
    assert accuracy_difference([], []) == {"cells": {}, "tasks": {}, "overall": None}
    with pytest.raises(UserError):
        accuracy_difference(records, records[:2])


def test_no_records_and_wrong_records():
    assert judge_accuracy([]) == {"cells": {}, "overall": None}
    with pytest.raises(UserError):
        judge_accuracy([("object_removal", "structure", 0.5, 0.5, None)])
    with pytest.raises(UserError):
        judge_accuracy([("image_fill", "structure", float("nan"), 0.5, None)])


def ballot(first, second, neither=0, group=0, dimension="structure"):
    return ("image_fill", dimension, Ballots(first, second, neither=neither), group)


@pytest.mark.parametrize(
    ("votes", "accuracy", "n"),
    [
        ((3, 0), 1.0, 3),
        ((2, 1), 0.0, 1),  # of the two others who chose the first, each sees a draw of the rest: no label
        ((1, 1), 0.0, 2),
        ((3, 1), 0.75, 4),
        ((2, 0, 1), 2.5 / 3, 3),
    ],
)
def test_one_annotator_against_the_majority_of_the_others(votes, accuracy, n):
    found = human_accuracy([ballot(*votes)])
    assert found["overall"] == found["cells"]["image_fill"]["structure"]
    assert (found["overall"]["accuracy"], found["overall"]["n"]) == (pytest.approx(accuracy), n)


def test_without_overlapping_votes_nothing_is_known_of_annotators():
    assert human_accuracy([]) is None
    assert human_accuracy([ballot(1, 0), ballot(0, 1, group=1)]) is None
    with pytest.raises(UserError):
        human_accuracy([ballot(1, 1, dimension="removal_quality")])


def test_annotators_of_known_skill_agree_as_they_should():
    draw = np.random.default_rng(0)
    skill = 0.8
    ballots = [ballot(right, 3 - right, group=n) for n, right in enumerate(draw.binomial(3, skill, 4000))]
    # Two others who agree are both right, or both wrong.
    expected = (skill**3 + (1 - skill) ** 3) / (skill**2 + (1 - skill) ** 2)
    found = human_accuracy(ballots)["overall"]
    assert found["accuracy"] == pytest.approx(expected, abs=0.02)
    assert found["ci95"][0] < expected < found["ci95"][1]


CANDIDATES = tuple(Candidate(picture(n, 8, 8)) for n in range(4))


def voted(number: int, votes, votes_by: str = "majority") -> list[Record]:
    """A record with votes, {annotator: (best, worst)}; with votes_by "all" one an annotator."""
    fields = Record(f"r{number}", "image_fill", "a cat", CANDIDATES)
    answers = [
        Answer(fields.id, "image_fill", "a cat", "best_worst", "structure", name, best=ends[0], worst=ends[1])
        for name, ends in votes.items()
    ]
    return voted_records(fields, answers, Rules(votes_by=votes_by))


def test_a_vote_counts_on_every_pair_that_it_orders():
    (record,) = voted(0, {"ann": (0, 3), "bob": (1, 0), "cai": (2, 3), "dan": (None, None)})
    assert count_ballots(record) == {
        ("structure", 0, 3): Ballots(1, 0, 1, 1, 1),  # cai's 2 > 3 orders 0 > 3, bob's 1 > 0 orders 3 > 0
        ("structure", 0, 1): Ballots(0, 1, 1, 0, 2),  # cai's has 0 and 1 in between
        ("structure", 2, 3): Ballots(1, 0, 1, 0, 2),
    }


def test_of_several_votes_each_says_what_it_names():
    ranked = tuple(Vote("structure", "ann", *ends) for ends in ((0, 1), (0, 2), (1, 2)))
    record = Record("r", "image_fill", "a cat", CANDIDATES, (*ranked, Vote("structure", "bob", 3, 1)))
    assert count_ballots(record)["structure", 1, 3] == Ballots(0, 1, 0, 0, 1)
    assert count_ballots(record)["structure", 0, 1] == Ballots(1, 0, 1, 0, 0)
    assert count_ballots(record)["structure", 0, 2] == Ballots(1, 0, 0, 0, 1)


def pairs_in(records: list[Record]) -> Pairs:
    found = [pair for row, record in enumerate(records) for pair in _pairs_of(0, row, record, [(8, 8)] * 4)]
    return Pairs([], [pair for pair in found if pair.labels], [pair for pair in found if not pair.labels])


@pytest.mark.parametrize("votes_by", ["majority", "all"])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_annotators_of_known_noise_have_the_ceiling_of_a_fourth(noise, votes_by):
    draw = np.random.default_rng(0)
    records, right = [], []
    for number in range(800):
        seen = draw.normal(size=4) + noise * draw.normal(size=(4, 4))  # by three annotators, and by one more
        votes = {name: (int(one.argmax()), int(one.argmin())) for name, one in zip("abc", seen, strict=False)}
        records += (found := voted(number, votes, votes_by))
        right += [seen[3, pair.winner] > seen[3, pair.loser] for one in found for pair in one.pairs]
    found = human_accuracy(ballots_of(pairs_in(records)))["overall"]
    # Of two candidates in between an annotator's choice is unknown, and counts half.
    assert found["accuracy"] == pytest.approx(np.mean(right) - 0.01, abs=0.03)


def test_each_annotators_record_is_asked_of_the_others():
    votes = {"ann": (0, 3), "bob": (1, 0), "cai": (None, None)}
    records = voted(0, votes, "all")
    assert [one.id for one in records] == ["r0/ann", "r0/bob"]
    found = human_accuracy(ballots_of(pairs_in(records)))["overall"]
    # bob says 3 > 0, ann 0 > 1, cai neither of both.
    assert (found["n"], found["accuracy"]) == (4, 0.25)
    assert len(set(records_of(pairs_in([*records, *voted(1, votes, "all")])))) == 2


def test_votes_of_a_dataset_stand_beside_the_judge(tmp_path):
    votes = [Vote("structure", name, *ends) for name, ends in (("ann", (0, 1)), ("bob", (0, 1)), ("cai", (1, 0)))]
    candidates = tuple(Candidate(picture(n, 8, 8)) for n in range(2))
    records = [
        Record(str(n), "image_fill", "a cat", candidates, tuple(given), pairs_of_votes(given))
        for n, given in enumerate(
            (votes, [votes[0], votes[2]], votes[:2], [votes[0], Vote("structure", "dan", None, None)])
        )
    ]
    write_records(tmp_path / "voted", iter(records), "folder")
    pairs = read_pairs(tmp_path / "voted")
    assert (len(pairs), len(pairs.drawn)) == (3, 1)
    # The one of three who sees the others agree is wrong, two who differ are wrong, two who agree are right, and who
    # sees no difference is half right.
    found = human_accuracy(ballots_of(pairs))
    assert (found["overall"]["n"], found["overall"]["accuracy"]) == (6, pytest.approx(2.5 / 6))
    shown = evaluate_judge._table("judge", judge_accuracy([("image_fill", "structure", 0.9, 0.1, None)]), found)
    assert "0.42" in shown.splitlines()[2]
    assert len(pairs.where(lambda pair: pair.id == "1").drawn) == 1
