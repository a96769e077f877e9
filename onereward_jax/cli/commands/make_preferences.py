"""Makes preference data on the proving ground: candidates and the choices of a simulated annotator.

Writes WORKDIR/train or, with held-out photographs, WORKDIR/test; a second call resumes where the first stopped. Tasks
with `data.task_weights` 0 are left out.
"""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import JudgeTraining, RewardFeedback
from onereward_jax.config.workdir import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, JudgeTraining, RewardFeedback)
    parser.add_argument("--split", choices=("train", "test"), default="train", help="training or held-out photographs")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.candidates.simulated_preferences import make_preferences
    from onereward_jax.tasks import TASKS

    workdir = claim_workdir(args.workdir, args.config)
    settings, weights = args.config.preferences, args.config.data.task_weights
    make_preferences(
        args.config,
        workdir / args.split,
        args.split,
        model=settings.base,
        planted=settings.synthetic_scenes_per_task,
        base=settings.scenes_per_task,
        tasks=[task for task in TASKS if weights.get(task, 0)],
    )
