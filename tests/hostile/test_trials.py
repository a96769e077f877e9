"""What comes of a trial, and one that is run again alone."""

import pytest

from onereward_jax.errors import UserError
from tests.support import hostile
from tests.support.hostile import Trials


@pytest.fixture(autouse=True)
def short_form(monkeypatch):
    for name, value in (("LONG", False), ("ALONE", "")):
        monkeypatch.setattr(hostile, name, value)


def test_outcomes_are_counted_and_failures_named():
    ends = [None, UserError("a is b: give c"), UserError(""), KeyError("a")]
    trials = Trials("ends", short=4, long=4, each=5)
    for trial in trials:
        with trial:
            if error := ends[trial.number]:
                raise error
    assert (trials.accepted, trials.refused) == (5, 5)
    assert [failure.partition(":")[0] for failure in trials.failures] == ["trial 2", "trial 3"]
    with pytest.raises(AssertionError, match="2 of 4 trials of ends failed"):
        trials.check()


def test_a_trial_runs_alone_as_it_did_among_the_others(monkeypatch):
    draws = {trial.number: trial.rng.random() for trial in Trials("draws", short=9, long=9)}
    monkeypatch.setattr(hostile, "ALONE", "7")
    assert [(trial.number, trial.rng.random()) for trial in Trials("draws", short=9, long=9)] == [(7, draws[7])]
