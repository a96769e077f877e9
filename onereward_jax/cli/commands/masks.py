"""Draws masks for requests, or takes them from segmentations, and gives each a task and a prompt.

    onereward masks --source DIR --out masked --tasks image_fill=.7,image_extend=.3 --sheet masks.png
    onereward masks --source DIR --out masked --coco instances.json --tasks image_fill=.5,object_removal=.5 --dilate 8

--source is in any form that docs/reference/requests.md names; a request that brings its mask keeps it. The same seed
gives a request the same masks, whatever the others are.
"""

import argparse

from onereward_jax.cli.arguments import like, local_path, number, path, text
from onereward_jax.config.schema import Recipe, RequestData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=path, metavar="PATH", required=True, help="the requests, or images alone")
    parser.add_argument("--out", type=path, metavar="DIR", required=True, help="a new directory for requests.jsonl")
    parser.add_argument(
        "--kinds",
        type=text,
        help="of boxes, strokes, blobs, borders and segments, separated by commas; default all",
    )
    parser.add_argument(
        "--tasks",
        type=text,
        metavar="TASK=SHARE,...",
        help="tasks of the masks and their shares; default those of the requests",
    )
    parser.add_argument("--prompts", type=path, metavar="FILE", help='lines {"id" or "image", "prompt", "task"}')
    parser.add_argument("--coco", type=path, metavar="FILE", help="segmentations: COCO annotations of instances")
    parser.add_argument("--categories", type=text, default="", help="of --coco, separated by commas; default all")
    parser.add_argument("--segments", type=path, metavar="DIR", help="segmentations: PNG files, a colour an object")
    parser.add_argument(
        "--per_image", type=number(int, at_least=1, at_most=1000), default=1, help="masks of a request, default 1"
    )
    parser.add_argument(
        "--min_hole", type=like(RequestData, "min_hole"), default=0.2, help="least side of a drawn mask, default 0.2"
    )
    parser.add_argument(
        "--max_hole", type=like(RequestData, "max_hole"), default=0.7, help="greatest side of one, default 0.7"
    )
    share = number(float, at_least=0, at_most=1)
    parser.add_argument("--min_area", type=share, default=0.01, help="least share of a segment, default 0.01")
    parser.add_argument("--max_area", type=share, default=0.6, help="greatest share of a segment, default 0.6")
    parser.add_argument(
        "--dilate", type=number(int, at_least=0, at_most=512), default=0, help="pixels to grow segments by, default 0"
    )
    parser.add_argument("--seed", type=like(Recipe, "seed"), default=0, help="of the draws, default 0")
    parser.add_argument("--sheet", type=local_path, metavar="FILE", help="a PNG file with some masks of each task")
    parser.add_argument(
        "--bad_share", type=like(RequestData, "bad_share"), default=0.1, help="bad ones to bear, default 0.1"
    )
    parser.add_argument("--inside_only", action="store_true", help="refuse paths that lead out of the source's folder")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from onereward_jax import buckets
    from onereward_jax.atomic_files import check_output
    from onereward_jax.candidates import draw_masks
    from onereward_jax.candidates.prompts import Prompts
    from onereward_jax.candidates.segmentations import open_segmentations
    from onereward_jax.data.bad_records import Skipped
    from onereward_jax.data.requests.layouts import Defaults
    from onereward_jax.data.requests.read import read_requests
    from onereward_jax.data.requests.write import check_apart
    from onereward_jax.tasks import TASKS

    drawing = draw_masks.Drawing(
        kinds=draw_masks.parse_kinds(args.kinds) if args.kinds else draw_masks.KINDS,
        tasks=draw_masks.parse_tasks(args.tasks) if args.tasks else {},
        per_image=args.per_image,
        hole=(args.min_hole, args.max_hole),
        area=(args.min_area, args.max_area),
        dilate=args.dilate,
        seed=args.seed,
    )
    source, coco, segments, prompts = (
        buckets.reading(given) if given else None for given in (args.source, args.coco, args.segments, args.prompts)
    )
    assert source is not None
    out = buckets.local(args.out, "output")
    buckets.pull(out)  # what is there is replaced, or refused
    check_output(out)
    check_apart(source, out)
    categories = [word.strip() for word in args.categories.split(",") if word.strip()]
    opened = open_segmentations(coco, segments, categories, args.bad_share)
    drawer = draw_masks.Drawer(drawing, Prompts(prompts, args.bad_share), opened)
    requests = read_requests(source, Defaults(), args.bad_share, args.inside_only, TASKS)
    skipped = Skipped("requests", args.source, args.bad_share)
    draw_masks.draw_masks(requests, out, drawer, skipped, Path(args.sheet) if args.sheet else None)
    print(drawer.table() or "every request brings its mask")
