"""Checks autoencoder and base model by ground truth; writes WORKDIR/sanity_checks.json and WORKDIR/base.png."""

import argparse

from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.evaluation.sanity_checks import run_sanity_checks

    checks = run_sanity_checks(args.config, claim_workdir(args.workdir, args.config))
    print(f"{'task':<16} {'dimension':<16} target  decoded   base    best of 4 against one")
    for task, base in checks["base"].items():
        best = base["best_of_4"]
        for row, (dimension, values) in enumerate(checks["autoencoder"][task].items()):
            gain = f"   {100 * (best['good'] - best['bad']):+.0f} points" if row == 0 else ""
            numbers = f"{values['target']:>6.2f} {values['reconstruction']:>8.2f} {base['truth'][dimension]:>6.2f}"
            print(f"{task:<16} {dimension:<16} {numbers}{gain}")
