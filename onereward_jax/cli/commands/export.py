"""Exports a trained model or adapter for diffusers, or a model for ComfyUI, with a model card.

Uses the newest checkpoint, even of a stopped run. The files have the base model's dtype.
"""

import argparse

from onereward_jax.cli.arguments import path

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        required=True,
        help="working directory of `onereward train` or `onereward finetune`",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        required=True,
        help="output directory: new, empty, or an earlier export, which is replaced",
    )
    parser.add_argument(
        "--what",
        choices=("policy", "ema"),
        help="parameters or their moving average (default: policy; for finetune ema, if it keeps one)",
    )
    parser.add_argument(
        "--format", choices=("diffusers", "lora", "comfyui"), default="diffusers", help="default: diffusers"
    )


def run(args: argparse.Namespace) -> None:
    from onereward_jax import buckets
    from onereward_jax.config.workdir import open_workdir
    from onereward_jax.parallel import hosts
    from onereward_jax.runs.export import export

    out = buckets.local(args.out, "output", pushed=hosts.is_primary())
    hosts.on_primary(lambda: buckets.pull(out))  # what is there is replaced, or refused
    step, what = export(open_workdir(args.workdir), out, args.what, args.format)
    if hosts.is_primary():
        print(f"{args.out}: {what} of step {step}")
