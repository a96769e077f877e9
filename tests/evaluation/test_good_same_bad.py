import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.evaluation.good_same_bad import (
    Comparison,
    good_same_bad,
    judge_preferences,
    scores_by_dimension,
    verdict,
)
from onereward_jax.proving_ground import scorer
from onereward_jax.proving_ground.scorer import TIE_MARGIN
from onereward_jax.tasks import dimensions_of


def removal(base: float, policy: float, p_yes: float | None = None, swapped: float | None = None) -> Comparison:
    return Comparison(
        "object_removal",
        {"removal_quality": base},
        {"removal_quality": policy},
        {} if p_yes is None else {"removal_quality": p_yes},
        {} if swapped is None else {"removal_quality": swapped},
    )


def test_verdict_takes_the_mean_over_dimensions_and_the_margin():
    base = {"structure": 0.5, "aesthetics": 0.5}
    assert verdict(Comparison("image_fill", base, {"structure": 0.9, "aesthetics": 0.4})) == "good"
    assert verdict(Comparison("image_fill", base, {"structure": 0.9, "aesthetics": 0.1})) == "same"
    assert verdict(Comparison("image_fill", base, {"structure": 0.5, "aesthetics": 0.1})) == "bad"
    assert verdict(removal(0.0, TIE_MARGIN)) == "same"
    assert verdict(removal(0.0, TIE_MARGIN + 1e-6)) == "good"
    assert verdict(removal(TIE_MARGIN + 1e-6, 0.0)) == "bad"


def test_verdict_is_the_scorers():
    generator = np.random.default_rng(0)
    dimensions = dimensions_of("text_rendering")
    for _ in range(200):
        base, policy = (
            {d: float(x) for d, x in zip(dimensions, generator.uniform(0, 0.2, 4), strict=True)} for _ in "ab"
        )
        assert verdict(Comparison("text_rendering", base, policy)) == scorer.verdict(policy, base)


def test_shares_add_up_and_are_antisymmetric():
    scenes = [removal(0.2, 0.8)] * 6 + [removal(0.5, 0.5)] * 3 + [removal(0.8, 0.2)]
    result = good_same_bad(scenes)
    assert set(result) == {"object_removal"}
    shares = result["object_removal"]
    assert (shares["good"], shares["same"], shares["bad"], shares["n"]) == (0.6, 0.3, 0.1, 10)
    assert shares["ci95"][0] < 0.5 < shares["ci95"][1]
    swapped = good_same_bad([Comparison(c.task, c.policy, c.base) for c in scenes])["object_removal"]
    assert swapped["ci95"] == pytest.approx([-shares["ci95"][1], -shares["ci95"][0]])


def test_scores_by_dimension_are_paired():
    # Scenes differ far more than models: only the pairing shows the gain.
    scenes = [removal(i / 20, i / 20 + 0.05 + 0.01 * (i % 2)) for i in range(18)]
    cell = scores_by_dimension(scenes)["object_removal"]["removal_quality"]
    assert cell["n"] == 18
    assert cell["difference"] == pytest.approx(0.055)
    assert cell["policy"] - cell["base"] == pytest.approx(cell["difference"])
    assert 0.05 < cell["ci95"][0] < 0.055 < cell["ci95"][1] < 0.06


def test_judge_preferences_average_orders_and_find_contradictions():
    scenes = [
        removal(0.2, 0.8, 0.9, 0.3),  # good, and the judge agrees: (0.9 + 0.7) / 2
        removal(0.8, 0.2, 0.9, 0.3),  # bad, though the judge prefers it
        removal(0.2, 0.8, 0.4, 0.6),  # good, though the judge prefers the base
        removal(0.2, 0.8),  # not asked
    ]
    view = judge_preferences(scenes)["object_removal"]
    assert view["n"] == 3
    assert view["p_yes"] == pytest.approx((0.8 + 0.8 + 0.4) / 3)
    assert (view["fooled"], view["missed"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert judge_preferences([removal(0, 1)]) == {}


def test_invalid_comparisons_are_refused():
    with pytest.raises(UserError):
        Comparison("image_fil", {"structure": 1}, {"structure": 1})
    with pytest.raises(UserError):
        Comparison("image_fill", {"structure": 1}, {"aesthetics": 1})
