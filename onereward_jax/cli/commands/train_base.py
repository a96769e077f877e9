"""Trains the miniature's fill model by flow matching; writes it to WORKDIR/export."""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import BaseTraining
from onereward_jax.config.workdir import claim_workdir

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, BaseTraining)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.runs.miniature import train_base

    train_base(args.config, claim_workdir(args.workdir, args.config))
