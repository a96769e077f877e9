"""How a judge comes from few pairs: a learning curve of LoRA adapters on the proving ground.

    python benchmarks/judge_from_few_pairs.py --workdir runs/few_pairs [--pairs 500 1000 2000] [--seeds 0]

The packaged judge knows images of 64 x 64 pixels and is at chance on those of 96 x 96, as an official judge may be on a
lab's own images. Adapters of it are trained on 500, 1000 and 2000 annotated pairs of such images with synthetic defects
(each subset holds the smaller ones) and measured, in both orders, on pairs of other scenes. The gradient of each is
then followed on the base model's images of that size (`onereward reward-ascent`): only a judge whose ascent raises the
ground-truth score is worth training on.

Every step is an `onereward` command that resumes or is skipped if its output is there. Writes
WORKDIR/judge_from_few_pairs.json and .png.
"""

import argparse
import json
import subprocess
import sys
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from onereward_jax.atomic_files import atomic_directory, write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.data.preferences.dataset import COMPLETE, open_records
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Record
from onereward_jax.tasks import TASKS

JUDGE, RESOLUTION = "miniature/judge", 96


def onereward(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "onereward_jax.cli.main", *arguments], check=True)


def settings(**values: Any) -> list[str]:
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]


def make_pairs(directory: Path, split: str, scenes_per_task: int) -> Path:
    """Annotated candidates with synthetic defects; not through the autoencoder, which would take most of the time."""
    if not (directory / split / COMPLETE).exists():
        onereward(
            "make-preferences",
            *("--config", "miniature/judge", "--split", split, "--workdir", str(directory)),
            *settings(data__resolution=RESOLUTION, preferences__synthetic_scenes_per_task=scenes_per_task),
            *settings(preferences__scenes_per_task=0, preferences__decoded_share=0, preferences__first_scene=30_000),
        )
    return directory / split


def subset(directory: Path, records: list[Record], pairs: int) -> Path:
    """The first records, tasks in turn, that have so many annotated pairs together."""
    of_task = [[record for record in records if record.task == task] for task in TASKS]
    in_turn = [record for record in chain(*zip_longest(*of_task)) if record is not None]
    chosen, count = [], 0
    while count < pairs:
        if not in_turn:
            raise ValueError(f"the records have {count} pairs: make more scenes")
        chosen.append(in_turn.pop(0))
        count += len(chosen[-1].pairs)
    if not directory.exists():
        with atomic_directory(directory) as partial:
            write_folder(partial, chosen)
    return directory


def train(workdir: Path, data: Path, seed: int, steps: int) -> Path:
    onereward(
        "train-judge",
        *("--config", "miniature/fifth_judge", "--workdir", str(workdir)),
        *settings(seed=seed, judge__start=JUDGE, judge__data=f"('{data}',)", judge__synthetic_share=0),
        *settings(judge__questions_per_pair=4, judge__balance_dimensions="false", judge__ema_decay=0.98),
        *settings(lora__rank=16, lora__alpha=16, optimizer__learning_rate=2e-3, optimizer__warmup_steps=20),
        *settings(optimizer__decay_steps=steps, train__num_steps=steps, train__checkpoint_every=50),
        *settings(data__task_weights__image_extend=0.25),
    )
    return workdir / "export"


def measure(out: Path, data: Path, adapter: Path | None) -> dict[str, Any]:
    """Accuracy, its interval, and the position bias on held-out pairs."""
    if not out.exists():
        lora = ["--lora", str(adapter)] if adapter else []
        onereward("evaluate-judge", "--model", JUDGE, *lora, "--data", str(data), "--out", str(out))
    return json.loads(out.read_text())["model"]


def ascend(workdir: Path, adapter: Path | None, scenes: int) -> dict[str, Any]:
    """Good - bad by the ground truth after the ascent of the judge's reward, by task."""
    out = workdir / "reward_ascent.json"
    if not out.exists():
        adapters = f"('{adapter}',)" if adapter else "()"
        onereward(
            "reward-ascent",
            *("--config", "quick", "--workdir", str(workdir)),
            *settings(model__judge_adapters=adapters, data__resolution=RESOLUTION, ascent__scenes_per_task=scenes),
        )
    return json.loads(out.read_text())


def plot(file: Path, curve: list[dict[str, Any]]) -> None:
    """Accuracy with its interval against the pairs, and where the judges were ascended, what came of it."""
    ascended = [point for point in curve if "good_minus_bad" in point]
    figure, axes = plt.subplots(1, 2 if ascended else 1, figsize=(9 if ascended else 4.5, 3.4), constrained_layout=True)
    left, *right = axes if ascended else [axes]
    sizes = sorted({point["pairs"] for point in curve})
    for point in curve:
        place, accuracy = sizes.index(point["pairs"]), point["accuracy"]
        left.errorbar(
            place, accuracy, [[accuracy - point["ci95"][0]], [point["ci95"][1] - accuracy]], fmt="o", color="C0"
        )
    left.axhline(0.5, color="0.5", lw=0.8, ls=":")
    left.set_xticks(range(len(sizes)), ["untrained" if not size else str(size) for size in sizes])
    left.set(xlabel="annotated pairs", ylabel="accuracy on held-out pairs", ylim=(0.4, 1))
    for point in ascended:
        right[0].plot(point["accuracy"], point["good_minus_bad"], "o", color="C1")
        right[0].annotate(str(point["pairs"] or "untrained"), (point["accuracy"], point["good_minus_bad"]), fontsize=8)
        right[0].set(xlabel="accuracy on held-out pairs", ylabel="ground truth, good − bad after the ascent")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--pairs", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400, help="updates of 16 pairs, the same for every size")
    parser.add_argument("--scenes", type=int, default=256, help="per task, to train on")
    parser.add_argument("--held_out", type=int, default=64, help="scenes per task")
    parser.add_argument("--ascent", type=int, default=12, help="scenes per task of the ascent; 0 does none")
    args = parser.parse_args()
    made, held_out = (
        make_pairs(args.workdir / split, split, count)
        for split, count in (("train", args.scenes), ("test", args.held_out))
    )
    records, curve = list(open_records(made)), []
    runs = [(0, 0)] + [(pairs, seed) for pairs in args.pairs for seed in args.seeds]
    for pairs, seed in runs:
        name = args.workdir / f"{pairs}_pairs_seed_{seed}"
        data = subset(args.workdir / f"{pairs}_pairs", records, pairs) if pairs else None
        adapter = train(name, data, seed, args.steps) if data else None
        accuracy = measure(args.workdir / f"{name.name}.json", held_out, adapter)
        point = {"pairs": pairs, "seed": seed, **accuracy["overall"], "cells": accuracy["cells"]}
        if args.ascent and seed == args.seeds[0]:
            verdicts = ascend(args.workdir / f"ascent_{pairs}", adapter, args.ascent)
            point["ascent"] = verdicts
            point["good_minus_bad"] = sum(x["good"] - x["bad"] for x in verdicts.values()) / len(verdicts)
        curve.append(point)
        about = {"judge": JUDGE, "resolution": RESOLUTION, "steps": args.steps, "batch": 16}
        write_json(args.workdir / "judge_from_few_pairs.json", about | {"curve": curve})
        plot(args.workdir / "judge_from_few_pairs.png", curve)
        print(f"{pairs} pairs, seed {seed}: accuracy {point['accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
