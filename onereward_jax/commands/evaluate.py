"""Evaluates a finished run on held-out scenes; writes WORKDIR/evaluation.json and WORKDIR/report.html."""

import argparse

from onereward_jax.commands import config_arguments
from onereward_jax.configuration import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.evaluation.run import evaluate

    evaluate(args.config, claim_workdir(args.workdir, args.config))
