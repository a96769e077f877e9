"""Settings of candidates follow from the seed, the request and the candidate's number, and from nothing else."""

from collections import Counter

import numpy as np
import pytest

from onereward_jax.candidates.sampling import (
    NEGATIVE_PROMPTS,
    Ranges,
    candidate_settings,
    draw_settings,
    models_of,
    preference_ranges,
)
from onereward_jax.config.schema import Preferences
from onereward_jax.errors import UserError

RANGES = Ranges(3, 9, 0.5, 4.0, 1.0, 6.0)


def test_preference_data_stays_what_it_was():
    """The numbers that earlier releases drew."""
    drawn = draw_settings(preference_ranges(Preferences()), np.random.default_rng(0))
    assert drawn == {
        "num_steps": 11,
        "stop": 7,
        "guidance_scale": 1.0,
        "true_cfg_scale": 1.2297497439513523,
        "negative_prompt": "",
        "noise_strength": 1.0825511154555445,
    }


def test_settings_are_in_their_ranges():
    drawn = [candidate_settings(RANGES, 7, f"r{request}", number) for request in range(100) for number in range(4)]
    assert {one["num_steps"] for one in drawn} == {*range(3, 10)}
    assert all(1.0 <= one["guidance_scale"] <= 6.0 for one in drawn)
    assert all(one["true_cfg_scale"] == 1.0 or 1.2 <= one["true_cfg_scale"] <= 4.0 for one in drawn)
    assert all(0.9 <= one["noise_strength"] <= 1.1 for one in drawn)
    guided = [one for one in drawn if one["true_cfg_scale"] != 1.0]
    assert 150 < len(guided) < 250
    assert {one["negative_prompt"] for one in guided} == {*NEGATIVE_PROMPTS}
    assert {one["negative_prompt"] for one in drawn if one not in guided} == {""}
    assert len({one["seed"] for one in drawn}) == len(drawn)


def test_settings_depend_on_nothing_else():
    assert candidate_settings(RANGES, 7, "r1", 2) == candidate_settings(RANGES, 7, "r1", 2)
    others = [(8, "r1", 2), (7, "r2", 2), (7, "r1", 3)]
    assert all(candidate_settings(RANGES, *other) != candidate_settings(RANGES, 7, "r1", 2) for other in others)


@pytest.mark.parametrize("candidates", [4, 5])
def test_models_make_as_many_candidates_each(candidates):
    counts = Counter()
    for request in range(300):
        of_request = models_of(f"r{request}", 0, candidates, "ab")
        assert {*Counter(of_request).values()} <= {candidates // 2, -(-candidates // 2)}
        counts.update(of_request)
    assert abs(counts["a"] - counts["b"]) < 60


@pytest.mark.parametrize("change", [{"min_steps": 10}, {"min_guidance_scale": 7.0}])
def test_ranges_the_wrong_way_round(change):
    values = {name: getattr(RANGES, name) for name in ("min_steps", "max_steps", "guided_share", "max_true_cfg_scale")}
    values |= {"min_guidance_scale": 1.0, "max_guidance_scale": 6.0} | change
    with pytest.raises(UserError, match=next(iter(change))):
        Ranges(**values)
