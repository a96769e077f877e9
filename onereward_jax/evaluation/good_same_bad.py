"""Good–Same–Bad of the policy against the base, scene by scene, by ground truth (the paper's Fig. 7).

Both models' images, made from the same noise, get a ground-truth score in [0, 1] in every dimension of the scene. A
scene is good if policy − base, averaged over dimensions, is above `TIE_MARGIN`, bad if it is below −`TIE_MARGIN`, and
same otherwise: the rule of `proving_ground.scorer.verdict`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from onereward_jax.errors import UserError
from onereward_jax.intervals import good_minus_bad_interval, mean_interval
from onereward_jax.proving_ground import scorer
from onereward_jax.tasks import CELLS, TASKS

VERDICTS = ("good", "same", "bad")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of both models' images of one scene, by ground truth and by the judge.

    Attributes:
      task: one of `tasks.TASKS`.
      base: ground-truth score of the base's image, dimension -> [0, 1].
      policy: ground-truth score of the policy's image, in the same dimensions.
      p_yes: the judge's P(Yes | policy, base) in each dimension; may be empty.
      p_yes_swapped: P(Yes | base, policy), the other order; may be empty.
    """

    task: str
    base: Mapping[str, float]
    policy: Mapping[str, float]
    p_yes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    p_yes_swapped: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"unknown task {self.task!r}: choose one of {', '.join(TASKS)}")
        if not self.base or set(self.base) != set(self.policy):
            raise UserError(
                f"{self.task}: base is scored on {sorted(self.base)} and policy on {sorted(self.policy)}: "
                "score both on the same dimensions, at least one"
            )

    @property
    def gain(self) -> float:
        """Ground-truth score of the policy minus that of the base, mean over dimensions."""
        return float(np.mean([self.policy[dimension] - self.base[dimension] for dimension in self.base]))

    @property
    def preference(self) -> float | None:
        """The judge's P(policy better), mean over dimensions and over the orders that were asked."""
        sides = [list(self.p_yes.values()), [1 - p for p in self.p_yes_swapped.values()]]
        means = [float(np.mean(side)) for side in sides if side]
        return float(np.mean(means)) if means else None


def verdict(comparison: Comparison) -> str:
    """Return "good", "same" or "bad" for the policy's image against the base's, by the scorer's rule."""
    return scorer.verdict(comparison.policy, comparison.base)


def good_same_bad(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Any]]:
    """Return {task: {"good", "same", "bad" (shares), "n", "ci95" (of good − bad)}} for the tasks that occur."""
    counts: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for comparison in comparisons:
        counts[comparison.task][verdict(comparison)] += 1
    return {task: shares(*(count[name] for name in VERDICTS)) for task, count in counts.items() if count}


def shares(good: int, same: int, bad: int) -> dict[str, Any]:
    """Turn counts into shares, with the 95 % interval of good − bad.

    Raises:
      UserError: all counts are zero.
    """
    n = good + same + bad
    if n == 0:
        raise UserError("good, same and bad need at least one scene")
    interval = list(good_minus_bad_interval(good, bad, n))
    return {"good": good / n, "same": same / n, "bad": bad / n, "n": n, "ci95": interval}


def scores_by_dimension(comparisons: Iterable[Comparison]) -> dict[str, dict[str, dict[str, Any]]]:
    """Average the ground-truth scores of each task and dimension.

    Returns:
      {task: {dimension: {"base", "policy" (means), "difference", "ci95" (of the paired difference), "n"}}}.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {cell: [] for cell in CELLS}
    for comparison in comparisons:
        for dimension in comparison.base:
            pairs[comparison.task, dimension].append((comparison.base[dimension], comparison.policy[dimension]))
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for (task, dimension), values in pairs.items():
        if not values:
            continue
        base, policy = np.array(values, np.float64).T
        result.setdefault(task, {})[dimension] = {
            "base": float(base.mean()),
            "policy": float(policy.mean()),
            "difference": float((policy - base).mean()),
            "ci95": list(mean_interval(policy - base, (-1.0, 1.0))),
            "n": len(values),
        }
    return result


def judge_preferences(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Any]]:
    """Average the judge's preferences and count where they contradict the ground truth.

    Returns:
      {task: {"p_yes" (mean preference for the policy), "ci95", "n", "fooled" (reward hacking, share of all scenes: the
      judge prefers the policy's image, the ground truth says bad), "missed" (the judge prefers the base's image, the
      ground truth says good)}}, for the tasks where the judge was asked.
    """
    asked: dict[str, list[tuple[float, str]]] = {task: [] for task in TASKS}
    for comparison in comparisons:
        if comparison.preference is not None:
            asked[comparison.task].append((comparison.preference, verdict(comparison)))
    return {
        task: {
            "p_yes": float(np.mean([preference for preference, _ in scenes])),
            "ci95": list(mean_interval([preference for preference, _ in scenes], (0.0, 1.0))),
            "n": len(scenes),
            "fooled": float(np.mean([preference > 0.5 and by_score == "bad" for preference, by_score in scenes])),
            "missed": float(np.mean([preference < 0.5 and by_score == "good" for preference, by_score in scenes])),
        }
        for task, scenes in asked.items()
        if scenes
    }
