"""Good-Same-Bad by a judge's answers in both orders."""

import pytest

from onereward_jax.evaluation.judge_verdicts import Answers, summary


def answers(task, first, second, count=1, name="r"):
    return [Answers(task, f"{name}{number}", {"structure": first}, {"structure": second}) for number in range(count)]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(0.9, 0.2, "good"), (0.9, 0.8, "same"), (0.1, 0.3, "same"), (0.3, 0.9, "bad"), (0.5, 0.1, "same")],
)
def test_an_answer_that_depends_on_the_order_is_none(first, second, verdict):
    (answer,) = answers("image_fill", first, second)
    assert answer.verdict("structure") == verdict


def test_requests_are_the_draws():
    """Intervals are as wide for four answers about one request as for one answer."""
    asked = answers("image_fill", 0.9, 0.2, 12) + answers("image_fill", 0.2, 0.9, 4, "s")
    found = summary(asked)
    gsb = found["gsb"]["image_fill"]
    assert (gsb["good"], gsb["same"], gsb["bad"], gsb["n"]) == (0.75, 0, 0.25, 16)
    assert gsb["ci95"][0] < 0.5 < gsb["ci95"][1]
    assert found["overall"]["p"] == pytest.approx((12 * 0.85 + 4 * 0.15) / 16)
    assert found["position_bias"] == pytest.approx(0.05)
    dimensions = ("text_alignment", "consistency", "structure", "aesthetics")
    of_all = [
        Answers(
            "image_fill",
            a.id,
            *(dict.fromkeys(dimensions, next(iter(v.values()))) for v in (a.policy_first, a.baseline_first)),
        )
        for a in asked
    ]
    four = summary(of_all)
    assert four["overall"]["n"] == 16
    width = lambda of: of["overall"]["ci95"][1] - of["overall"]["ci95"][0]
    assert width(four) == pytest.approx(width(found), rel=0.1)
    assert set(four["dimensions"]["image_fill"]) == set(dimensions)
    assert summary([])["overall"] is None
