"""Good–Same–Bad of the policy against the baseline by a judge, where no right answer is known (the paper's Fig. 7)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onereward_jax.evaluation.good_same_bad import VERDICTS, shares
from onereward_jax.intervals import paired_difference_interval
from onereward_jax.tasks import CELLS, TASKS


@dataclasses.dataclass(frozen=True)
class Answers:
    """A judge's answers about both policies' images of one request.

    Attributes:
      task, id: of the request.
      policy_first: P(Yes | policy, baseline) in each dimension.
      baseline_first: P(Yes | baseline, policy).
    """

    task: str
    id: str
    policy_first: Mapping[str, float]
    baseline_first: Mapping[str, float]

    def preference(self, dimension: str) -> float:
        """P(policy better), mean over both orders."""
        return (self.policy_first[dimension] + 1 - self.baseline_first[dimension]) / 2

    def verdict(self, *dimensions: str) -> str:
        """Return "good" if the judge prefers the policy's image in both orders, "bad" if the baseline's, else "same":
        an answer that depends on which image comes first is none."""
        first = np.mean([self.policy_first[dimension] for dimension in dimensions])
        second = np.mean([1 - self.baseline_first[dimension] for dimension in dimensions])
        return "good" if min(first, second) > 0.5 else "bad" if max(first, second) < 0.5 else "same"


def summary(answers: Sequence[Answers]) -> dict[str, Any]:
    """Compare policy and baseline by a judge's answers.

    Requests of one id count as one draw in every interval.

    Returns:
      {"gsb": {task: shares} (of `Answers.verdict` over all dimensions together), "dimensions": {task: {dimension:
      shares}}, "tasks": {task: preference}, "overall": preference | None, "position_bias": mean P(Yes) over both orders
      − ½}, with preference = {"p" (mean P(policy better) over dimensions and orders), "ci95", "n" (requests)} and
      shares = {"good", "same", "bad", "n", "ci95" (of good − bad), "p"}.
    """
    by_task = {task: [answer for answer in answers if answer.task == task] for task in TASKS}
    dimensions: dict[str, dict[str, Any]] = {}
    for task, dimension in CELLS:
        if asked := [answer for answer in by_task[task] if dimension in answer.policy_first]:
            dimensions.setdefault(task, {})[dimension] = _shares(asked, dimension)
    everything = [p for a in answers for p in (*a.policy_first.values(), *a.baseline_first.values())]
    return {
        "gsb": {task: _shares(of_task) for task, of_task in by_task.items() if of_task},
        "dimensions": dimensions,
        "tasks": {task: _preference(of_task) for task, of_task in by_task.items() if of_task},
        "overall": _preference(answers) if answers else None,
        "position_bias": float(np.mean(everything)) - 0.5 if everything else 0.0,
    }


def _shares(answers: Sequence[Answers], *dimensions: str) -> dict[str, Any]:
    """Of one dimension, or of all together."""
    verdicts = [answer.verdict(*(dimensions or answer.policy_first)) for answer in answers]
    lead = [{"good": 1.0, "same": 0.0, "bad": -1.0}[verdict] for verdict in verdicts]
    p = [float(np.mean([answer.preference(d) for d in dimensions or answer.policy_first])) for answer in answers]
    counted = shares(*(verdicts.count(name) for name in VERDICTS))
    interval = paired_difference_interval(lead, [answer.id for answer in answers])
    return counted | {"ci95": list(interval), "p": float(np.mean(p))}


def _preference(answers: Iterable[Answers]) -> dict[str, Any]:
    rows = [(answer.preference(dimension), answer.id) for answer in answers for dimension in answer.policy_first]
    values = np.array([p for p, _ in rows])
    low, high = paired_difference_interval(2 * values - 1, [group for _, group in rows])
    return {
        "p": float(values.mean()),
        "ci95": [(low + 1) / 2, (high + 1) / 2],
        "n": len({group for _, group in rows}),
    }
