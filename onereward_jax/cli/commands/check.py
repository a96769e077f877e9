"""Checks new weights on a new machine before a long run: one line each, go or no-go; exit code 0 if nothing is no-go.

A fill beside diffusers' and the judge beside transformers' (in a file of `python -m benchmarks.official_answers`), the
judge's gradient, ten updates of the configuration, memory beside the plan's, a resume, a first evaluation. Trains as
`onereward train` would, in WORKDIR/run, and writes WORKDIR/check.json.
"""

import argparse
from pathlib import Path

from onereward_jax.buckets import is_bucket
from onereward_jax.cli.arguments import like, path
from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.config.schema import RewardFeedback, Training
from onereward_jax.errors import UserError

IN_SEVERAL_PROCESSES = True
NO_GO = 3  # as what does not fit: the same command again would not change it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback)
    parser.add_argument(
        "--answers", type=path, metavar="FILE", help="of diffusers and transformers; without it parity is skipped"
    )
    parser.add_argument("--plan", type=path, metavar="FILE", help="of `onereward plan --json` for this configuration")
    parser.add_argument(
        "--updates", type=like(Training, "num_steps"), default=10, metavar="N", help="before the resume (default: 10)"
    )


def run(args: argparse.Namespace) -> int:
    from onereward_jax.parallel import hosts
    from onereward_jax.runs.check import Finding, FirstContact

    def tell(finding: Finding) -> None:
        if hosts.is_primary():
            print(finding.line(), flush=True)

    if is_bucket(args.workdir):
        raise UserError(f"{args.workdir} is in a bucket, and a check is of this machine: give a --workdir of it")
    workdir = Path(args.workdir)
    use_compilation_cache(workdir)
    optional = lambda given: None if given is None else Path(given)
    contact = FirstContact(args.config, workdir, optional(args.answers), optional(args.plan), args.updates)
    findings = contact.run(tell)
    refused = [finding.name for finding in findings if finding.go is False]
    skipped = sum(finding.go is None for finding in findings)
    if hosts.is_primary():
        print(f"no-go: {', '.join(refused)}" if refused else f"go, {skipped} skipped")
    return NO_GO if refused else 0
