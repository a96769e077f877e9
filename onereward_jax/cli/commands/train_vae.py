"""Trains the miniature's autoencoder; writes it to WORKDIR/export/vae."""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import AutoencoderTraining
from onereward_jax.config.workdir import claim_workdir

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, AutoencoderTraining)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.runs.miniature import train_vae

    train_vae(args.config, claim_workdir(args.workdir, args.config))
