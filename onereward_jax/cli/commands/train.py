"""Improves a fill model by reward feedback learning (Algorithm 1 or 2), on your own images or the proving ground.

--config.data.source names requests: images, masks and prompts in any form of docs/reference/requests.md. Without one,
scenes of the proving ground are drawn. docs/how-to/own_images.md has the details.
"""

import argparse

from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.data.requests.source import check_sources
    from onereward_jax.runs.reward_feedback import train

    check_sources(args.config)  # before claim_workdir, which creates the directory
    workdir = claim_workdir(args.workdir, args.config, args.config.only_measuring)
    use_compilation_cache(workdir)
    train(args.config, workdir)
