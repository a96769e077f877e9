"""Chooses images to collect candidates for: without near-duplicates, drawn evenly over clusters of CLIP's space.

    onereward select --source DIR --clip openai/clip-vit-large-patch14 --count 2000 --out chosen --sheet clusters.png

--source is in any form that docs/reference/requests.md names; images need no prompts. Embeddings are kept as they are
made: the same command resumes after a kill, and another draw needs no model.
"""

import argparse

from onereward_jax.cli.arguments import like, local_path, number, path
from onereward_jax.config.schema import Recipe, RequestData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=path, metavar="PATH", required=True, help="the requests, or images alone")
    parser.add_argument(
        "--clip", type=path, metavar="PATH", required=True, help="a CLIP model: a directory, or a repository on the hub"
    )
    parser.add_argument("--out", type=path, metavar="DIR", required=True, help="a new directory for requests.jsonl")
    parser.add_argument(
        "--count",
        type=number(int, at_least=1, at_most=10_000_000),
        help="images to choose, default all that are left",
    )
    parser.add_argument(
        "--clusters",
        type=number(int, at_least=1, at_most=100_000),
        default=100,
        help="clusters to draw from evenly, default 100",
    )
    parser.add_argument(
        "--duplicates",
        type=number(float, above=0, at_most=1),
        default=0.95,
        metavar="COSINE",
        help="leave out images whose cosine with an earlier one is above it, default 0.95; 1 keeps all",
    )
    parser.add_argument("--seed", type=like(Recipe, "seed"), default=0, help="of clusters and draw, default 0")
    parser.add_argument(
        "--keep", type=local_path, metavar="DIR", help="where embeddings are kept, default beside --out: OUT.embeddings"
    )
    parser.add_argument("--sheet", type=local_path, metavar="FILE", help="a PNG file with a row for each cluster")
    parser.add_argument(
        "--bad_share", type=like(RequestData, "bad_share"), default=0.1, help="bad ones to bear, default 0.1"
    )
    parser.add_argument("--inside_only", action="store_true", help="refuse paths that lead out of the source's folder")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from onereward_jax import buckets
    from onereward_jax.atomic_files import check_output, check_writable
    from onereward_jax.candidates.select import Selection, select
    from onereward_jax.data.requests.write import check_apart

    source = buckets.reading(args.source)
    out = buckets.local(args.out, "output")
    buckets.pull(out)  # what is there is replaced, or refused
    check_output(out)
    check_apart(source, out)
    keep = Path(args.keep) if args.keep else out.absolute().with_name(f"{out.absolute().name}.embeddings")
    for directory in (keep, *([Path(args.sheet).parent] if args.sheet else [])):  # now, and not after hours
        check_writable(directory)
    selection = Selection(args.count, args.clusters, args.duplicates, args.seed, args.bad_share, args.inside_only)
    sheet = Path(args.sheet) if args.sheet else None
    print(f"{args.out}: {select(source, args.clip, keep, out, selection, sheet)}")
