"""How far annotators agree: with each other, with themselves on repeats, and with known right answers.

What is compared is a value that annotators give to a unit:

- `best_worst`: a unit is a record's unordered pair of candidates, and the value which of them wins, or neither. A vote
  gives a value to the pairs of `ballots.implied_pairs`, and "no difference" to all; of the others it says nothing.
- `good_same_bad`: a unit is a record, and the value good, same or bad.
- `rating`: a unit is a candidate of a record, and the value its mark.

Which candidate of a pair comes first means nothing, so chance agreement counts both orders of every pair alike.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.questions import BEST_WORST, FIVE, GOOD_SAME_BAD, RATING, questions_of
from onereward_jax.data.preferences.ballots import implied_pairs
from onereward_jax.data.preferences.record import MAX_CANDIDATES
from onereward_jax.errors import UserError
from onereward_jax.intervals import bootstrap_sums, percentile_interval
from onereward_jax.tasks import TASKS

Level = Literal["nominal", "ordinal", "interval"]
DRAWS = 1000  # resamples of the source images

_FIRST, _NEITHER, _SECOND = 0, 1, 2  # who wins a pair, by the candidates' numbers
_VERDICTS = {"good": _FIRST, "same": _NEITHER, "bad": _SECOND}
_CANDIDATES = MAX_CANDIDATES


# ------------------------------------------------------------------------------------------------ Krippendorff's alpha


def alpha(units: Iterable[Sequence[Any]], level: Level = "nominal") -> float | None:
    """Return Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
      units: the values that each unit was given, by however many annotators; units with fewer than two don't count.
      level: what a difference of values means: "nominal", "ordinal" (numbers by their rank) or "interval".

    Returns:
      1 for perfect agreement, 0 for that of chance, below 0 for systematic disagreement; None where no unit has two
      values, or all values are one.
    """
    units = [list(unit) for unit in units]
    values = sorted({value for unit in units for value in unit})
    column = {value: number for number, value in enumerate(values)}
    counts = np.zeros((len(units), len(values)))
    for row, unit in enumerate(units):
        for value in unit:
            counts[row, column[value]] += 1
    if not counts.size:
        return None
    numbers = np.asarray(values, np.float64) if level == "interval" else None
    found = float(alpha_of(coincidences(counts).sum(axis=0), level, numbers))
    return found if np.isfinite(found) else None


def coincidences(counts: np.ndarray) -> np.ndarray:
    """Return the ordered pairs of values within each unit, (U, V, V), of how often it was given each value, (U, V).

    A unit of m values has m·(m − 1) pairs of weight 1 / (m − 1); one of fewer than two has none.
    """
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(counts.shape[1])
    pairs[:, diagonal, diagonal] -= counts
    others = counts.sum(axis=1) - 1
    return pairs / np.where(others > 0, others, np.inf)[:, None, None]


def alpha_of(coincidence: np.ndarray, level: Level = "nominal", values: np.ndarray | None = None) -> np.ndarray:
    """Return alpha of matrices of coincidences, (..., V, V) -> (...), NaN where it is undefined.

    Args:
      values: (V,), the numbers that the values stand for, in ascending order; only for level "interval".
    """
    totals = coincidence.sum(axis=-1)  # (..., V): how often each value occurs among pairable ones
    n = totals.sum(axis=-1)
    if level == "nominal":
        difference = 1.0 - np.eye(totals.shape[-1])
    else:
        # The ordinal difference, the sum of n_g from c to k less half of n_c and n_k, is one of mid-ranks.
        place = values if level == "interval" else np.cumsum(totals, axis=-1) - totals / 2
        difference = (place[..., :, None] - place[..., None, :]) ** 2  # type: ignore[index]
    observed = (coincidence * difference).sum(axis=(-2, -1))
    expected = (totals[..., :, None] * totals[..., None, :] * difference).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - (n - 1) * observed / expected, np.nan)


# ------------------------------------------------------------------------------------------------ values of units


@dataclasses.dataclass(frozen=True)
class _Values:
    """What annotators said in answer to one question, a row for each value; all arrays are (R,).

    Attributes:
      unit: a number that records and candidates have in common over several `_Values` of the same `_Numbers`.
      annotator, source: numbers.
      value: column among the values.
      levels: the number of values.
      symmetric: the values 0 and levels − 1, and so on, are the same but for the order of two candidates.
    """

    unit: np.ndarray
    annotator: np.ndarray
    source: np.ndarray
    value: np.ndarray
    levels: int
    level: Level
    symmetric: bool

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (unit of each row, 0 to U − 1), (source of each unit), and how often each value was given, (U, V)."""
        _, first, row = np.unique(self.unit, return_index=True, return_inverse=True)
        size = len(first) * self.levels
        counts = np.bincount(row * self.levels + self.value, minlength=size).reshape(len(first), self.levels)
        return row, self.source[first], counts.astype(np.float64)


