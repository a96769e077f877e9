"""The reward feedback learning run: configuration in, improved policy and its EMA out."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from onereward_jax import trainer
from onereward_jax.data.proving_ground import ProvingGround
from onereward_jax.flow.pipeline import FillPipeline
from onereward_jax.judge.batches import question_batch
from onereward_jax.judge.judge import Judge
from onereward_jax.metrics import peak_memory_gib, training_seconds, write_json
from onereward_jax.rl.step import Frozen, StepConfig, make_step
from onereward_jax.tasks import NEGATIVE_PROMPT
from onereward_jax.train_state import TrainState, create_state, make_optimizer
from onereward_jax.weights.export import save_component


def train(config: ConfigDict, workdir: Path) -> TrainState:
    """Runs Algorithm 1 (`config.algorithm` = "fixed") or 2 ("dynamic") in `workdir`, or goes on with it.

    Exports the transformers of policy and EMA, in diffusers layout, to workdir/export/policy and workdir/export/ema.

    Raises:
      FileNotFoundError, ValueError: a model is missing, or the configuration does not fit.
    """
    if config.algorithm not in ("fixed", "dynamic"):
        raise ValueError(f"unknown algorithm {config.algorithm!r}: choose fixed (Algorithm 1) or dynamic (Algorithm 2)")
    step_config = StepConfig(**config.rl)
    if config.train.batch_size % step_config.accumulate:
        raise ValueError(
            f"a batch of {config.train.batch_size} does not divide into {step_config.accumulate} micro-batches:"
            " change train.batch_size or rl.accumulate"
        )
    # Of processes that were killed, their steps; of this one, loading, compiling and exporting too.
    seconds_before, started = training_seconds(workdir / "metrics.jsonl"), time.perf_counter()
    pipeline = FillPipeline.from_pretrained(config.model.base)
    judge = Judge.from_pretrained(config.model.judge)
    transformer = pipeline.transformer.clone(dtype=config.model.dtype, remat=config.model.remat)

    optimizer = make_optimizer(**config.optimizer)
    step = make_step(transformer, pipeline.vae, judge.apply, optimizer, step_config, pipeline.shift)

    def new_state() -> TrainState:
        return create_state(
            pipeline.params["transformer"], optimizer, config.seed, reference=config.algorithm == "fixed"
        )

    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)

    target_flaws = config.data.target_flaws if step_config.flow_matching_weight else None

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return encode_text(batch, pipeline, judge, config.max_sequence_length, config.question_length, step_config)

    state = trainer.train(
        config,
        workdir,
        step=step,
        new_state=new_state,
        frozen=Frozen(vae=pipeline.params["vae"], judge=judge.params),
        record=lambda index, task: scene_record(ground, index, task, target_flaws),
        prepare=prepare,
        description=f"reward feedback learning ({config.algorithm})",
    )
    for name, params in (("policy", state.params), ("ema", state.ema)):
        save_component(workdir / "export" / name, "transformer", pipeline.transformer, jax.device_get(params))
    _write_cost(workdir / "training.json", int(state.step), seconds_before + time.perf_counter() - started)
    return state


def _write_cost(path: Path, step: int, seconds: float) -> None:
    """What the run cost so far, over all its processes; a process that had nothing left to do adds nothing."""
    earlier = json.loads(path.read_text()) if path.exists() else {"step": -1, "peak_memory_gib": 0.0}
    if earlier["step"] != step:
        peak = max(earlier["peak_memory_gib"], peak_memory_gib())
        write_json(path, {"step": step, "seconds": seconds, "peak_memory_gib": peak})


def scene_record(ground: ProvingGround, index: int, task: str, target_flaws: float | None = None) -> dict[str, Any]:
    """What an update needs of a scene, as arrays that can be stacked.

    Args:
      target_flaws: adds the `target` of flow-matching regularisation, flawed in this share of the scenes as the base
        model's training data is: it holds the policy to that data and teaches it nothing new.
    """
    scene = ground.scene(index, task, target_flaws or 0.0)
    sample = scene.sample
    record = {"image": sample.image, "mask": sample.mask, "prompt": np.str_(sample.prompt), "task": np.str_(task)}
    return record if target_flaws is None else record | {"target": scene.target}


def encode_text(
    batch: dict[str, np.ndarray],
    pipeline: FillPipeline,
    judge: Judge,
    max_sequence_length: int,
    question_length: int,
    config: StepConfig,
) -> dict[str, Any]:
    """Replaces a batch's prompts and tasks by embeddings and by the judge's questions, for `rl.step`."""
    prompts, tasks = [str(p) for p in batch["prompt"]], [str(t) for t in batch["task"]]
    arrays: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("prompt", "task")}
    arrays["index"] = arrays["index"].astype(np.int32)
    arrays["prompt_embeds"], arrays["pooled"] = pipeline.prompts.encode(prompts, max_sequence_length)
    if config.rollout_true_cfg_scale != 1.0 or config.gradient_true_cfg_scale != 1.0:
        negative = pipeline.prompts.encode([NEGATIVE_PROMPT] * len(prompts), max_sequence_length)
        arrays["negative_prompt_embeds"], arrays["negative_pooled"] = negative
    return arrays | question_batch(judge, tasks, prompts, question_length)
