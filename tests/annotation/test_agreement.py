"""Agreement of annotators: Krippendorff's alpha against published examples and its definition, and what is compared."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onereward_jax.annotation.agreement import alpha, measure, summary
from onereward_jax.annotation.answer import Answer

# Krippendorff 2011, section E: four observers, twelve units, values missing.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)
PUBLISHED = [[value for value in unit if value is not None] for unit in zip(*OBSERVERS, strict=True)]
UNITS = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=7)


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_equals_published_values(level, published):
    assert alpha(PUBLISHED, level) == pytest.approx(published, abs=5e-4)


def test_alpha_of_two_observers_equals_published_values():
    # Krippendorff 2011, sections A and B: binary data, then five categories.
    binary = zip((0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0), strict=True)
    assert alpha(binary) == pytest.approx(0.095, abs=5e-4)
    nominal = zip("aabbdcccedda", "babbbccceddd", strict=True)
    assert alpha(nominal) == pytest.approx(0.692, abs=5e-4)


def by_definition(units, level):
    """Alpha from all ordered pairs of values within units, and over all units."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]

    def difference(a, b):
        if level == "nominal":
            return a != b
        if level == "interval":
            return (a - b) ** 2
        low, high = sorted((a, b))
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(a) + values.count(b)) / 2) ** 2 if a != b else 0

    pairs = lambda items: itertools.permutations(items, 2)
    observed = sum(difference(a, b) / (len(unit) - 1) for unit in units for a, b in pairs(unit))
    expected = sum(difference(a, b) for a, b in pairs(values))
    return 1 - (len(values) - 1) * observed / expected if expected else None


@settings(max_examples=60, deadline=None)
@given(UNITS, st.sampled_from(["nominal", "ordinal", "interval"]))
def test_alpha_is_what_its_definition_says(units, level):
    found, expected = alpha(units, level), by_definition(units, level)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found == pytest.approx(expected)
        assert found <= 1 + 1e-12
        shuffled = [unit[::-1] for unit in units[::-1]]
        assert alpha(shuffled, level) == pytest.approx(found)


def choice(record, annotator, best, worst, **more):
    return Answer(record, "image_fill", "a cat", "best_worst", "structure", annotator, best=best, worst=worst, **more)


def of_question(answers):
    return measure(answers, draws=50)["questions"][0]


def test_a_vote_says_who_wins_each_pair_it_orders():
    four = {"models": ("",) * 4}
    # 0 > 1, 2, 3 and 1, 2 > 3, against 0 > 1, 2, 3 and 1, 3 > 2: five pairs each, four in common; the same of 0-1, 0-2
    # and 0-3, and not of 2-3.
    found = of_question([choice("a", "ann", 0, 3, **four), choice("a", "bob", 0, 2, **four)])
    assert found["units"] == 4
    assert found["agreement"] == pytest.approx(3 / 4)


def test_no_difference_is_a_value_of_every_pair():
    found = of_question([choice("a", "ann", None, None, models=("", "", "")), choice("a", "bob", 2, 0)])
    assert (found["units"], found["agreement"]) == (3, 0)
    found = of_question([choice("a", name, None, None, models=("", "", "")) for name in ("ann", "bob")])
    assert (found["units"], found["agreement"], found["alpha"]) == (3, 1, None)
    found = of_question([choice("a", "ann", None, None)])  # nobody says between how many
    assert (found["units"], found["agreement"], found["alpha_ci95"]) == (0, None, None)


VOTES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ann", "bob", "cai"]), st.permutations(range(3))), min_size=1
)


@settings(max_examples=30, deadline=None)
@given(VOTES, st.permutations(range(3)))
def test_numbering_and_order_of_candidates_and_names_mean_nothing(votes, renumbered):
    votes = list({vote[:2]: vote for vote in votes}.values())
    models = ("", "", "")
    given_ = of_question([choice(r, who, order[0], order[-1], models=models) for r, who, order in votes])
    other = of_question(
        [
            choice(r, who.upper(), renumbered[order[0]], renumbered[order[-1]], models=models)
            for r, who, order in reversed(votes)
        ]
    )
    for name in ("alpha", "agreement"):
        assert (given_[name] is None) == (other[name] is None)
        assert given_[name] is None or given_[name] == pytest.approx(other[name])
    assert given_["units"] == other["units"]


