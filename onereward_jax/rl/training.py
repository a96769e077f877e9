"""The reward feedback learning run: configuration in, improved policy and its EMA out."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from onereward_jax import loop
from onereward_jax.data import mixture
from onereward_jax.data.proving_ground import ProvingGround
from onereward_jax.flow.pipeline import FillPipeline
from onereward_jax.judge.batches import question_batch
from onereward_jax.judge.judge import Judge
from onereward_jax.mesh import batch_sharding, make_mesh
from onereward_jax.metrics import peak_memory_gib, training_seconds
from onereward_jax.rl.step import Frozen, StepConfig, make_step
from onereward_jax.tasks import NEGATIVE_PROMPT
from onereward_jax.train_state import TrainState, compile_step, create_state, make_optimizer
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
    mesh = make_mesh(**config.mesh)
    pipeline = FillPipeline.from_pretrained(config.model.base)
    judge = Judge.from_pretrained(config.model.judge)
    transformer = pipeline.transformer.clone(dtype=config.model.dtype, remat=config.model.remat)

    optimizer = make_optimizer(**config.optimizer)
    step = make_step(transformer, pipeline.vae, judge.apply, optimizer, step_config, pipeline.shift)
    frozen = Frozen(vae=pipeline.params["vae"], judge=judge.params)

    def new_state() -> TrainState:
        return create_state(
            pipeline.params["transformer"], optimizer, config.seed, reference=config.algorithm == "fixed"
        )

    compiled, state, frozen = compile_step(step, new_state, frozen, mesh)

    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)
    batches = mixture.mixture(
        dict(config.data.task_weights),
        lambda index, task: scene_record(ground, index, task),
        seed=config.seed,
        batch_size=config.train.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.loader_threads,
    )

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        arrays = encode_text(batch, pipeline, judge, config.max_sequence_length, config.question_length, step_config)
        return jax.device_put(arrays, batch_sharding(mesh))

    state = loop.run(
        step=lambda state, batch: compiled(state, frozen, batch),
        state=state,
        batches=iter(batches),
        prepare=prepare,
        num_steps=config.train.num_steps,
        workdir=workdir,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        log_every=config.train.log_every,
        description=f"reward feedback learning ({config.algorithm})",
    )
    for name, params in (("policy", state.params), ("ema", state.ema)):
        save_component(workdir / "export" / name, "transformer", pipeline.transformer, jax.device_get(params))
    cost = {"seconds": training_seconds(workdir / "metrics.jsonl"), "peak_memory_gib": peak_memory_gib()}
    (workdir / "training.json").write_text(json.dumps(cost) + "\n")
    return state


def scene_record(ground: ProvingGround, index: int, task: str) -> dict[str, Any]:
    """What an update needs of a scene, as arrays that can be stacked."""
    sample = ground.scene(index, task).sample
    return {"image": sample.image, "mask": sample.mask, "prompt": np.str_(sample.prompt), "task": np.str_(task)}


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
