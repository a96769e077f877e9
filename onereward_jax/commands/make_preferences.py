"""Makes preference data on the proving ground: candidates of the training split, a simulated annotator's choices.

Writes WORKDIR/train; a second call goes on where the first stopped.
"""

import argparse

from onereward_jax.commands import config_arguments
from onereward_jax.configuration import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, needs=("data", "preferences"))


def run(args: argparse.Namespace) -> None:
    from onereward_jax.judge.preferences import make_preferences

    workdir = claim_workdir(args.workdir, args.config)
    settings = args.config.preferences
    make_preferences(
        args.config,
        workdir / "train",
        "train",
        model=settings.base,
        planted=settings.planted_scenes_per_task,
        base=settings.scenes_per_task,
    )
