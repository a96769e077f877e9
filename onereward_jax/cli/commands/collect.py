"""Makes candidates for requests, for people to compare: one or several models under random settings.

    onereward collect --source DIR --model M [--model M2] --out OUT    requests of your own: docs/reference/requests.md
    onereward collect --source proving_ground --split test --model M --out OUT    scenes with a known right answer

Steps, guidance, negative prompt and the strength of the initial noise are drawn for each candidate and recorded. With
--same_settings every model makes one candidate of each request from the same settings and noise, to be compared as
Good-Same-Bad. A command that was stopped resumes where it was; on many hosts, all run the same command and share OUT.
OUT is what `onereward annotate` takes.
"""

import argparse
import dataclasses
from typing import Any

from onereward_jax.cli.arguments import like, number, path, text
from onereward_jax.cli.commands import use_compilation_cache
from onereward_jax.config.schema import Evaluation, Preferences, RequestData, RewardFeedback
from onereward_jax.errors import UserError
from onereward_jax.tasks import TASKS

IN_SEVERAL_PROCESSES = True
PROVING_GROUND = "proving_ground"
_MAX_CANDIDATES = 256  # as in `data.preferences.record`, whose import takes long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=path,
        metavar="PATH",
        action="append",
        required=True,
        help="a model in diffusers layout, a run or its export, an adapter, a hub repository; may be repeated",
    )
    parser.add_argument("--base", type=path, metavar="PATH", help="the whole model of an adapter or a transformer")
    parser.add_argument("--out", type=path, metavar="DIR", required=True, help="a new directory, or one to resume")
    parser.add_argument(
        "--same_settings", action="store_true", help="one candidate a model, from the same settings and noise"
    )
    source_arguments(parser)
    how_arguments(parser)


def how_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how candidates are made, for `how_of`."""
    parser.add_argument(
        "--candidates", type=number(int, at_least=2, at_most=_MAX_CANDIDATES), help="of each request (default: 4)"
    )
    steps, scale = like(Preferences, "min_steps"), like(Evaluation, "guidance_scale")
    parser.add_argument("--min_steps", type=steps, default=10, help="least Euler steps, default 10")
    parser.add_argument("--max_steps", type=steps, default=50, help="most Euler steps, default 50")
    parser.add_argument(
        "--guided_share",
        type=like(Preferences, "guided_share"),
        default=0.5,
        help="share of candidates with true guidance, default 0.5",
    )
    parser.add_argument(
        "--max_true_cfg_scale",
        type=like(Preferences, "max_true_cfg_scale"),
        default=5.0,
        help="largest scale of that, default 5",
    )
    parser.add_argument(
        "--min_guidance_scale", type=scale, default=1.0, help="least scale that the model is told, default 1"
    )
    parser.add_argument("--max_guidance_scale", type=scale, default=4.0, help="the largest, default 4")
    parser.add_argument(
        "--keep_outside", action="store_true", help="put the request's own pixels back outside the mask"
    )
    parser.add_argument("--seed", type=like(RewardFeedback, "seed"), default=0, help="default: 0")
    parser.add_argument(
        "--batch_size", type=like(Evaluation, "batch_size"), default=8, help="images at once, default 8"
    )
    parser.add_argument(
        "--part_size", type=like(Preferences, "part_size"), default=16, help="requests of a file, default 16"
    )
    parser.add_argument(
        "--max_sequence_length",
        type=like(RewardFeedback, "max_sequence_length"),
        default=512,
        help="tokens of T5, default 512",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")


def source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what candidates are made for, for `asked_of`."""
    parser.add_argument(
        "--source", type=path, metavar="PATH", required=True, help=f"the requests, or {PROVING_GROUND} for its scenes"
    )
    parser.add_argument("--task", choices=TASKS, help="task of requests that name none; of scenes, the only one")
    parser.add_argument("--caption", type=text, default="", help="prompt of requests that have none")
    parser.add_argument("--inside_only", action="store_true", help="refuse paths that lead out of the source's folder")
    parser.add_argument(
        "--bad_share", type=like(RequestData, "bad_share"), default=0.1, help="bad requests to bear, default 0.1"
    )
    parser.add_argument(
        "--resolution", type=like(RequestData, "resolution"), help="of the buckets, default 1024; of scenes, 64"
    )
    parser.add_argument(
        "--bucket_step", type=like(RequestData, "bucket_step"), default=64, help="of the buckets' sides, default 64"
    )
    parser.add_argument(
        "--max_aspect", type=like(RequestData, "max_aspect"), default=2.0, help="of the buckets, default 2"
    )
    parser.add_argument("--split", choices=("train", "test"), default="train", help="of scenes, default train")
    parser.add_argument(
        "--count", type=number(int, at_least=0, at_most=10**6), default=100, help="scenes of each task, default 100"
    )
    parser.add_argument("--first_scene", type=like(Preferences, "first_scene"), default=0, help="default: 0")


