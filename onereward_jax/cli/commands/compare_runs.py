"""Compares evaluated runs, for example three seeds of both algorithms.

Prints good − bad by ground truth for every run; writes OUT/comparison.json and OUT/comparison.png, with rewards and
ground-truth gains during training. Runs of one algorithm share a colour, and a thick line shows their mean.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=path, metavar="DIR", nargs="+", required=True, help="working directories after `evaluate`"
    )
    parser.add_argument("--out", type=path, metavar="DIR", required=True, help="gets the table and the figure")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.atomic_files import check_writable
    from onereward_jax.evaluation.compare_runs import read_run, write_comparison

    check_writable(Path(args.out))
    rows = write_comparison(Path(args.out), [read_run(Path(workdir)) for workdir in args.runs])
    print(f"{'':<13}{'task':<16}mean good − bad  above zero  runs, 95 %")
    for row in rows:
        intervals = "  ".join(f"{low:+.2f} to {high:+.2f}" for low, high in row["ci95"].values())
        print(
            f"{row['group']:<13}{row['task']:<16}{row['mean']:+.3f}           {row['above_zero']} of {row['runs']}"
            f"      {intervals}"
        )
