"""Evaluates a finished run on held-out scenes; writes WORKDIR/evaluation.json, report.html and figures/."""

import argparse

from onereward_jax import buckets
from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback)


def run(args: argparse.Namespace) -> None:
    # Before the claim, which would make the directory.
    if not (buckets.path(args.workdir) / "training.json").exists():
        raise UserError(f"{args.workdir} holds no trained policy: run `onereward train` with this --workdir first")

    from onereward_jax.evaluation.evaluate import evaluate

    evaluate(args.config, claim_workdir(args.workdir, args.config, RewardFeedback.MEASURING))
