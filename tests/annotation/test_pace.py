"""How fast annotators are: by the last hour, up to now."""

from onereward_jax.annotation.pace import median_seconds, per_hour


def test_pace_is_that_of_the_last_hour():
    votes = [(60.0 * minute, 10.0) for minute in range(31)]  # one a minute, for half an hour
    assert per_hour(votes, 1800.0) == 60.0
    assert per_hour(votes, 3000.0) == 36.0  # twenty minutes later
    assert per_hour(votes, 6000.0) is None  # who has stopped
    assert per_hour(votes[:1], 60.0) is None
    assert per_hour(votes[:1] * 2, 0.0) is None
    assert per_hour([], 0.0) is None


def test_median_of_the_seconds():
    assert median_seconds([(0.0, 1.0), (1.0, 2.0), (2.0, 9.0)]) == 2.0
    assert median_seconds([]) is None
