"""Makes preference data on the proving ground: the base model's candidates, a simulated annotator's choices.

Writes WORKDIR/train and WORKDIR/test; a second call goes on where the first stopped.
"""

import argparse

from onereward_jax.commands import config_arguments
from onereward_jax.configuration import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.judge.preferences import make_preferences

    workdir = claim_workdir(args.workdir, args.config)
    make_preferences(args.config, workdir / "train", "train", args.config.preferences.scenes_per_task)
    make_preferences(args.config, workdir / "test", "test", args.config.preferences.test_scenes_per_task)
