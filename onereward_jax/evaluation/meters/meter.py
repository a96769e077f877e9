"""`Meter`: something that is measured of each image, without a judge."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onereward_jax.data.sample import Sample
from onereward_jax.intervals import mean_interval
from onereward_jax.tasks import TASKS

# {name of a value: number}, for each image; a value that an image has not is left out.
Measured = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Meter:
    """Something that is measured of each image.

    Attributes:
      name: of the meter; a name of a directory, too.
      tasks: whose images it measures.
      measure: (samples, images uint8 (H, W, 3)) -> for each, {name of a value: number}; pure.
      about: JSON value that identifies what the numbers depend on, such as a model's fingerprint and a version.
      values: {name of a value: (what it is, in words; whether higher is better)}.
    """

    name: str
    tasks: tuple[str, ...]
    measure: Callable[[Sequence[Sample], Sequence[np.ndarray]], Measured]
    about: Any
    values: Mapping[str, tuple[str, bool]]


def compared(
    meter: Meter, base: Mapping[str, Measured], policy: Mapping[str, Measured]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Average what a meter found of both policies' images of the same requests.

    Returns:
      {task: {value: {"base", "policy" (means), "difference", "ci95" (of the paired difference; None
      of one request), "n", "what", "higher_is_better"}}}.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in TASKS:
        for value in meter.values:
            rows = [
                (of_base[value], of_policy[value])
                for of_base, of_policy in zip(base.get(task, ()), policy.get(task, ()), strict=True)
                if value in of_base and value in of_policy
            ]
            if not rows:
                continue
            mine, yours = np.array(rows, np.float64).T
            found.setdefault(task, {})[value] = {
                "base": float(mine.mean()),
                "policy": float(yours.mean()),
                "difference": float((yours - mine).mean()),
                "ci95": _interval(yours - mine),
                "n": len(rows),
                "what": meter.values[value][0],
                "higher_is_better": meter.values[value][1],
            }
    return found


def _interval(differences: np.ndarray) -> list[float] | None:
    """None where one number says nothing of how they vary."""
    if len(differences) < 2:
        return None
    return list(mean_interval(differences, (-np.inf, np.inf)))
