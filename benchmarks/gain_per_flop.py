"""Estimators of the gradient at equal compute: what each gains by the ground truth, over seeds, and PFLOP beside it.

    python -m benchmarks.gain_per_flop --workdir runs/gain_per_flop [--arms posterior endpoint] [--seeds 0 1 2]

The first arm, the paper's estimator, takes `--updates` updates of configs/quick.py; every other arm as many as cost the
same FLOPs, counted on the traced program as `onereward plan` counts them (evaluations while training not counted). Each
run is `onereward train` and `onereward evaluate`, on the quick run's base and judge and on 400 held-out scenes a task.
Arms with fewer steps of the policy differ in more than compute: t is an index of fewer steps, so that flow matching has
the σ of one index in place of two.

A run that was stopped goes on when the same command comes again; a run that has its file in `--results` is done. Other
settings for all arms are given as `--set rl.flow_matching_weight=0.25`: then name other directories, too.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.errors import UserError
from onereward_jax.intervals import mean_interval
from onereward_jax.tasks import TASKS

ENDPOINT = {"rl.estimator": "endpoint", "rl.gradient_steps": "2", "rl.rescale": "1.0"}  # of all indices
# Arm -> settings that differ from the configuration.
ARMS: dict[str, dict[str, str]] = {
    "posterior": {},
    "endpoint": ENDPOINT,
    "ascent": {"rl.estimator": "ascent"},
    "endpoint_predictions_2": ENDPOINT | {"rl.predictions": "2"},
    "endpoint_reference_4": ENDPOINT | {"rl.reference_steps": "4"},
    # The last index of 4 has the σ of index 6 of 8.
    "endpoint_policy_4": ENDPOINT | {"rl.policy_steps": "4", "rl.first_index": "3", "rl.last_index": "3"},
    "endpoint_both_4": ENDPOINT | {"rl.num_steps": "4", "rl.first_index": "3", "rl.last_index": "3"},
}
DEFAULT = ["posterior", "endpoint"]
# Judge accuracy is the same in all runs: measured on as few scenes as it can be.
# What is looked at while training changes nothing of what is learnt.
FOR_ALL = {"evaluation.judge_scenes_per_task": "1", "evaluation.every": "0"}


def onereward(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "onereward_jax.cli.main", command, *arguments], check=True)


def flops_of_update(config: str, settings: Mapping[str, str]) -> float:
    """FLOPs of the mean update of a configuration."""
    from benchmarks.update_cost import arithmetic
    from onereward_jax.config.load import load_config
    from onereward_jax.config.schema import RewardFeedback

    return float(arithmetic(load_config(config, dict(settings), [RewardFeedback]))["flops"])


def finished_run(
    workdir: Path, result: Path, config: str, settings: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Train and evaluate a run, or resume that, and write what it gained to `result`.

    Raises:
      UserError: `result` is of other settings.
    """
    about = {**about, "config": config, "settings": dict(settings)}
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        # A count may change by what metrics cost; the result keeps that of its own run.
        if any(found.get(name) != value for name, value in about.items() if name != "pflop"):
            raise UserError(f"{result} is of other settings: name another directory in --results")
        return found
    arguments = ["--config", config, "--workdir", str(workdir)]
    arguments += [f"--config.{name}={value}" for name, value in settings.items()]
    onereward("train", *arguments)
    if not (workdir / "evaluation.json").exists():
        onereward("evaluate", *arguments)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    kept = ("algorithm", "what", "gsb", "truth", "judge_view", "seconds", "peak_memory_gib", "tie_margin")
    write_json(result, about | {name: evaluation[name] for name in kept})
    return json.loads(result.read_text())


def row(arm: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds: of good − bad, and of that per PFLOP; of a single seed, with the interval of its scenes."""
    gains = {}
    for task in TASKS:
        found = [run["gsb"][task] for run in runs if task in run["gsb"]]
        if not found:
            continue
        values = [of["good"] - of["bad"] for of in found]
        interval = found[0]["ci95"] if len(values) == 1 else list(mean_interval(values, (-1.0, 1.0)))
        gains[task] = {"good_minus_bad": float(np.mean(values)), "ci95": interval, "of_seeds": values}
    pflop = runs[0]["pflop"]
    mean = float(np.mean([gain["good_minus_bad"] for gain in gains.values()]))
    return {
        "arm": arm,
        "seeds": [run["seed"] for run in runs],
        "updates": runs[0]["updates"],
        "pflop": pflop,
        "gains": gains,
        "mean_per_pflop": mean / pflop,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| arm | seeds | updates | PFLOP | " + " | ".join(TASKS) + " | mean per PFLOP |",
        "|---" * (5 + len(TASKS)) + "|",
    ]
    for one in rows:
        cells = []
        for task in TASKS:
            gain = one["gains"].get(task)
            cells.append(
                "" if gain is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(gain["good_minus_bad"], *gain["ci95"])
            )
        cells.append(f"{one['mean_per_pflop']:+.1f}")
        numbers = f"{len(one['seeds'])} | {one['updates']} | {one['pflop']:.4g}"
        lines.append(f"| {one['arm']} | {numbers} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    from onereward_jax.cli.arguments import number, path, text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=path, required=True, metavar="DIR", help="of the runs, one directory each")
    parser.add_argument("--results", type=path, default="docs/results/learning", metavar="DIR", help="a file a run")
    parser.add_argument("--config", type=text, default="quick", help="configuration of all arms")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=DEFAULT, help="the first sets the compute")
    parser.add_argument("--seeds", nargs="+", type=number(int, at_least=0, at_most=10**6), default=[0, 1, 2])
    parser.add_argument("--updates", type=number(int, at_least=1, at_most=10**6), default=200, help="of the first arm")
    parser.add_argument("--set", nargs="+", type=text, default=[], metavar="NAME=VALUE", help="settings of all arms")
    parser.add_argument("--count", action="store_true", help="count updates and PFLOP, and train nothing")
    args = parser.parse_args()

    given = dict(FOR_ALL)
    for one in args.set:
        name, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"--set {one} is no setting: write NAME=VALUE")
        given[name] = value
    flops = {arm: flops_of_update(args.config, given | ARMS[arm]) for arm in args.arms}
    budget = args.updates * flops[args.arms[0]]
    updates = {arm: max(1, round(budget / flops[arm])) for arm in args.arms}
    for arm in args.arms:
        print(f"{arm}: {updates[arm]} updates of {flops[arm] / 1e12:.4g} TFLOP", flush=True)
    if args.count:
        return 0

    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:  # all arms of a seed first: what is there after it is a comparison
        for arm in args.arms:
            name = f"gain_per_flop_{arm}_seed{seed}"
            about = {"arm": arm, "seed": seed, "updates": updates[arm], "pflop": updates[arm] * flops[arm] / 1e15}
            settings = given | ARMS[arm] | {"seed": str(seed), "train.num_steps": str(updates[arm])}
            result = Path(args.results) / f"{name}.json"
            result.parent.mkdir(parents=True, exist_ok=True)
            runs[arm].append(finished_run(Path(args.workdir) / name, result, args.config, settings, about))
            rows = [row(arm, found) for arm, found in runs.items() if found]
            write_json(Path(args.workdir) / "gain_per_flop.json", rows)
            print(table(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
