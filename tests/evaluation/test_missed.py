"""What an old judge gets wrong and a new one right."""

import pytest

from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.evaluation.missed import answers_of, count_kinds, policy_preferred, worst_found
from onereward_jax.judge.pairs import read_pairs
from tests.support.preference_examples import picture


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Of four records, in which the second candidate, the policy's, wins."""
    made = ({"model": "base"}, {"model": "policy"})
    candidates = tuple(Candidate(picture(number), by) for number, by in enumerate(made))
    wins = (Preference("structure", 1, 0),)
    records = [Record(f"r{n}", "image_fill", "a cat", candidates, pairs=wins, image=picture(3)) for n in range(4)]
    directory = tmp_path_factory.mktemp("missed") / "data"
    write_records(directory, iter(records), "folder")
    return read_pairs(directory)


@pytest.fixture
def answers(pairs):
    """P(the first is better) with the winner first, and with the loser first."""
    answer = lambda winner_first, loser_first: ("image_fill", "structure", winner_first, loser_first, None)
    sure, wrong, biased = answer(0.9, 0.1), answer(0.1, 0.9), answer(0.8, 0.7)  # the last prefers the first image
    return answers_of(pairs, [wrong, answer(0.4, 0.6), sure, wrong], [sure, biased, wrong, wrong])


def test_kinds_are_counted(answers):
    assert [answer.kind for answer in answers] == ["found", "found", "lost", "wrong"]
    assert (answers[0].winner, answers[0].loser) == (1, 0)
    assert answers[1].new == pytest.approx(0.55)
    assert count_kinds(answers) == {
        "image_fill": {"structure": {"n": 4, "found": 2, "lost": 1, "right": 0, "wrong": 1}}
    }


def test_the_worst_come_first(answers):
    assert [answer.pair.id for answer in worst_found(answers, 5)] == ["r0", "r1"]
    assert [answer.pair.id for answer in worst_found(answers, 1)] == ["r0"]


def test_who_prefers_the_policy(pairs, answers):
    found = policy_preferred(pairs, answers, "policy", "base")
    shares = [found[name]["share"] for name in ("annotators", "old", "new")]
    assert found["n"] == 4
    assert shares == [1.0, 0.25, 0.5]
    assert policy_preferred(pairs, answers, "another", "base") is None


def test_the_request_of_a_pair(pairs):
    assert pairs.request_image(pairs[0], "image").shape == (24, 32, 3)
    assert pairs.request_image(pairs[0], "mask") is None
