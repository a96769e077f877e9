"""Copies trained models, in bfloat16, to where the configurations look for them: OUT/base and OUT/judge."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", metavar="DIR", help="fill model in diffusers layout, such as WORKDIR/export of train-base"
    )
    parser.add_argument(
        "--judge", metavar="DIR", help="judge in transformers layout, such as WORKDIR/export of train-judge"
    )
    parser.add_argument("--out", metavar="DIR", required=True)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.errors import UserError
    from onereward_jax.flow.pipeline import FillPipeline
    from onereward_jax.judge.judge import Judge

    if not (args.base or args.judge):
        raise UserError("there is nothing to package: give --base, --judge or both")
    if args.base:
        FillPipeline.from_pretrained(args.base, dtype="float32").save_pretrained(Path(args.out) / "base", "bfloat16")
    if args.judge:
        Judge.from_pretrained(args.judge, "float32").save_pretrained(Path(args.out) / "judge", dtype="bfloat16")
