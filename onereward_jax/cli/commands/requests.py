"""Checks requests to train on, describes them, or converts them to our own form.

    onereward requests check --source DIR                     names every bad one; exit code 1 if there are any
    onereward requests stats --source DIR --sheet sheet.png   tasks, masks, targets, prompts, sizes and buckets
    onereward requests convert --source DIR --to OUT          a folder with requests.jsonl, or --form tfds

--source is in any form that docs/reference/requests.md names. Images are read once, and what was read of them is kept
in the data's folder, for training too.
"""

import argparse
import sys

from onereward_jax.cli.arguments import like, local_path, path, text
from onereward_jax.config.schema import RequestData, RewardFeedback, Training
from onereward_jax.errors import UserError
from onereward_jax.tasks import TASKS

ACTIONS = ("check", "stats", "convert")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("--source", type=path, metavar="PATH", required=True, help="the requests")
    parser.add_argument("--caption", type=text, default="", help="prompt of requests that have none")
    parser.add_argument("--task", choices=TASKS, help="task of requests that name none")
    parser.add_argument("--inside_only", action="store_true", help="refuse paths that lead out of the source's folder")
    parser.add_argument("--to", type=path, metavar="DIR", help="convert: a new directory")
    parser.add_argument("--form", choices=("folder", "tfds"), default="folder", help="convert: default folder")
    parser.add_argument(
        "--bad_share",
        type=like(RequestData, "bad_share"),
        default=0.1,
        help="bad ones to bear, default 0.1",
    )
    parser.add_argument("--sheet", type=local_path, metavar="FILE", help="stats: a PNG file for a sheet of images")
    parser.add_argument(
        "--resolution", type=like(RequestData, "resolution"), default=1024, help="stats: of the buckets, default 1024"
    )
    parser.add_argument(
        "--bucket_step", type=like(RequestData, "bucket_step"), default=64, help="stats: of the buckets, default 64"
    )
    parser.add_argument("--batch_size", type=like(Training, "batch_size"), default=8, help="stats: default 8")


def run(args: argparse.Namespace) -> int:
    from onereward_jax import buckets
    from onereward_jax.data.requests.layouts import Defaults
    from onereward_jax.data.requests.read import check_requests, read_requests

    source, given = buckets.reading(args.source), Defaults(prompt=args.caption, task=args.task)
    if args.action == "convert" and not args.to:
        raise UserError("convert needs a directory to write to: give one by --to DIR")
    if args.action == "check":
        checked = check_requests(source, given, args.inside_only)
        for bad in checked.bad:
            print(f"onereward: {bad}", file=sys.stderr)
        print(f"{source}: {len(checked.requests)} requests, {len(checked.bad)} bad ones")
        return 1 if checked.bad else 0
    requests = read_requests(source, given, args.bad_share, args.inside_only)
    if args.action == "convert":
        from onereward_jax.data.requests.write import write_requests

        out = buckets.local(args.to, "output")
        buckets.pull(out)  # what is there is replaced, or refused
        write_requests(out, requests, args.form)
        print(f"{args.to}: {len(requests)} requests")
        return 0
    _describe(args, requests)
    return 0


def _describe(args: argparse.Namespace, requests: list) -> None:
    from onereward_jax.data.requests.source import Requests
    from onereward_jax.data.requests.statistics import contact_sheet, table
    from onereward_jax.images.grid import write_png

    config = RewardFeedback().replace(
        {
            "data.resolution": args.resolution,
            "data.bucket_step": args.bucket_step,
            "train.batch_size": args.batch_size,
        }
    )
    source = Requests(config, requests)
    print(table(source))
    if args.sheet:
        write_png(args.sheet, contact_sheet(source))
