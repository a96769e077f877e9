"""Fine-tunes a fill model on your own images by flow matching, in full or by LoRA; writes it to WORKDIR/export.

The images are in a folder, --config.data.source, with captions in NAME.txt beside NAME.png or in metadata.jsonl. Masks
are drawn at random, or your own. docs/how-to/finetune.md has the details.
"""

import argparse

from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.config.schema import Finetuning
from onereward_jax.config.workdir import claim_workdir, local_workdir
from onereward_jax.errors import UserError

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, Finetuning, default="finetune")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.data.requests.source import read_split
    from onereward_jax.fill.diffusers_io import check_fill_model
    from onereward_jax.runs.finetune import finetune

    if not args.config.data.source:
        raise UserError("data.source is empty: give a folder of images by --config.data.source=FOLDER")
    # Before claim_workdir, which creates the directory.
    check_fill_model(args.config.model.base)
    requests = read_split(args.config, local_workdir(args.workdir))
    workdir = claim_workdir(args.workdir, args.config)
    use_compilation_cache(workdir)
    finetune(args.config, workdir, requests)