class _Numbers:
    """Numbers for names, given in the order in which they are met."""

    def __init__(self) -> None:
        self.names: dict[Hashable, int] = {}

    def of(self, names: Iterable[Hashable]) -> np.ndarray:
        return np.fromiter((self.names.setdefault(name, len(self.names)) for name in names), np.int64)


@dataclasses.dataclass
class _Names:
    records: _Numbers = dataclasses.field(default_factory=_Numbers)
    annotators: _Numbers = dataclasses.field(default_factory=_Numbers)
    sources: _Numbers = dataclasses.field(default_factory=_Numbers)


def _values(answers: Sequence[Answer], names: _Names) -> _Values:
    """Make the values of answers to one question of one job; of several by one annotator the last counts."""
    last = {(answer.record, answer.annotator, answer.candidate): answer for answer in answers}
    answers = list(last.values())
    record = names.records.of(answer.record for answer in answers)
    annotator = names.annotators.of(answer.annotator for answer in answers)
    source = names.sources.of(answer.source or ("record", answer.record) for answer in answers)
    if answers[0].job == BEST_WORST:
        rows, unit, value = _pairs(answers, record)
        return _Values(unit, annotator[rows], source[rows], value, 3, "nominal", symmetric=True)
    if answers[0].job == GOOD_SAME_BAD:
        value = np.array([_VERDICTS[str(answer.verdict)] for answer in answers], np.int64)
        return _Values(record, annotator, source, value, 3, "nominal", symmetric=True)
    mark = np.array([answer.mark for answer in answers], np.int64)
    candidate = np.array([answer.candidate for answer in answers], np.int64)
    lowest, highest = _scale(answers[0])
    ordinal: Level = "ordinal" if (lowest, highest) == FIVE else "nominal"
    unit, value = record * _CANDIDATES + candidate, np.clip(mark, lowest, highest) - lowest
    return _Values(unit, annotator, source, value, highest - lowest + 1, ordinal, symmetric=False)


