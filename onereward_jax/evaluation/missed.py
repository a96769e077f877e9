"""What a judge had missed: annotated pairs that it gets wrong and a newer one right, and the other way round."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from onereward_jax.evaluation.accuracy import Prediction
from onereward_jax.evaluation.judge_predictions import annotated
from onereward_jax.intervals import share_interval
from onereward_jax.judge.pairs import Pair, Pairs


class Answer(NamedTuple):
    """Both judges' answers about an annotated pair in one dimension.

    Attributes:
      winner, loser: candidates of the pair's record, as annotators chose.
      old, new: P(the winner is better), mean over both image orders; right above ½.
    """

    pair: Pair
    dimension: str
    winner: int
    loser: int
    old: float
    new: float

    @property
    def kind(self) -> str:
        """ "found" where only the new judge is right, "lost" where only the old one is, "right" or "wrong" for both."""
        old, new = self.old > 0.5, self.new > 0.5
        if old == new:
            return "right" if old else "wrong"
        return "found" if new else "lost"


def answers_of(pairs: Pairs, old: Sequence[Prediction], new: Sequence[Prediction]) -> list[Answer]:
    """Join the predictions of two judges about the same pairs, see `judge_pairs`."""
    p = lambda prediction: (prediction[2] + 1 - prediction[3]) / 2
    found = []
    for (number, _, dimension), of_old, of_new in zip(annotated(pairs), old, new, strict=True):
        pair = pairs[number]
        ends = (pair.first, pair.second)
        winner, loser = ends if pair.labels[dimension] > 0 else ends[::-1]
        found.append(Answer(pair, dimension, winner, loser, p(of_old), p(of_new)))
    return found


def count_kinds(answers: Sequence[Answer]) -> dict[str, dict[str, dict[str, int]]]:
    """Count the answers of every kind: {task: {dimension: {"n", "found", "lost", "right", "wrong"}}}."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for answer in answers:
        cells = counts.setdefault(answer.pair.task, {})
        cell = cells.setdefault(answer.dimension, dict.fromkeys(("n", "found", "lost", "right", "wrong"), 0))
        cell["n"] += 1
        cell[answer.kind] += 1
    return counts


def worst_found(answers: Sequence[Answer], most: int) -> list[Answer]:
    """Return the pairs of kind "found" of which the old judge was most wrongly sure, at most so many of a cell."""
    chosen: collections.Counter[tuple[str, str]] = collections.Counter()
    found = []
    for answer in sorted((a for a in answers if a.kind == "found"), key=lambda answer: answer.old):
        cell = answer.pair.task, answer.dimension
        chosen[cell] += 1
        if chosen[cell] <= most:
            found.append(answer)
    return found


def model_of(pairs: Pairs, pair: Pair, candidate: int) -> str:
    """Return the model that made a candidate, "" where the record doesn't say."""
    return str(pairs.record(pair).candidates[candidate].sampling.get("model", ""))


def policy_preferred(pairs: Pairs, answers: Sequence[Answer], policy: str, base: str) -> dict[str, Any] | None:
    """Measure how often annotators and both judges prefer the policy's image to the base's.

    A judge that prefers the policy far more often than annotators do is being exploited by it.

    Returns:
      {"n", "annotators", "old", "new"}, each of the last three {"share", "ci95"} with pairs of one record as one draw;
      None if no pair is of both models.
    """
    shares: dict[str, list[float]] = {"annotators": [], "old": [], "new": []}
    groups = []
    for answer in answers:
        made_by = [model_of(pairs, answer.pair, end) for end in (answer.winner, answer.loser)]
        if sorted(made_by) != sorted((policy, base)) or policy == base:
            continue
        wins = made_by[0] == policy
        groups.append((answer.pair.part, answer.pair.row))
        shares["annotators"].append(float(wins))
        for name, p in (("old", answer.old), ("new", answer.new)):
            shares[name].append(0.5 if p == 0.5 else float((p > 0.5) == wins))
    if not groups:
        return None
    summary = lambda values: {"share": sum(values) / len(values), "ci95": list(share_interval(values, groups))}
    return {"n": len(groups), **{name: summary(values) for name, values in shares.items()}}
