"""Follows the judge's gradient on the base's images, measured by ground truth; writes WORKDIR/reward_ascent.json."""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.evaluation.reward_ascent import run_reward_ascent

    workdir = claim_workdir(args.workdir, args.config)
    print(f"{'task':<16} good  same  bad   95 % of good - bad   judge before, after")
    for task, found in run_reward_ascent(args.config, workdir).items():
        (low, high), judge = found["ci95"], found["judge"]
        shares = "  ".join(f"{found[name]:.2f}" for name in ("good", "same", "bad"))
        print(f"{task:<16} {shares}  {low:+.2f} to {high:+.2f}       {judge['before']:.2f}, {judge['after']:.2f}")