def _pairs(answers: Sequence[Answer], record: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row of the answer, unit and value of every pair of candidates that an answer says something about."""
    best, worst = (
        np.array([-1 if getattr(answer, end) is None else getattr(answer, end) for answer in answers], np.int64)
        for end in ("best", "worst")
    )
    count = np.maximum(np.array([len(answer.models) for answer in answers], np.int64), np.maximum(best, worst) + 1)
    most = np.zeros(record.max() + 1, np.int64)
    np.maximum.at(most, record, count)  # a record has as many candidates as any answer knows of
    count = most[record].clip(max=_CANDIDATES)
    # Few votes differ, so that what each implies is found once.
    base = _CANDIDATES + 1
    kinds, kind = np.unique(((best + 1) * base + worst + 1) * base + count, return_inverse=True)
    implied = [_implied(int(x) // base**2 - 1, int(x) // base % base - 1, int(x) % base) for x in kinds]
    sizes = np.array([len(values) for values in implied], np.int64)
    starts = np.cumsum(sizes) - sizes
    rows = np.repeat(np.arange(len(record)), sizes[kind])
    within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes[kind]) - sizes[kind], sizes[kind])
    pair, value = np.concatenate(implied)[starts[kind][rows] + within].T
    return rows, record[rows] * _CANDIDATES**2 + pair, value


def _implied(best: int, worst: int, candidates: int) -> np.ndarray:
    """Return (pair, value) of all pairs of which a vote says something, int64 (P, 2); best is −1 for no difference."""
    numbered = lambda first, second: min(first, second) * _CANDIDATES + max(first, second)
    if best < 0:
        found = [(numbered(*two), _NEITHER) for two in itertools.combinations(range(candidates), 2)]
    else:
        ordered = implied_pairs(best, worst, candidates)
        found = [(numbered(*two), _FIRST if two[0] < two[1] else _SECOND) for two in ordered]
    return np.array(found, np.int64).reshape(-1, 2)


def _scale(answer: Answer) -> tuple[int, int]:
    for task in (answer.task, *TASKS):
        for question in questions_of(RATING, task, answer.prompt or "a prompt"):
            if question.name == answer.question and question.scale is not None:
                return question.scale
    raise UserError(f"there is no mark called {answer.question}: these votes are of another version")


# ------------------------------------------------------------------------------------------------ figures


def measure(answers: Iterable[Answer], right: Iterable[Answer] = (), draws: int = DRAWS) -> dict[str, Any]:
    """Measure the agreement of annotators.

    Repeats count for self-agreement alone, and gold items for gold accuracy alone.

    Args:
      right: the right answers to gold items, whoever gave them.
      draws: resamples of the source images for the intervals; 0 leaves them out.

    Returns:
      {"questions": [{"job", "question", "answers", "annotators" (how many), "units" (that two or more annotators gave a
      value), "alpha", "alpha_ci95", "agreement" (share of two annotators' values of a unit that are the same),
      "agreement_ci95"}], "annotators": {name: {"items", "with_rest" (mean share of the others who say the same),
      "with_rest_n" (values), "self_agreement", "self_n", "gold_right", "gold_n", "seconds" ([quartile, median,
      quartile] of an item), "per_hour", "points"}}, "seconds", "items", "points"}. A share without data is None.
    """
    by_question: dict[tuple[str, str], dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    answers = list(answers)
    for answer in answers:
        by_question[answer.job, answer.question][answer.kind].append(answer)
    for answer in right:
        by_question[answer.job, answer.question]["right"].append(answer)
    people = {name: _empty() for name in {answer.annotator for answer in answers}}
    questions = []
    for (job, question), kinds in by_question.items():
        names = _Names()
        plain = _values(kinds["plain"], names) if kinds["plain"] else None
        if plain is not None:
            questions.append({"job": job, "question": question} | _of_question(plain, len(kinds["plain"]), draws))
            _add(people, names, "with_rest", *_with_rest(plain))
        for key, kind, other, own in (("self", "repeat", "plain", True), ("gold", "gold", "right", False)):
            if kinds[kind] and kinds[other]:
                said, reference = _values(kinds[kind], names), _values(kinds[other], names)
                _add(people, names, key, *_same(said, reference, own))
    items = _items(answers)
    by_name: dict[str, list[Answer]] = defaultdict(list)
    for item in items:
        by_name[item.annotator].append(item)
    for name, person in people.items():
        person |= _times(by_name[name])
    return {
        "questions": questions,
        "annotators": {name: _shares(person) for name, person in sorted(people.items())},
    } | _times(items)


def summary(answers: Iterable[Answer], right: Iterable[Answer] = ()) -> dict[str, Any]:
    """Measure what an organiser watches while people work, without intervals.

    Returns:
      {"agreement": {question: alpha or None}, "annotators": [{"name", "done", "per_hour", "seconds_median",
      "self_agreement", "gold_right"}]}; a question of several jobs is called "<job>/<question>".
    """
    found = measure(answers, right, draws=0)
    names = [row["question"] for row in found["questions"]]
    return {
        "agreement": {
            row["question"] if names.count(row["question"]) == 1 else f"{row['job']}/{row['question']}": row["alpha"]
            for row in found["questions"]
        },
        "annotators": [
            {
                "name": name,
                "done": person["items"],
                "per_hour": person["per_hour"],
                "seconds_median": person["seconds"][1] if person["seconds"] else None,
                "self_agreement": person["self_agreement"],
                "gold_right": person["gold_right"],
            }
            for name, person in found["annotators"].items()
        ],
    }


def _of_question(values: _Values, answers: int, draws: int) -> dict[str, Any]:
    if not values.unit.size:  # all see no difference, between candidates of which nobody says how many there are
        nothing = dict.fromkeys(("alpha", "agreement", *(("alpha_ci95", "agreement_ci95") if draws else ())))
        return {"answers": answers, "annotators": 0, "units": 0} | nothing
    _, source, counts = values.counts()
    pairs = coincidences(counts)
    if values.symmetric:
        pairs = (pairs + pairs[:, ::-1, ::-1]) / 2
    m = counts.sum(axis=1)
    same, total = (counts * (counts - 1)).sum(axis=1), m * (m - 1)
    sums = np.concatenate([pairs.reshape(len(pairs), -1), same[:, None], total[:, None]], axis=1)
    _, group = np.unique(source, return_inverse=True)
    by_source = np.stack([np.bincount(group, column) for column in sums.T], axis=1)

    def figures(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            agreement = np.where(sums[..., -1] > 0, sums[..., -2] / sums[..., -1], np.nan)
        return alpha_of(sums[..., :-2].reshape(*sums.shape[:-1], values.levels, -1), values.level), agreement

    found: dict[str, Any] = {
        "answers": answers,
        "annotators": len(np.unique(values.annotator)),
        "units": int((m > 1).sum()),
    }
    empty = np.zeros(0)
    drawn = figures(bootstrap_sums(by_source, draws)) if draws else (empty, empty)
    for name, value, resampled in zip(("alpha", "agreement"), figures(by_source.sum(axis=0)), drawn, strict=True):
        found[name] = float(value) if np.isfinite(value) else None
        if draws:
            found[f"{name}_ci95"] = None if found[name] is None else percentile_interval(resampled)
    return found


def _with_rest(values: _Values) -> tuple[np.ndarray, np.ndarray]:
    """Return annotator and the share of the other annotators who gave the same value, for units with others."""
    row, _, counts = values.counts()
    others = counts.sum(axis=1)[row] - 1
    known = others > 0
    return values.annotator[known], (counts[row, values.value] - 1)[known] / others[known]


def _same(values: _Values, reference: _Values, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return annotator and 1 where a value is that of the reference, else 0, for units that both have.

    Args:
      own: the reference is the same annotator's.
    """
    key = lambda x: zip(x.unit.tolist(), x.annotator.tolist() if own else [0] * len(x.unit), strict=True)
    known = dict(zip(key(reference), reference.value.tolist(), strict=True))
    expected = np.array([known.get(k, -1) for k in key(values)], np.int64)
    there = expected >= 0
    return values.annotator[there], (values.value == expected)[there].astype(np.float64)


def _empty() -> dict[str, Any]:
    return {f"{key}_{part}": 0.0 for key in ("with_rest", "self", "gold") for part in ("sum", "n")}


def _add(people: dict[str, dict[str, Any]], names: _Names, key: str, annotator: np.ndarray, share: np.ndarray) -> None:
    count = len(names.annotators.names)
    sums, numbers = np.bincount(annotator, share, count), np.bincount(annotator, minlength=count)
    for name, number in names.annotators.names.items():
        if name in people:
            people[str(name)][f"{key}_sum"] += float(sums[number])
            people[str(name)][f"{key}_n"] += int(numbers[number])


def _shares(person: Mapping[str, Any]) -> dict[str, Any]:
    called = {"with_rest": "with_rest", "self": "self_agreement", "gold": "gold_right"}
    shares: dict[str, Any] = {}
    for key, name in called.items():
        n = int(person[f"{key}_n"])
        shares |= {name: person[f"{key}_sum"] / n if n else None, f"{key}_n": n}
    return shares | {name: person[name] for name in ("items", "seconds", "per_hour", "points")}


def _items(answers: Iterable[Answer]) -> list[Answer]:
    """Return one answer of every item that was answered: its time and points are those of the item."""
    return list({(answer.annotator, answer.record, answer.kind, answer.at): answer for answer in answers}.values())


def _times(items: Sequence[Answer]) -> dict[str, Any]:
    seconds = np.array([item.seconds for item in items if item.seconds > 0])
    return {
        "items": len(items),
        "seconds": [float(x) for x in np.quantile(seconds, [0.25, 0.5, 0.75])] if seconds.size else None,
        "per_hour": float(3600 * seconds.size / seconds.sum()) if seconds.size else None,
        "points": sum(len(item.points) for item in items),
    }
