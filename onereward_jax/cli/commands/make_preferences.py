"""Makes preference data on the proving ground: candidates, and a simulated annotator's choices.

Writes WORKDIR/train or, of held-out photographs, WORKDIR/test; a second call goes on where the first stopped. A task
whose `data.task_weights` is 0 is left out.
"""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import JudgeTraining, RewardFeedback
from onereward_jax.config.workdir import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, JudgeTraining, RewardFeedback)
    parser.add_argument(
        "--split", choices=("train", "test"), default="train", help="photographs to train with, or held-out ones"
    )


def run(args: argparse.Namespace) -> None:
    from onereward_jax.candidates.simulated import make_preferences
    from onereward_jax.tasks import TASKS

    workdir = claim_workdir(args.workdir, args.config)
    settings, weights = args.config.preferences, args.config.data.task_weights
    make_preferences(
        args.config,
        workdir / args.split,
        args.split,
        model=settings.base,
        planted=settings.planted_scenes_per_task,
        base=settings.scenes_per_task,
        tasks=[task for task in TASKS if weights.get(task, 0)],
    )