def run(args: argparse.Namespace) -> None:
    from onereward_jax import buckets
    from onereward_jax.atomic_files import check_writable, lock
    from onereward_jax.candidates.collect import collect
    from onereward_jax.config.workdir import local_workdir
    from onereward_jax.fill.policies import Policy
    from onereward_jax.parallel import hosts

    if len(set(args.model)) < len(args.model):
        raise UserError("a --model is given twice: give each once, with more --candidates")
    collecting = how_of(args)
    if args.same_settings:
        candidates = args.candidates or len(args.model)
        collecting = dataclasses.replace(collecting, candidates=candidates, same_settings=True)
    out = local_workdir(args.out)
    hosts.on_primary(lambda: check_writable(out))
    asked = asked_of(args)
    models = {name: Policy.at(name, args.base, "--base") for name in args.model}
    hosts.on_primary(lambda: lock(out, "--out"))
    buckets.pull(out)
    if not buckets.is_bucket(args.out):
        hosts.check_shared(out / ".processes")
    use_compilation_cache()
    records = collect(asked, models, collecting, out)
    if hosts.is_primary():
        print(f"{args.out}: {records} requests of {collecting.candidates} candidates each")


def how_of(args: argparse.Namespace) -> Any:
    """How candidates are made: a `candidates.collect.Collecting`, see `how_arguments`."""
    from onereward_jax.candidates.collect import Collecting
    from onereward_jax.candidates.sampling import Ranges

    return Collecting(
        Ranges(
            args.min_steps,
            args.max_steps,
            args.guided_share,
            args.max_true_cfg_scale,
            args.min_guidance_scale,
            args.max_guidance_scale,
        ),
        candidates=args.candidates or 4,
        seed=args.seed,
        part_size=args.part_size,
        batch_size=args.batch_size,
        keep_outside=args.keep_outside,
        dtype=args.dtype,
        max_sequence_length=args.max_sequence_length,
        bad_share=args.bad_share,
    )


def asked_of(args: argparse.Namespace) -> Any:
    """The requests: a `candidates.asked.Asked`, see `source_arguments`."""
    from onereward_jax import buckets
    from onereward_jax.candidates.asked import own_requests, scenes
    from onereward_jax.data.requests.layouts import Defaults
    from onereward_jax.data.requests.read import read_requests
    from onereward_jax.proving_ground import ProvingGround

    if args.source == PROVING_GROUND:
        ground = ProvingGround(args.split, args.resolution or 64)
        return scenes(ground, [args.task] if args.task else TASKS, args.first_scene, args.count)
    source = buckets.reading(args.source)
    requests = read_requests(source, Defaults(prompt=args.caption, task=args.task), args.bad_share, args.inside_only)
    data = {"resolution": args.resolution or 1024, "bucket_step": args.bucket_step, "max_aspect": args.max_aspect}
    settings = {f"data.{name}": value for name, value in data.items()}
    return own_requests(requests, args.source, settings | {"data.source": args.source, "seed": args.seed})
