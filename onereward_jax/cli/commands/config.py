"""Prints every setting of a configuration: its value, who gave it, its default and what is allowed.

`--docs FILE` writes the table of all settings for the documentation instead.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import path
from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.describe import page, table
from onereward_jax.config.schema import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, *RECIPES, default="quick", workdir=False)
    parser.add_argument("--docs", type=path, metavar="FILE", help="a Markdown file that gets all settings")


def run(args: argparse.Namespace) -> None:
    if args.docs:
        Path(args.docs).write_text(page(), encoding="utf-8")
    else:
        print(table(args.config, args.config_sources))
