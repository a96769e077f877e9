"""Provoked reward hacking beside honest runs: which alarm is raised when, and what limits tell them apart.

    python -m benchmarks.alarms run --workdir runs/alarms [--seeds 10] [--updates 400] [--judge DIRECTORY]
    python -m benchmarks.alarms limits --workdir runs/alarms
    python -m benchmarks.alarms table --workdir runs/alarms [--limits defaults]

`run` trains, for each seed, an honest run (configs/quick.py) and a provoked one: early indices, no flow matching,
neither shift nor noise before the judge, a higher rate. --judge is what both follow, --other one that neither sees; for
the first judge, which is easier to exploit, train one by configs/miniature/judge.py. Every run is an `onereward train`
that resumes, and takes no step when it is done: the command may be stopped at any time and given again.

`limits` sets each limit from the finished runs of the first half of the seeds, three or more of a kind: a quarter of
the way from the farthest value that an honest run held for `alarms.in_a_row` evaluations to the median of the provoked
runs, so that it is early. An alarm whose honest runs go as far, or differ among each other by more than a third of that
way, is of no use and gets none. Writes limits.json. `table` counts by the runs of the other half, which the limits have
not seen: the alarms of each run with their steps, false alarms, and by ground truth what a run had at its best, at its
end, and where train.stop_on_alarm would have ended it. Writes alarms.json.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.config.schema import Alarms, PolicyTraining
from onereward_jax.errors import UserError
from onereward_jax.evaluation.alarms import ALARMS, Alarm, Line, evaluations, first_raised, verdict
from onereward_jax.given_files import read_json
from onereward_jax.tasks import TASKS
from onereward_jax.training.metrics import read_metrics

KINDS: dict[str, dict[str, Any]] = {
    "honest": {},
    "provoked": {
        "rl.first_index": 2,
        "rl.last_index": 5,
        "rl.flow_matching_weight": 0.0,
        "rl.judge_shift": 0,
        "rl.judge_noise": 0.0,
        "optimizer.learning_rate": 1e-4,
    },
}
MEASURED = {
    "evaluation.every": 20,
    "evaluation.scenes_while_training": 32,
    "alarms.seeds": 1,
    "alarms.reencodings": ("jpeg", "shift", "noise"),
}

LEAST_RUNS = 3  # of a kind, for limits: the spread of honest runs is one of its grounds


def run(args: argparse.Namespace) -> None:
    models = {"model.judge": args.judge, "evaluation.other_judge": args.other}
    common = MEASURED | {name: value for name, value in models.items() if value} | {"train.num_steps": args.updates}
    common |= dict(setting.split("=", 1) for setting in args.set)
    for seed in range(args.seeds):  # both kinds of a seed before the next: what is there at any time can be compared
        for kind, settings in KINDS.items():
            values = common | settings | {"seed": seed}
            words = [f"--config.{name}={value}" for name, value in values.items()]
            workdir = args.workdir / f"{kind}_{seed}"
            command = ["train", "--config", "quick", *words, "--workdir", str(workdir)]
            subprocess.run([sys.executable, "-m", "onereward_jax.cli.main", *command], check=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's evaluations."""

    kind: str
    seed: int
    lines: list[Line]
    num_steps: int

    @property
    def is_finished(self) -> bool:
        return self.lines[-1]["step"] >= self.num_steps

    def truth(self, step: int) -> float:
        """Mean ground-truth gain over the base at a step, which was evaluated; of the base itself 0."""
        (line,) = [line for line in self.lines if line["step"] == step] or [{}]
        gains = [line[name] for task in TASKS if (name := f"evaluation/{task}/truth_gain") in line]
        return float(np.mean(gains)) if gains else 0.0


def read_runs(workdir: Path) -> list[Run]:
    """Read the runs that have an evaluation, those under way included.

    Raises:
      UserError: there is none.
    """
    found = []
    for file in sorted(workdir.glob("*_*/metrics.jsonl")):
        kind, _, seed = file.parent.name.partition("_")
        if kind in KINDS and seed.isdecimal() and (lines := evaluations(read_metrics(file))):
            config = read_json(file.with_name("config.json"), "remove that run, or train it again")
            found.append(Run(kind, int(seed), list(lines), config["train.num_steps"]))
    if not found:
        raise UserError(f"{workdir} has no run with an evaluation: begin with `python -m benchmarks.alarms run`")
    return found


