"""The reward feedback learning run: configuration in, improved policy and its EMA out."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from onereward_jax.atomic_files import write_json
from onereward_jax.fill.pipeline import FillPipeline, latent_shape
from onereward_jax.judge.batches import question_batch
from onereward_jax.judge.ensemble import ensemble
from onereward_jax.judge.judge import Judge
from onereward_jax.models.lora import attach
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.rl.build import adapters_of, attention_of, computation, frozen_dtype, make_update
from onereward_jax.rl.reference_cache import open_pool
from onereward_jax.rl.step import StepConfig
from onereward_jax.tasks import NEGATIVE_PROMPT
from onereward_jax.training import trainer
from onereward_jax.training.metrics import peak_memory_gib, training_seconds
from onereward_jax.training.state import TrainState
from onereward_jax.weights.adapters import save_adapter
from onereward_jax.weights.save import save_component

# A pipeline -> (parameters of its transformer -> {name: number})
Watch = Callable[[FillPipeline], Callable[[Any], dict[str, float]]]


def train(config: ConfigDict, workdir: Path, watch: Watch | None = None) -> TrainState:
    """Runs Algorithm 1 (`config.algorithm` = "fixed") or 2 ("dynamic") in `workdir`, or goes on with it.

    The configuration is one that `config.validation.validate` has passed. Exports the transformers of policy and EMA,
    in diffusers layout, to workdir/export/policy and workdir/export/ema; with `config.lora.rank`, their adapters.

    Args:
      watch: measures the policy every `config.evaluation.every` updates, for the metrics; nothing else depends on it.

    Raises:
      FileNotFoundError, ValueError: a model is missing or does not fit.
    """
    step_config = StepConfig(**config.rl)
    # Of processes that were killed, their steps; of this one, loading, compiling and exporting too.
    seconds_before, started = training_seconds(workdir / "metrics.jsonl"), time.perf_counter()
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    latent_shape(pipeline.vae, config.data.resolution, config.data.resolution)  # refuses what doesn't divide
    fields = computation(config)
    judge = Judge.from_pretrained(config.model.judge, frozen_dtype(config), fields=fields)
    judge = ensemble(judge, config.model.get("judge_adapters", ()))
    transformer, vae = pipeline.transformer.clone(**fields, **attention_of(config)), pipeline.vae.clone(**fields)
    adapters = adapters_of(config)
    update = make_update(config, transformer, vae, judge.apply, pipeline.shift)
    params, frozen = update.start(pipeline.params["transformer"], pipeline.params["vae"], judge.params)

    options: dict[str, Any] = {}
    if watch is not None and config.evaluation.every:
        measure = watch(pipeline)
        of_policy = lambda adapter: attach(pipeline.params["transformer"], adapter, adapters.scale)  # noqa: E731
        options = {
            "evaluate": lambda state: measure(of_policy(state.params) if adapters.rank else state.params),
            "evaluate_every": config.evaluation.every,
        }
    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)

    if step_config.reference_pool:
        options["around"] = open_pool(config, ground).around

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return encode_text(batch, pipeline, judge, config.max_sequence_length, config.question_length, step_config)

    state = trainer.train(
        config,
        workdir,
        step=update.step,
        create=update.create,
        params=params,
        frozen=frozen,
        record=lambda index, task: scene_record(config, ground, index, task),
        prepare=prepare,
        description=f"reward feedback learning ({config.algorithm})",
        num_conditions=config.data.get("num_conditions", 0),
        repeats=1 + step_config.reference_max_age,
        **options,
    )
    for name, params in (("policy", state.params), ("ema", state.ema)):
        directory, params = workdir / "export" / name, hosts.fetch(params)
        if not hosts.is_primary():
            continue
        if adapters.rank:
            save_adapter(directory, "transformer", params, adapters.scale)
        else:
            save_component(directory, "transformer", pipeline.transformer, params)
    if hosts.is_primary():
        _write_cost(workdir / "training.json", int(state.step), seconds_before + time.perf_counter() - started)
    return state


def _write_cost(path: Path, step: int, seconds: float) -> None:
    """What the run cost so far, over all its processes; a process that had nothing left to do adds nothing."""
    earlier = json.loads(path.read_text()) if path.exists() else {"step": -1, "peak_memory_gib": 0.0}
    if earlier["step"] != step:
        peak = max(earlier["peak_memory_gib"], peak_memory_gib())
        write_json(path, {"step": step, "seconds": seconds, "peak_memory_gib": peak})


def scene_record(config: ConfigDict, ground: ProvingGround, index: int, task: str) -> dict[str, Any]:
    """What an update needs of a scene, as arrays that can be stacked.

    Flow-matching regularisation adds its `target`, flawed in a share `config.data.target_flaws` of the scenes as the
    base model's training data is: it holds the policy to that data and teaches it nothing new.
    """
    matched = config.rl.flow_matching_weight > 0
    scene = ground.scene(index, task, config.data.target_flaws if matched else 0.0)
    sample = scene.sample
    record = {"image": sample.image, "mask": sample.mask, "prompt": np.str_(sample.prompt), "task": np.str_(task)}
    return record | {"target": scene.target} if matched else record


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
    arrays["prompt_embeds"], arrays["pooled"] = pipeline.prompts.encode(prompts, max_sequence_length)
    if config.true_guidance:
        negative = pipeline.prompts.encode([NEGATIVE_PROMPT] * len(prompts), max_sequence_length)
        arrays["negative_prompt_embeds"], arrays["negative_pooled"] = negative
    return arrays | question_batch(judge, tasks, prompts, question_length)
