"""Fills, extends, removes or writes text: image, mask and prompt in, PNG out.

White pixels of the mask are generated. --task object_removal, and image_extend without a prompt, use the fixed prompts
of OneReward. --extend adds pixels at the sides and needs no mask. The defaults suit OneReward's transformers; run
FLUX.1-Fill-dev itself with --true_cfg_scale 1 --guidance_scale 30.

--image also takes a folder (then --mask is a folder of masks with the same names, or one mask for all, and --out a
folder), or requests in any form that docs/reference/requests.md names, such as a JSONL file whose lines have image,
mask, prompt, and optionally task, negative_prompt, extend. What can't be read is named, the others are filled, and the
exit code is 1. A JSONL file may name any file that you can read: give --inside_only with one that somebody else wrote.
"""

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onereward_jax.cli.arguments import like, number, path, text
from onereward_jax.config.option import conform
from onereward_jax.config.schema import Evaluation, RewardFeedback
from onereward_jax.tasks import NEGATIVE_PROMPT, TASKS

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=path, metavar="PATH", required=True, help="FLUX.1-Fill, a directory or hub repository"
    )
    parser.add_argument("--revision", type=text, help="branch, tag or commit of the repository")
    parser.add_argument(
        "--transformer", type=path, metavar="PATH", help="use another transformer: a directory, or REPO:SUBFOLDER"
    )
    parser.add_argument(
        "--lora",
        metavar="PATH[=WEIGHT]",
        type=_adapter,
        action="append",
        help="an adapter of the transformer; may be repeated",
    )
    parser.add_argument(
        "--image", type=path, metavar="FILE", required=True, help="an image, a folder of images, or a JSONL file"
    )
    parser.add_argument(
        "--inside_only", action="store_true", help="refuse paths in a JSONL file that lead out of its folder"
    )
    parser.add_argument("--mask", type=path, metavar="FILE", help="white where to generate, or a folder of masks")
    parser.add_argument("--prompt", type=text, help="description of the image")
    parser.add_argument("--negative_prompt", type=text, default=NEGATIVE_PROMPT, help="default: %(default)s")
    parser.add_argument("--task", choices=TASKS, help="default: image_fill, with --extend image_extend")
    parser.add_argument("--extend", type=text, metavar="left=256,right=0", help="pixels to add at the sides")
    parser.add_argument(
        "--num_inference_steps", type=like(Evaluation, "num_steps"), default=50, help="default: %(default)s"
    )
    parser.add_argument(
        "--true_cfg_scale",
        "--true_cfg",
        type=like(Evaluation, "true_cfg_scale"),
        default=4.0,
        help="default: %(default)s",
    )
    parser.add_argument(
        "--guidance_scale", type=like(Evaluation, "guidance_scale"), default=1.0, help="default: %(default)s"
    )
    parser.add_argument(
        "--max_sequence_length",
        type=like(RewardFeedback, "max_sequence_length"),
        default=512,
        help="tokens of T5, default: %(default)s",
    )
    parser.add_argument("--seed", type=like(RewardFeedback, "seed"), default=0, help="default: %(default)s")
    parser.add_argument(
        "--num_images",
        type=number(int, at_least=1, at_most=10_000),
        default=1,
        help="with the seeds SEED, SEED + 1, ...",
    )
    parser.add_argument("--keep_outside", action="store_true", help="put the image's own pixels back outside the mask")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--out", type=path, metavar="FILE", required=True, help="a PNG file, or a folder for many images"
    )


def run(args: argparse.Namespace) -> int:
    from onereward_jax.atomic_files import check_writable
    from onereward_jax.data.requests.record import BadRequest
    from onereward_jax.errors import UserError
    from onereward_jax.fill.requests import output_files, prompt_of, read_requests
    from onereward_jax.parallel import hosts

    # Check the command line before a model is loaded.
    seeds = like(RewardFeedback, "seed")
    conform("the last image's seed", seeds.kind, seeds.limits, args.seed + args.num_images - 1)
    image, out = Path(args.image), Path(args.out)
    given = {"prompt": args.prompt, "negative_prompt": args.negative_prompt, "task": args.task, "extend": args.extend}
    requests = read_requests(image, Path(args.mask) if args.mask else None, args.inside_only, **given)
    many = image.is_dir() or image.suffix in (".jsonl", ".json")
    if many == (out.suffix == ".png") or (not many and out.is_dir()):
        wanted = "a folder for many images" if many else "a .png file for one image"
        raise UserError(f"--out {out} is not {wanted}: give one")
    check_writable(out if many else out.parent)

    failed: list | None = [] if many else None
    good = [request for request in requests if not isinstance(request, BadRequest)]
    files = dict(zip(good, output_files(good, out, args.num_images), strict=True))
    real = os.path.realpath  # unlike `Path.resolve`, it takes symbolic links that lead to themselves
    pictures = (path for request in good for path in (request.image, request.mask, request.target))
    read = {real(path) for path in pictures if isinstance(path, Path)}
    if replaced := [file for of_request in files.values() for file in of_request if real(file) in read]:
        raise UserError(f"{replaced[0]} is an input and would be replaced: choose another --out")
    prompts = _of_each(requests, prompt_of, failed)
    if not many:
        with warnings.catch_warnings(action="ignore"):  # they are shown when the request is filled
            good[0].pictures()
    if prompts:
        _fill(args, prompts, files, failed)
    if failed and hosts.is_primary():
        print(f"onereward: {len(failed)} of {len(requests)} could not be filled", file=sys.stderr)
    return 1 if failed else 0


