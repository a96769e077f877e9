"""Converts preference data between a folder and TFDS, from a public set's layout, or to and from Label Studio.

--from is a folder with preferences.jsonl, a TFDS directory, or, with --layout, an annotation file of a public set, or
an export of Label Studio, whose images are under --images. Every record is checked; invalid ones are named and left
out: see docs/how-to/preferences.md.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import path
from onereward_jax.cli.commands import bad_share_argument
from onereward_jax.tasks import DIMENSIONS, TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onereward_jax.data.preferences.dataset import FORMS, LABEL_STUDIO
    from onereward_jax.data.preferences.importers import LAYOUTS

    parser.add_argument("--from", dest="source", type=path, metavar="PATH", required=True, help="data to convert")
    parser.add_argument("--to", dest="target", type=path, metavar="DIR", required=True, help="a new directory")
    parser.add_argument(
        "--form",
        choices=(*FORMS, LABEL_STUDIO),
        default="folder",
        help="form of the new directory (default: folder); label_studio: tasks of a project, also of candidates that"
        " nobody has voted on",
    )
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help="public set of the annotation file --from")
    parser.add_argument(
        "--images", type=path, metavar="DIR", help="with --layout: directory of the images (default: that of --from)"
    )
    parser.add_argument(
        "--inside_only", action="store_true", help="with --layout: refuse paths that lead out of the images' directory"
    )
    parser.add_argument("--task", choices=TASKS, default="image_fill", help="with --layout (default: image_fill)")
    parser.add_argument("--dimension", choices=DIMENSIONS, help="with --layout: dimension of an overall preference")
    bad_share_argument(parser)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.data.preferences import dataset, importers

    source = Path(args.source)
    records = (
        importers.Imported(args.layout, source, args.images, args.task, args.dimension, args.inside_only)
        if args.layout
        else (dataset.open_candidates if args.form == dataset.LABEL_STUDIO else dataset.open_records)(source)
    )
    good = 0

    def checked():
        nonlocal good
        for found in dataset.good_records(records, bad_share=args.bad_share):
            good += 1
            yield found.record

    dataset.write_records(Path(args.target), checked(), args.form)
    print(f"{args.target}: {good} of {len(records)} records")
