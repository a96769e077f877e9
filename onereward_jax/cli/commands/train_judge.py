"""Trains the judge on preference pairs (Eq. 3); writes it to WORKDIR/export."""

import argparse

from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.config.schema import JudgeTraining
from onereward_jax.config.workdir import claim_workdir

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, JudgeTraining)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.runs.judge import train_judge

    workdir = claim_workdir(args.workdir, args.config)
    use_compilation_cache(workdir)
    train_judge(args.config, workdir)