def _of_each(requests: Sequence, function: Callable[[Any], Any], failed: list | None) -> dict:
    """Return {request: result of the function} of those with which no process fails, so that all go on with the same.

    Args:
      failed: takes the others, which are reported by name; None raises what is wrong with the first.
    """
    from onereward_jax.cli.exit_codes import is_users_error, sentence
    from onereward_jax.parallel import hosts

    made, sentences = {}, []
    for index, request in enumerate(requests):
        try:
            made[request] = function(request)
        except (ValueError, OSError) as error:
            if failed is None or not is_users_error(error):
                raise
            sentences.append((index, sentence(error)))
    wrong: dict[int, str] = {}
    for of_process in hosts.gather(sentences):
        for index, why in of_process:
            wrong.setdefault(index, why)
    for index, why in sorted(wrong.items()):
        request = requests[index]
        made.pop(request, None)
        if failed is not None:
            failed.append(request)
        if hosts.is_primary():
            print(f"onereward: {why if request.where in why else f'{request.where}: {why}'}", file=sys.stderr)
    return made


def _fill(args: argparse.Namespace, prompts: dict, files: dict, failed: list | None) -> None:
    """Write every request's images; of several processes, all make them and the primary writes."""
    import numpy as np
    from tqdm import tqdm

    from onereward_jax.cli.commands import use_compilation_cache
    from onereward_jax.errors import in_memory
    from onereward_jax.fill.pipeline import FillPipeline
    from onereward_jax.images.grid import write_png
    from onereward_jax.images.reading import keep_outside
    from onereward_jax.parallel import hosts
    from onereward_jax.parallel.mesh import mesh_of_all

    use_compilation_cache()
    negatives = {request.negative_prompt for request in prompts} if args.true_cfg_scale != 1 else set()
    texts = [*dict.fromkeys(prompts.values()), *sorted(negatives)]
    with in_memory("the model", "take more devices, or larger ones"):
        pipeline = FillPipeline.from_pretrained(
            args.model,
            revision=args.revision,
            dtype=args.dtype,
            mesh=mesh_of_all(),
            transformer=args.transformer,
            lora=args.lora,
        )
        pipeline.prompts.cache_size = len(texts)
        pipeline.prompts.encode(texts, args.max_sequence_length)
    pipeline.release_text_encoders()  # the transformer takes their place on the device

    def write(file, picture, _):
        if hosts.is_primary():
            write_png(file, picture)

    def fill(image, mask, request):
        for offset, file in enumerate(files[request]):
            (made,) = pipeline(
                prompt=prompts[request],
                image=image,
                mask_image=mask.astype(bool),
                negative_prompt=request.negative_prompt,
                num_inference_steps=args.num_inference_steps,
                guidance_scale=args.guidance_scale,
                true_cfg_scale=args.true_cfg_scale,
                seed=args.seed + offset,
                max_sequence_length=args.max_sequence_length,
            ).images
            picture = np.asarray(made)
            if args.keep_outside:
                picture = keep_outside(image, mask, picture)
            if not _of_each([request], functools.partial(write, file, picture), failed):
                return

    for request in tqdm(prompts, desc="filling", disable=len(prompts) == 1):
        for image, mask in _of_each([request], lambda request: request.pictures(), failed).values():
            _of_each([request], functools.partial(fill, image, mask), failed)


_weight = number(float, at_least=-1000, at_most=1000)


def _adapter(text: str) -> tuple[str, float]:
    """Split PATH=WEIGHT; the path may contain a "=" itself."""
    adapter, equals, weight = text.rpartition("=")
    try:
        float(weight)
    except ValueError:
        equals = ""
    return (path(adapter), _weight(weight)) if equals else (path(text), 1.0)
