"""Trains the judge on preference pairs (Eq. 3); writes it to WORKDIR/export."""

import argparse

from onereward_jax.commands import config_arguments
from onereward_jax.configuration import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, needs=("data", "judge", "mesh", "optimizer", "preferences", "train"))


def run(args: argparse.Namespace) -> None:
    from onereward_jax.judge.training import train_judge

    train_judge(args.config, claim_workdir(args.workdir, args.config))
