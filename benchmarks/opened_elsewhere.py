"""Opens exports in diffusers and peft, and compares one velocity, and the judge's answer, with ours.

    python -m benchmarks.opened_elsewhere --base DIR --model EXPORT --lora EXPORT [--judge EXPORT] [--json FILE]

Takes the `parity` extra and memory for one model in float32 at a time: everything is computed in float32 on the CPU,
where only the order of sums differs. `--model` is a whole model in diffusers layout, `--lora` an adapter of `--base`,
`--judge` an adapter of a judge that peft opens. Fails if an error is above 1e-3 of the values' root mean square or no
number, or an adapter changes nothing.
"""

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.official_answers import inputs_of
from onereward_jax.atomic_files import write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.given_files import read_json
from onereward_jax.judge.judge import Judge
from onereward_jax.models.lora import attach
from onereward_jax.weights.load import load_component
from onereward_jax.weights.peft_adapters import PEFT_CONFIG, load_adapters

LIMIT = 1e-3


def example(config: dict[str, Any], rows: int, text: int) -> tuple[np.ndarray, ...]:
    """Make one sample: image tokens, text states, pooled state, timestep, both ids, guidance."""
    draw = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([0], np.arange(rows), np.arange(rows), indexing="ij"), -1).reshape(-1, 3)
    return (
        draw.standard_normal((1, rows * rows, config["in_channels"]), np.float32),
        draw.standard_normal((1, text, config["joint_attention_dim"]), np.float32),
        draw.standard_normal((1, config["pooled_projection_dim"]), np.float32),
        np.array([0.5], np.float32),
        grid.astype(np.float32),
        np.zeros((text, 3), np.float32),
        np.array([1.0], np.float32),
    )


def official_velocity(transformer: Any, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    import torch

    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
    arguments = dict(zip((*names, "guidance"), map(torch.from_numpy, inputs), strict=True))
    with torch.no_grad():
        return transformer.float()(**arguments, return_dict=False)[0].numpy()


def our_velocity(directory: Path, adapter: Path | None, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    module, params = load_component(directory / "transformer", "transformer", "float32", {"dtype": jnp.float32})
    if adapter is not None:
        params = attach(params, load_adapters("transformer", params, [(adapter, 1.0)]))
    return np.asarray(jax.jit(module.apply)({"params": params}, *inputs))


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the values."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))


def policy(base: Path, model: Path, lora: Path, rows: int, text: int) -> dict[str, float]:
    """Errors of the whole model and of the adapter, and how far the adapter moves the velocity."""
    import diffusers

    def opened(directory: Path, change: Callable[[Any], None] = lambda pipeline: None) -> np.ndarray:
        pipeline = diffusers.FluxFillPipeline.from_pretrained(directory, local_files_only=True)
        change(pipeline)
        found = official_velocity(pipeline.transformer, inputs)
        gc.collect()
        return found

    inputs = example(read_json(base / "transformer" / "config.json"), rows, text)
    theirs = {
        "model": opened(model),
        "adapter": opened(base, lambda pipeline: pipeline.load_lora_weights(lora)),
        "base": opened(base),
    }
    ours = {"model": our_velocity(model, None, inputs), "adapter": our_velocity(base, lora, inputs)}
    found = {name: error(ours[name], theirs[name]) for name in ours}
    return found | {"adapter_moves_the_base_by": error(theirs["adapter"], theirs["base"])}


def judge_adapter(adapter: Path, side: int) -> dict[str, float]:
    """P(Yes) of one pair, by peft and by us."""
    import peft
    import torch
    import transformers

    base = read_json(adapter / PEFT_CONFIG)["base_model_name_or_path"]
    ours = Judge.from_pretrained(base, "float32", lora=adapter)
    pair = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    question = ours.question("image_fill", "structure")
    p_yes = ours.ask(pair[0], pair[1], question=question)["yes"]
    asked, (yes, _) = inputs_of(ours, (pair[0], pair[1]), question), ours.yes_no
    del ours
    gc.collect()
    official = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = float(torch.softmax(official(**asked).logits[0, -1], -1)[yes])
        adapted = peft.PeftModel.from_pretrained(official, adapter)
        theirs = float(torch.softmax(adapted(**asked).logits[0, -1], -1)[yes])
    return {"judge": abs(p_yes - theirs) / theirs, "judge_adapter_moves_p_yes_by": abs(theirs - plain) / plain}


def failures(found: dict[str, float], judged: bool) -> list[str]:
    """Names of the figures that are missing, no numbers, above the limit, or of an adapter that changes nothing."""
    errors = ["model", "adapter", *(["judge"] if judged else [])]
    changes = ["adapter_moves_the_base_by", *(["judge_adapter_moves_p_yes_by"] if judged else [])]
    failed = [name for name in errors if not found.get(name, math.nan) <= LIMIT]
    return failed + [name for name in changes if not 0 < found.get(name, math.nan) < math.inf]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument("--judge", type=Path, help="an adapter of `onereward train-judge`")
    parser.add_argument("--rows", type=int, default=16, help="image tokens of a side (default: 16)")
    parser.add_argument("--text", type=int, default=64, help="text tokens (default: 64)")
    parser.add_argument("--side", type=int, default=252, help="pixels of the images that the judge sees (default: 252)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    found = policy(args.base, args.model, args.lora, args.rows, args.text)
    if args.judge:
        found |= judge_adapter(args.judge, args.side)
    print(json.dumps(found))
    if args.json:
        write_json(args.json, found)
    failed = failures(found, args.judge is not None)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(guarded(main))
