"""How often a judge calls the winner of annotated pairs, per task and dimension; writes JSON with --out.

DATA is a directory of `onereward make-preferences`. Every pair is asked in both orders.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", required=True, help="judge in transformers layout")
    parser.add_argument("--lora", metavar="PATH", action="append", help="adapter of that judge in PEFT's layout")
    parser.add_argument("--data", metavar="DIR", required=True, help="preferences, such as WORKDIR of make-preferences")
    parser.add_argument("--untuned", metavar="DIR", help="another judge, to be measured on the same pairs")
    parser.add_argument("--source", choices=("planted", "base"), default="", help="only pairs of this kind")
    parser.add_argument("--out", metavar="FILE", help="a JSON file for all figures, calibration among them")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.evaluation.accuracy import judge_accuracy
    from onereward_jax.evaluation.asking import preference_records
    from onereward_jax.files import write_json
    from onereward_jax.judge.judge import Judge

    directory = Path(args.data)
    if (directory / "train").is_dir():
        directory = directory / "train"
    models = {"model": args.model} | ({"untuned": args.untuned} if args.untuned else {})
    found = {}
    for name, path in models.items():
        judge = Judge.from_pretrained(path, "float32", lora=args.lora if name == "model" else None)
        found[name] = judge_accuracy(preference_records(judge, directory, source=args.source))
        print(_table(path, found[name]))
    if args.out:
        write_json(Path(args.out), found)


def _table(title: str, found: dict) -> str:
    lines = [title, f"{'task':<16}{'dimension':<18}accuracy  95 %          both orders  pairs"]
    for task, cells in found["cells"].items():
        lines += [_line(task, dimension, cell) for dimension, cell in cells.items()]
    overall = found["overall"]
    lines.append(_line("all", "", overall))
    lines.append(f"position bias {overall['position_bias']:+.3f}, calibration error {overall['calibration_error']:.3f}")
    return "\n".join(lines)


def _line(task: str, dimension: str, cell: dict) -> str:
    low, high = cell["ci95"]
    return (
        f"{task:<16}{dimension:<18}{cell['accuracy']:.2f}      {low:.2f} to {high:.2f}  "
        f"{cell['both_orders']:.2f}         {cell['n']}"
    )
