"""Copies trained models, in bfloat16, to where the configurations look for them: OUT/base and OUT/judge.

Judges from successive rounds of one training are merged by averaging their weights, which makes reward hacking harder
than with the last judge alone (Ramé et al. 2024, "WARM"). Tokenizer and questions are those of the last.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=path, metavar="DIR", help="fill model in diffusers layout, such as WORKDIR/export of train-base"
    )
    parser.add_argument(
        "--judge",
        type=path,
        metavar="DIR",
        nargs="+",
        help="judge in transformers layout, such as WORKDIR/export of train-judge; several are averaged",
    )
    parser.add_argument("--out", type=path, metavar="DIR", required=True)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.atomic_files import check_output
    from onereward_jax.errors import UserError
    from onereward_jax.fill.pipeline import FillPipeline
    from onereward_jax.judge.judge import Judge
    from onereward_jax.tree import mean

    if not (args.base or args.judge):
        raise UserError("there is nothing to package: give --base, --judge or both")
    base, judge = Path(args.out) / "base", Path(args.out) / "judge"
    for given, directory in ((args.base, base), (args.judge, judge)):
        if given:
            check_output(directory)
    if args.base:
        FillPipeline.from_pretrained(args.base, dtype="float32").save_pretrained(base, "bfloat16")
    if args.judge:
        judges = [Judge.from_pretrained(directory, "float32") for directory in args.judge]
        if any(judge.tokenizer.get_vocab() != judges[-1].tokenizer.get_vocab() for judge in judges):
            raise UserError(
                "the judges have different tokenizers, so they can't be averaged: give judges of one training"
            )
        params = mean([judge.params for judge in judges])
        judges[-1].save_pretrained(judge, params, dtype="bfloat16")
