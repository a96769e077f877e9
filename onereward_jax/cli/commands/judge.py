"""Asks a judge which of two images is better, in one dimension of a task or in all of them; prints JSON.

P(Yes) is the probability, over the judge's whole vocabulary, that the first image is the better one. It depends on the
order of the images: with --both_orders the judge is also asked with the images swapped, and `p_first_is_better` is the
mean of P(Yes) as given and of 1 - P(Yes) swapped.
"""

import argparse
import json

from onereward_jax.cli.arguments import path, text
from onereward_jax.tasks import DIMENSIONS, TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=path, metavar="PATH", required=True, help="judge, a directory or hub repository"
    )
    parser.add_argument(
        "--lora", type=path, metavar="PATH", action="append", help="adapter of the judge in PEFT's layout"
    )
    parser.add_argument("--first", type=path, metavar="FILE", required=True, help="an image")
    parser.add_argument("--second", type=path, metavar="FILE", required=True, help="an image, of any size")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--dimension", choices=DIMENSIONS, help="a dimension of the task (default: all, in one pass)")
    parser.add_argument("--prompt", type=text, help="description of the image, for text_alignment")
    parser.add_argument("--both_orders", action="store_true", help="also ask with the images swapped")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")


def run(args: argparse.Namespace) -> None:
    from onereward_jax import questions, tasks
    from onereward_jax.images.reading import read_image
    from onereward_jax.judge.judge import Judge

    # Check the command line before a model is loaded.
    dimensions = [args.dimension] if args.dimension else tasks.dimensions_of(args.task, args.prompt or "")
    for dimension in dimensions:
        questions.question(args.task, dimension, args.prompt)
    images = [read_image(path) for path in (args.first, args.second)]
    judge = Judge.from_pretrained(args.model, args.dtype, lora=args.lora)
    first, second = (judge.encode(image) for image in images)

    def ask(first, second) -> dict[str, float]:
        if args.dimension:
            answer = judge.compare(first, second, task=args.task, dimension=args.dimension, prompt=args.prompt)
            return {args.dimension: answer}
        return judge.compare_all(first, second, task=args.task, prompt=args.prompt)

    found = {"task": args.task, "prompt": args.prompt, "first": args.first, "second": args.second}
    found["p_yes"] = given = ask(first, second)
    if args.both_orders:
        found["p_yes_swapped"] = swapped = ask(second, first)
        found["p_first_is_better"] = {name: (p + 1 - swapped[name]) / 2 for name, p in given.items()}
    print(json.dumps(found, indent=2))
