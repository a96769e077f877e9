"""Comparison of evaluated runs, such as three seeds of both algorithms: a table and curves."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onereward_jax.atomic_files import write_json
from onereward_jax.evaluation.report import plots
from onereward_jax.evaluation.results import read_evaluation
from onereward_jax.tasks import TASKS, dimensions_of

NAMES = {"fixed": "Algorithm 1", "dynamic": "Algorithm 2", "earned": "Earned reference"}


class Run(NamedTuple):
    """An evaluated working directory of `onereward train`."""

    name: str
    group: str  # runs of one group differ only in their seed
    evaluation: Mapping[str, Any]
    curves: plots.Curves


def read_run(workdir: Path) -> Run:
    """Read the evaluation and training curves of a run.

    Raises:
      FileNotFoundError: the run was not evaluated yet.
      UserError: its evaluation is not valid.
    """
    evaluation = read_evaluation(workdir / "evaluation.json")
    group = NAMES.get(evaluation["algorithm"], evaluation["algorithm"])
    return Run(str(workdir), group, evaluation, plots.read_curves(workdir / "metrics.jsonl"))


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row per group and task: good − bad of every run with its 95 % interval, their mean, and the number of
    runs whose interval lies above zero."""
    rows = []
    for group, members in grouped(runs).items():
        for task in TASKS:
            found = {run.name: run.evaluation["gsb"][task] for run in members if task in run.evaluation["gsb"]}
            if not found:
                continue
            differences = {name: shares["good"] - shares["bad"] for name, shares in found.items()}
            rows.append(
                {
                    "group": group,
                    "task": task,
                    "good_minus_bad": differences,
                    "ci95": {name: list(shares["ci95"]) for name, shares in found.items()},
                    "mean": float(np.mean(list(differences.values()))),
                    "above_zero": sum(shares["ci95"][0] > 0 for shares in found.values()),
                    "runs": len(found),
                }
            )
    return rows


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    return dict(sorted(groups.items()))


def task_curves(runs: Sequence[Run], task: str) -> tuple[plots.Lines, plots.Lines]:
    """Return the (reward, ground-truth gain) curves of a task, by group, one per run.

    The reward is the mean over the task's dimensions at each step that drew the task.
    """
    rewards: plots.Lines = {}
    gains: plots.Lines = {}
    for group, members in grouped(runs).items():
        for run in members:
            by_step = defaultdict(list)
            for dimension in dimensions_of(task):
                for step, value in zip(*run.curves.get(plots.reward_key(task, dimension), ((), ())), strict=True):
                    by_step[step].append(value)
            if by_step:
                steps = np.array(sorted(by_step))
                means = np.array([np.mean(by_step[step]) for step in steps])
                rewards.setdefault(group, []).append(plots.smooth(steps, means))
            if plots.ground_truth_key(task) in run.curves:
                gains.setdefault(group, []).append(plots.from_zero(*run.curves[plots.ground_truth_key(task)]))
    return rewards, gains


def write_comparison(out: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Write the table to out/comparison.json and the curves to out/comparison.png.

    The figure has a column per task, with rewards above ground-truth gains.

    Returns:
      the table.
    """
    rows, theme = table(runs), plots.PRINT
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", rows)
    drawn = [task_curves(runs, task) for task in TASKS]
    tasks = [(task, *lines) for task, lines in zip(TASKS, drawn, strict=True)]
    rewards = [
        (plots.label(task), partial(plots.draw_lines, lines=reward, level=0.5, title="P(Yes)", theme=theme))
        for task, reward, _ in tasks
    ]
    gains = [
        ("", partial(plots.draw_lines, lines=gain, level=0.0, title="ground truth, policy − base", theme=theme))
        for _, _, gain in tasks
    ]
    plots.save_png(out / "comparison.png", rewards + gains, theme, columns=len(TASKS))
    return rows
