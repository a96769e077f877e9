"""Writes what a run trained as a model or adapter for diffusers or as a model for ComfyUI, with a model card.

The newest checkpoint counts, also of a run that was stopped. The files have the base model's own dtype.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="of `onereward train` or `onereward finetune`")
    parser.add_argument("--out", metavar="DIR", required=True, help="is made; files of an earlier export are replaced")
    parser.add_argument(
        "--what",
        choices=("policy", "ema"),
        help="the parameters themselves, or their average (default: policy; of finetune ema, if it keeps one)",
    )
    parser.add_argument(
        "--format", choices=("diffusers", "lora", "comfyui"), default="diffusers", help="default: diffusers"
    )


def run(args: argparse.Namespace) -> None:
    from onereward_jax.atomic_files import check_writable
    from onereward_jax.runs.export import export

    check_writable(Path(args.out))
    step, what = export(Path(args.workdir), Path(args.out), args.what, args.format)
    print(f"{args.out}: {what} of step {step}")
