"""Bad records in a user's data."""

import pytest

from onereward_jax.data.bad_records import Skipped
from onereward_jax.errors import UserError
from onereward_jax.parallel import hosts


@pytest.mark.parametrize("share", [float("nan"), -1, 1.5, float("inf"), None])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(UserError, match="the share of bad records must be a number from 0 to 1, not"):
        Skipped("records", "here", share)


def test_more_than_the_share_is_an_error(capsys):
    skipped = Skipped("records", "here", 0.5)
    skipped.add("one is torn")
    skipped.end(2)
    with pytest.raises(UserError, match="1 of 1 records in here are bad, more than the allowed"):
        skipped.end(1)
    assert capsys.readouterr().err == "skipped: one is torn\n"


def test_of_several_processes_the_primary_reports(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "is_primary", lambda: False)
    skipped = Skipped("records", "here", 1.0)
    for number in range(11):
        skipped.add(f"{number} is torn")
    skipped.end(11)
    assert not capsys.readouterr().err
