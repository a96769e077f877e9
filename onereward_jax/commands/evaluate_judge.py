"""How often a judge calls the winner of annotated pairs, per task and dimension; writes JSON with --out.

DATA is preference data in either form (docs/preferences.md), such as a directory of `onereward make-preferences`.
Pictures may have any size. Every pair is asked in both orders; records that can't be used are named and left out.
"""

import argparse
import functools
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onereward_jax.data.preferences.dataset import BAD_SHARE

    parser.add_argument("--model", metavar="DIR", required=True, help="judge in transformers layout")
    parser.add_argument("--lora", metavar="PATH", action="append", help="adapter of that judge in PEFT's layout")
    parser.add_argument("--data", metavar="DIR", required=True, help="preferences, in either form")
    parser.add_argument("--untuned", metavar="DIR", help="another judge, to be measured on the same pairs")
    parser.add_argument("--source", choices=("planted", "base"), default="", help="only pairs of this kind")
    parser.add_argument("--batch_size", type=int, default=50, metavar="N", help="pairs asked at once (default: 50)")
    parser.add_argument(
        "--image_step", type=int, default=0, metavar="N", help="round sides of pictures to multiples of N pixels"
    )
    parser.add_argument(
        "--bad_share", type=float, default=BAD_SHARE, metavar="SHARE", help=f"that may be bad (default: {BAD_SHARE})"
    )
    parser.add_argument("--out", metavar="FILE", help="a JSON file for all figures, calibration among them")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.data.preferences.dataset import open_records
    from onereward_jax.evaluation.accuracy import judge_accuracy
    from onereward_jax.evaluation.asking import preference_records
    from onereward_jax.files import write_json
    from onereward_jax.judge.judge import Judge
    from onereward_jax.judge.pairs import check_record, read_pairs

    data = Path(args.data)
    open_records(data)  # before a model is loaded
    models = {"model": args.model} | ({"untuned": args.untuned} if args.untuned else {})
    found = {}
    pairs = None
    for name, path in models.items():
        judge = Judge.from_pretrained(path, "float32", lora=args.lora if name == "model" else None)
        if pairs is None:
            check = functools.partial(check_record, judge, None)
            pairs = read_pairs(data, source=args.source, check=check, bad_share=args.bad_share)
        found[name] = judge_accuracy(
            preference_records(judge, pairs, batch_size=args.batch_size, image_step=args.image_step)
        )
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