def halves(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs that set limits, and those that limits are judged by."""
    middle = (max(run.seed for run in runs) + 1) // 2
    return [run for run in runs if run.seed < middle], [run for run in runs if run.seed >= middle]


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that have taken all their updates; says how many have not.

    Raises:
      UserError: there are too few of a kind.
    """
    done = [run for run in runs if run.is_finished]
    if len(done) < len(runs):
        print(f"left out: {len(runs) - len(done)} of {len(runs)} runs, which are not at their last update")
    counts = {kind: sum(run.kind == kind for run in done) for kind in KINDS}
    if min(counts.values()) < LEAST_RUNS:
        there = " and ".join(f"{count} {kind}" for kind, count in counts.items())
        raise UserError(
            f"limits need {LEAST_RUNS} finished runs of each kind in the first half of the seeds, and there are"
            f" {there}: let `python -m benchmarks.alarms run` finish, or give it more --seeds"
        )
    return done


def farthest(alarm: Alarm, run: Run, in_a_row: int) -> float | None:
    """The limit beyond which a run would have raised no alarm: the value that it held for so many evaluations."""
    values = [None if (worst := alarm.worst(line)) is None else worst[1] for line in run.lines]
    windows = [values[n : n + in_a_row] for n in range(len(values) - in_a_row + 1)]
    held = [(max if alarm.below else min)(window) for window in windows if None not in window]  # type: ignore[type-var]
    return (min if alarm.below else max)(held) if held else None  # type: ignore[type-var]


def set_limits(args: argparse.Namespace) -> None:
    setting_runs = finished(halves(read_runs(args.workdir))[0])
    found: dict[str, Any] = {}
    for alarm in ALARMS:
        of = {
            kind: [
                x for run in setting_runs if run.kind == kind if (x := farthest(alarm, run, args.in_a_row)) is not None
            ]
            for kind in KINDS
        }
        if not of["honest"] or not of["provoked"]:
            continue
        honest = (min if alarm.below else max)(of["honest"])
        provoked = float(np.median(of["provoked"]))
        way = (provoked - honest) * (-1 if alarm.below else 1)
        useful = way > 3 * np.std(of["honest"])
        found[alarm.name] = {
            "limit": round(honest + (provoked - honest) / 4, 4) if useful else None,
            "honest": honest,
            "provoked": provoked,
            "runs": [len(of["honest"]), len(of["provoked"])],
        }
        limit = "no limit: honest runs go about as far" if not useful else f"limit {found[alarm.name]['limit']:.4g}"
        print(f"{alarm.name:16} honest {honest:8.4f}  provoked {provoked:8.4f}  {limit}")
    write_json(args.workdir / "limits.json", found)


def limits_of(args: argparse.Namespace) -> Alarms:
    if args.limits == "defaults":
        return Alarms(in_a_row=args.in_a_row)
    known = read_json(args.workdir / "limits.json", "make it by `python -m benchmarks.alarms limits`")
    values = {name: None if name not in known else known[name]["limit"] for name in (alarm.name for alarm in ALARMS)}
    return Alarms(in_a_row=args.in_a_row, **values)


def row(run: Run, limits: Alarms) -> dict[str, Any]:
    """What became of a run, by alarms and by ground truth."""
    stopping, stop = PolicyTraining(stop_on_alarm=True), None
    for number in range(len(run.lines)):
        stop = stop or verdict(run.lines[: number + 1], limits, stopping)
    steps = [line["step"] for line in run.lines]
    best = max(steps, key=run.truth)
    return {
        "kind": run.kind,
        "seed": run.seed,
        "updates": steps[-1],
        "raised": first_raised(run.lines, limits),
        "truth_at_best": [best, run.truth(best)],
        "truth_at_end": run.truth(steps[-1]),
        "stopped": None if stop is None else {"at": stop.at, "result": stop.step, "truth": run.truth(stop.step)},
    }


def table(args: argparse.Namespace) -> None:
    limits = limits_of(args)
    setting_runs, judged = halves(read_runs(args.workdir))
    # Defaults were set on none of the runs.
    rows = [row(run, limits) for run in ((*setting_runs, *judged) if args.limits == "defaults" else judged)]
    for of in rows:
        raised = ", ".join(f"{name} at {step}" for name, step in sorted(of["raised"].items(), key=lambda x: x[1]))
        ended = of["stopped"] and f"; ended at {of['stopped']['at']} with {of['stopped']['truth']:+.3f}"
        print(
            f"{of['kind']} {of['seed']}: truth {of['truth_at_best'][1]:+.3f} at {of['truth_at_best'][0]},"
            f" {of['truth_at_end']:+.3f} at {of['updates']}; {raised or 'no alarm'}{ended or ''}"
        )
    counts = {kind: [bool(of["raised"]) for of in rows if of["kind"] == kind] for kind in KINDS}
    for kind, fired in counts.items():
        print(f"{kind}: {sum(fired)} of {len(fired)} runs raised an alarm")
    write_json(args.workdir / "alarms.json", {"limits": limits.to_dict(), "runs": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("limits", set_limits), ("table", table)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--workdir", type=Path, required=True)
        if name == "run":
            command.add_argument("--seeds", type=int, default=10)
            command.add_argument("--updates", type=int, default=400)
            command.add_argument("--judge", default="", help="that training follows; empty: the packaged one")
            command.add_argument("--other", default="", help="that training never sees; empty: none")
            command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of every run")
        else:
            command.add_argument("--in_a_row", type=int, default=Alarms().in_a_row)
        if name == "table":
            command.add_argument("--limits", choices=("found", "defaults"), default="found")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    sys.exit(guarded(main))