def test_annotators_at_random_agree_as_chance_does_and_intervals_hold_it():
    generator = np.random.default_rng(3)
    answers = [
        choice(str(record), name, *(int(x) for x in generator.permutation(2)), source=str(record // 2))
        for record in range(600)
        for name in ("ann", "bob")
    ]
    found = measure(answers, draws=300)["questions"][0]
    low, high = found["alpha_ci95"]
    assert low < 0 < high
    assert abs(found["alpha"]) < 0.15
    # About two standard errors of a share of 600 either way.
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(600), rel=0.35)
    low, high = found["agreement_ci95"]
    assert low < 0.5 < high


def test_each_annotator_against_the_rest_themselves_and_gold():
    answers = [choice(record, name, 0, 1) for record in "abcd" for name in ("ann", "bob")]
    answers += [choice(record, "cai", 1, 0) for record in "abcd"]
    answers += [choice("a", "cai", 1, 0, kind="repeat"), choice("b", "cai", 0, 1, kind="repeat")]
    answers += [choice("g", "ann", 1, 0, kind="gold"), choice("g", "cai", 0, 1, kind="gold")]
    found = measure(answers, right=[choice("g", "gold", 1, 0)], draws=20)
    people = found["annotators"]
    assert {name: person["with_rest"] for name, person in people.items()} == {"ann": 0.5, "bob": 0.5, "cai": 0.0}
    assert (people["cai"]["self_agreement"], people["cai"]["self_n"]) == (0.5, 2)
    assert people["ann"]["self_agreement"] is None
    assert (people["ann"]["gold_right"], people["cai"]["gold_right"], people["bob"]["gold_right"]) == (1, 0, None)
    assert found["questions"][0]["agreement"] == pytest.approx(1 / 3)  # repeats and gold items change nothing here


def test_time_and_points_are_of_items_and_not_of_questions():
    point = ((0, 0.5, 0.5),)
    answers = [
        Answer("r", "image_fill", "p", "best_worst", question, "ann", seconds=10, at=1, best=0, worst=1, points=point)
        for question in ("structure", "consistency")
    ] + [choice("s", "ann", 0, 1, seconds=30, at=2)]
    found = measure(answers, draws=0)
    assert (found["items"], found["points"], found["seconds"]) == (2, 1, [15, 20, 25])
    assert found["per_hour"] == pytest.approx(180)


def test_marks_are_ordinal_and_yes_or_no_nominal():
    def mark(question, annotator, value, record="r", candidate=0):
        return Answer(
            record, "image_fill", "p", "rating", question, annotator, candidate=candidate, mark=value, at=float(value)
        )

    marks = {"ann": (1, 2, 5, 4), "bob": (2, 2, 5, 3)}
    answers = [mark("structure", who, value, str(n)) for who, row in marks.items() for n, value in enumerate(row)]
    answers += [mark("usability", who, value > 2, str(n)) for who, row in marks.items() for n, value in enumerate(row)]
    found = {row["question"]: row["alpha"] for row in measure(answers)["questions"]}
    assert found["structure"] == pytest.approx(alpha(zip(*marks.values(), strict=True), "ordinal"))
    assert found["usability"] == 1


def test_summary_is_short():
    answers = [choice(record, name, 0, 1, seconds=4) for record in "ab" for name in ("ann", "bob")]
    found = summary(answers)
    assert set(found["agreement"]) == {"structure"}
    assert [person["name"] for person in found["annotators"]] == ["ann", "bob"]
    assert found["annotators"][0]["seconds_median"] == 4
    assert summary([]) == {"agreement": {}, "annotators": []}
