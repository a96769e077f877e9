"""`evaluation.json`: the numbers of an evaluation, for programs; the report shows them to people."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import write_text
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.tasks import CELLS, TASKS

REQUIRED = ("algorithm", "judge_accuracy", "judge_ceiling", "gsb", "seconds", "peak_memory_gib")


def validate_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Check an evaluation: required keys, known tasks and dimensions, shares in range.

    {"algorithm": str, "judge_accuracy": {task: {dimension: share}}, "judge_ceiling": the same,
    "gsb": {task: {"good", "same", "bad": shares that add up to 1, "n": scenes, "ci95": [lo, hi] of good − bad}},
    "seconds": {"train", "evaluate"}, "peak_memory_gib": float}, and any further keys ("judges", "meters"). "train" and
    "peak_memory_gib" are None where they were not measured.

    Raises:
      UserError: the evaluation is not valid; the message names everything that is wrong.
    """
    wrong = [f"{key} is missing" for key in REQUIRED if key not in evaluation]
    if "algorithm" in evaluation and not (isinstance(evaluation["algorithm"], str) and evaluation["algorithm"]):
        wrong.append("algorithm is not a name")
    for key in ("judge_accuracy", "judge_ceiling"):
        for task, dimensions in _items(evaluation, key, wrong):
            for dimension, share in _items({task: dimensions}, task, wrong):
                if (task, dimension) not in CELLS:
                    wrong.append(f"{key}: {task} × {dimension} is no cell")
                elif not _number(share, 0, 1):
                    wrong.append(f"{key}: {task} × {dimension} is {share!r}, not a share in [0, 1]")
    for task, shares in _items(evaluation, "gsb", wrong):
        if task not in TASKS:
            wrong.append(f"gsb: unknown task {task!r}")
        else:
            wrong += [f"gsb: {task}: {problem}" for problem in _gsb_problems(shares)]
    seconds = dict(_items(evaluation, "seconds", wrong))
    if "seconds" in evaluation:
        for key, optional in (("train", True), ("evaluate", False)):
            if key not in seconds:
                wrong.append(f"seconds: {key} is missing")
            elif not (_number(seconds[key], 0, math.inf) or (optional and seconds[key] is None)):
                wrong.append(f"seconds: {key} is {seconds[key]!r}, not a time")
    memory = evaluation.get("peak_memory_gib")
    if memory is not None and not _number(memory, 0, math.inf):
        wrong.append(f"peak_memory_gib is {memory!r}, not a size")
    if wrong:
        raise UserError("the evaluation is not valid: " + "; ".join(wrong))


def write_evaluation(path: str | Path, evaluation: Mapping[str, Any]) -> None:
    """Validate the evaluation and write it atomically.

    Raises:
      UserError: it is not valid, or holds a number that JSON has no form for (NaN, infinity).
    """
    validate_evaluation(evaluation)
    path = Path(path)
    try:
        text = json.dumps(evaluation, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise UserError(f"the evaluation cannot be written as JSON: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read and validate an evaluation.

    Raises:
      FileNotFoundError: the file does not exist.
      UserError: it is no JSON object, or not valid.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the evaluation first")
    evaluation = read_json(path, "run the evaluation again")
    validate_evaluation(evaluation)
    return evaluation


def _gsb_problems(shares: Any) -> list[str]:
    if not isinstance(shares, Mapping) or not {"good", "same", "bad", "n", "ci95"} <= set(shares):
        return ["good, same, bad, n and ci95 are needed"]
    problems = [
        f"{key} is {shares[key]!r}, not a share" for key in ("good", "same", "bad") if not _number(shares[key], 0, 1)
    ]
    if not isinstance(shares["n"], int | np.integer) or shares["n"] < 1:
        problems.append(f"n is {shares['n']!r}, not a number of scenes")
    interval = shares["ci95"]
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(_number(x, -1, 1) for x in interval):
        problems.append(f"ci95 is {interval!r}, not two differences of shares")
    elif interval[0] > interval[1]:
        problems.append("ci95 is upside down")
    if not problems and abs(shares["good"] + shares["same"] + shares["bad"] - 1) > 1e-6:
        problems.append("good, same and bad do not add up to 1")
    return problems


def _items(mapping: Mapping[str, Any], key: str, wrong: list[str]) -> list[tuple[str, Any]]:
    value = mapping.get(key, {})
    if isinstance(value, Mapping):
        return list(value.items())
    wrong.append(f"{key} is {value!r}, not an object with names")
    return []


def _number(value: Any, low: float, high: float) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _plain(value: Any) -> Any:
    """Convert NumPy numbers, arrays and paths to JSON types."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written to evaluation.json")
