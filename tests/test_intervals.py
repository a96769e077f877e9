import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.intervals import (
    bootstrap_sums,
    good_minus_bad_interval,
    mean_interval,
    paired_difference_interval,
    percentile_interval,
    share_interval,
    wilson_interval,
)


def test_wilson_equals_published_values():
    # Newcombe 1998 (Stat. Med. 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for successes, n, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        assert wilson_interval(successes, n) == pytest.approx(expected, abs=6e-5)


def test_wilson_of_nothing_and_of_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(50, 50)
    assert high == 1.0
    assert 0.9 < low < 1
    with pytest.raises(UserError):
        wilson_interval(3, 2)


@pytest.mark.parametrize("shares", [(0.4, 0.2), (0.1, 0.1), (0.03, 0.0), (0.95, 0.02), (0.5, 0.5)])
@pytest.mark.parametrize("n", [60, 400])
def test_good_minus_bad_covers_the_truth(shares, n):
    good, bad = shares
    counts = np.random.default_rng(0).multinomial(n, [good, bad, 1 - good - bad], size=2000)
    intervals = np.array([good_minus_bad_interval(int(g), int(b), n) for g, b, _ in counts])
    covered = (intervals[:, 0] <= good - bad) & (good - bad <= intervals[:, 1])
    assert covered.mean() >= 0.94
    if min(good, bad) * n >= 5:  # with rarer events the interval is on the safe side
        assert covered.mean() <= 0.97


def test_good_minus_bad_has_a_width_even_where_all_agree():
    low, high = good_minus_bad_interval(100, 0, 100)
    assert 0.9 < low < 1
    assert high == 1.0
    assert good_minus_bad_interval(30, 30, 100)[0] == -good_minus_bad_interval(30, 30, 100)[1]
    with pytest.raises(UserError):
        good_minus_bad_interval(60, 50, 100)


def test_paired_differences_of_whole_answers_are_good_minus_bad():
    differences = [1.0] * 30 + [-1.0] * 12 + [0.0] * 58
    assert paired_difference_interval(differences) == pytest.approx(good_minus_bad_interval(30, 12, 100))
    halves = paired_difference_interval([x / 2 for x in differences])
    assert halves[0] > paired_difference_interval(differences)[0] / 2 - 0.02
    with pytest.raises(UserError):
        paired_difference_interval([1.5])
    with pytest.raises(UserError):
        paired_difference_interval([0.5, 0.0], ["a"])


def test_paired_differences_cover_the_truth_though_a_scene_has_several():
    """Three questions a scene that hang together: taken for independent, their interval misses far too often."""
    draw, covered, too_narrow, share = np.random.default_rng(0), 0, 0, 0.1
    groups = [scene for scene in range(80) for _ in range(3)]
    for _ in range(1000):
        of_scene = draw.choice([1.0, 0.5, 0.0, -0.5, -1.0], size=80, p=[0.15, 0.1, 0.6, 0.1, 0.05])
        low, high = paired_difference_interval(np.repeat(of_scene, 3), groups)
        covered += low <= share <= high
        low, high = paired_difference_interval(np.repeat(of_scene, 3))
        too_narrow += not low <= share <= high
    assert 0.93 <= covered / 1000 <= 0.98
    assert too_narrow > 150


def test_mean_interval_is_students():
    # t(0.975, 4) = 2.7764; the standard deviation of 1..5 is 1.5811.
    half_width = 2.7764 * 1.5811 / 5**0.5
    assert mean_interval([1, 2, 3, 4, 5], (-100, 100)) == pytest.approx((3 - half_width, 3 + half_width), abs=1e-3)
    assert mean_interval([0.5], (0, 1)) == (0, 1)
    assert mean_interval([0, 1], (0, 1)) == (0, 1)


def test_a_bootstrap_over_groups_has_the_spread_of_their_mean():
    values = np.random.default_rng(0).normal(size=(400, 1))
    means = bootstrap_sums(values, 2000, seed=1)[:, 0] / 400
    assert means.std() == pytest.approx(values.std() / 20, rel=0.06)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    low, high = percentile_interval(means)
    assert (high - low) / 2 == pytest.approx(1.96 * means.std(), rel=0.06)
    assert np.array_equal(bootstrap_sums(values, 3, seed=1), bootstrap_sums(values, 3, seed=1))


def test_a_bootstrap_without_data_knows_nothing():
    assert percentile_interval([]) is None
    assert percentile_interval([np.nan, np.nan, 0.5]) is None
    assert bootstrap_sums(np.zeros((0, 2)), 4).shape == (4, 2)


def test_a_share_of_correlated_values_is_wider_and_never_leaves_its_range():
    values = [1.0, 1.0, 1.0, 0.0] * 20
    apart, together = share_interval(values, range(80)), share_interval(values, [n // 8 for n in range(80)])
    assert 0 < apart[0] < 0.75 < apart[1] < 1
    grouped = share_interval([1.0] * 60 + [0.0] * 20, [n // 8 for n in range(80)])
    assert grouped[1] - grouped[0] > together[1] - together[0]
    assert share_interval([1.0] * 4, range(4))[1] == 1.0
    assert share_interval([1.0, 0.0, 1.0], "aaa") == (0.0, 1.0)
    low, high = share_interval([1.0] * 8 + [0.0] * 8, "a" * 8 + "b" * 8)
    assert high - low > 0.95
    with pytest.raises(UserError):
        share_interval([1.5], "a")
