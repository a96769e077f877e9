"""Compares the cost of `compare_all` for four dimensions with `compare` for one; at most 1.3 times as much is allowed.

    python -m benchmarks.judge_cost [--repeats 5]

Operations: Qwen2.5-VL-7B and two images of 1024 x 1024 pixels, from pixels to answers. JAX traces `Judge.apply` on
abstract values without computing anything. Every matrix product of the traced program counts as often as it runs (the
body of a scan once per layer; full and windowed attention for the share of layers that use it), even where a mask
discards part of it. Questions are tokenized by the small judge below.

Time: a judge of small width, and images so large that the prefix, which all questions share, is ten times as long as a
question; whole calls on uint8 images, each with the official image processing. Calls alternate and the median counts,
so that other load on the machine affects both.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks.timing import median_seconds
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.judge.answer_probabilities import prefix_positions
from onereward_jax.judge.judge import QUESTION_BUCKET, Judge
from onereward_jax.judge.vision import OFFICIAL_SETTINGS, grid_of
from onereward_jax.proving_ground.tokenizers import write_qwen2_tokenizer
from onereward_jax.questions import question
from onereward_jax.tasks import dimensions_of
from onereward_jax.weights.names import qwen2_5_vl

OFFICIAL = Path(__file__).parents[1] / "tests" / "goldens" / "qwen2.5-vl-7b-instruct.json"
LIMIT = 1.3
TASK, PROMPT = "image_fill", "a red circle on the left"
QUESTIONS = [question(TASK, dimension, PROMPT) for dimension in dimensions_of(TASK)]


def matrix_operations(function: Callable, *arguments: Any, taken: Sequence[float] = ()) -> float:
    """Count multiplications and additions in the matrix products of a function.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`s.
      taken: how often each branch of every `cond` is taken, as shares.
    """
    return _operations(jax.make_jaxpr(function)(*arguments).jaxpr, taken)


def _operations(jaxpr: Jaxpr, taken: Sequence[float]) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parameters = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * equation.outvars[0].aval.size
        elif equation.primitive.name == "cond":
            branches = [_operations(branch.jaxpr, taken) for branch in parameters["branches"]]
            total += sum(share * branch for share, branch in zip(taken, branches, strict=True)) if any(branches) else 0
        else:
            times = parameters["length"] if equation.primitive.name == "scan" else 1
            total += times * sum(_operations(inner, taken) for inner in _programs_in(parameters.values()))
    return total


def _programs_in(values: Any) -> list[Jaxpr]:
    found: list[Jaxpr] = []
    for value in values:
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
        elif isinstance(value, tuple):
            found += _programs_in(value)
    return found


def answering_operations(judge: Judge, params: Any, images: Sequence[jax.ShapeDtypeStruct], texts: Sequence[str]):
    """Count operations of `Judge.apply` on two images, with questions padded as in `compare` and `compare_all`."""
    longest = max(len(ids) for ids in judge.encode_questions(texts)[0])
    ids, lengths = judge.encode_questions(texts, -(-longest // QUESTION_BUCKET) * QUESTION_BUCKET)
    visual = judge.model.visual
    full = len(visual.fullatt_block_indexes) / visual.depth

    def apply(params, first, second):
        asked = {"question_ids": ids[None], "question_lengths": lengths[None]}
        return judge.apply(params, {"first": first, "second": second} | asked)

    return matrix_operations(apply, params, *images, taken=(1 - full, full))


def official_judge(tokenizer: Any) -> tuple[Judge, Any]:
    """Return Qwen2.5-VL-7B without weights: a judge, and the shapes of its parameters."""
    model = qwen2_5_vl.module_from_config(json.loads(OFFICIAL.read_text())["config"], dtype=jnp.bfloat16)
    inputs = qwen2_5_vl.example_inputs(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]
    return Judge(model, shapes, tokenizer, OFFICIAL_SETTINGS), shapes


def small_judge(directory: str | Path, width: int = 256, layers: int = 4) -> Judge:
    """Return a judge with random weights and the official patch and window sizes."""
    tokenizer = write_qwen2_tokenizer(directory, QUESTIONS)
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 128}
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, **heads}
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6]}
    vision = {"hidden_size": width, "intermediate_size": 3 * width, "num_heads": width // 32, "depth": layers}
    vision |= {"out_hidden_size": width, "fullatt_block_indexes": [layers - 1]}
    text |= {"vocab_size": len(tokenizer), "rope_parameters": rope}
    return Judge.create({"text_config": text, "vision_config": vision}, tokenizer, OFFICIAL_SETTINGS)


def lengths_of(judge: Judge, size: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of the prefix with two images of a size, and of the longest question with padding."""
    merge = judge.model.visual.spatial_merge_size
    grid = tuple(side // merge for side in grid_of(*size, judge.settings))
    asked = max(judge.encode_questions(QUESTIONS)[1])
    padded = -(-int(asked) // QUESTION_BUCKET) * QUESTION_BUCKET
    return prefix_positions(judge.prefix, grid, grid).shape[1] - 1, padded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as directory:
        judge = small_judge(directory)

    official, shapes = official_judge(judge.tokenizer)
    images = [jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)] * 2
    one, four = (answering_operations(official, shapes, images, texts) for texts in (QUESTIONS[:1], QUESTIONS))
    prefix, asked = lengths_of(official, (1024, 1024))
    print(f"operations, Qwen2.5-VL-7B, two images of 1024 x 1024: prefix {prefix} tokens, a question {asked}")
    print(f"  compare {one / 1e12:.1f} T, compare_all {four / 1e12:.1f} T: {four / one:.3f} times")

    rows = next(n for n in range(1, 100) if lengths_of(judge, (28 * n, 28 * n))[0] >= 10 * asked)
    size = (28 * rows, 28 * rows)
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 256, (*size, 3), np.uint8) for _ in range(2))
    compare = lambda: judge.compare(first, second, task=TASK, dimension="text_alignment", prompt=PROMPT)
    compare_all = lambda: judge.compare_all(first, second, task=TASK, prompt=PROMPT)
    short, long = median_seconds([compare, compare_all], repeats)
    prefix, asked = lengths_of(judge, size)
    where = f"width {judge.model.model.hidden_size}, {jax.devices()[0].device_kind}"
    print(f"time, {where}, two images of {size[0]} x {size[1]}: prefix {prefix} tokens, a question {asked}")
    print(f"  compare {1000 * short:.0f} ms, compare_all {1000 * long:.0f} ms: {long / short:.3f} times")
    return int(max(four / one, long / short) > LIMIT)


if __name__ == "__main__":
    sys.exit(guarded(main))
