"""Reward feedback learning: a fill model and a judge in, an improved policy and its EMA out."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from onereward_jax import buckets
from onereward_jax.atomic_files import write_json
from onereward_jax.config.schema import RewardFeedback, RewardLearning
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import HeldOut, Requests, Targets, read_split, read_targets
from onereward_jax.data.source import ENDLESS, Source
from onereward_jax.errors import Alarmed, UserError
from onereward_jax.evaluation.alarms import AlarmWatch
from onereward_jax.evaluation.during_training import ComparisonWithBase
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow.conditioning import TextStates, latent_shape
from onereward_jax.flow.family import PolicyFamily
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.ensemble import ensemble
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.judge.scorer import Scorer
from onereward_jax.models.lora import attach
from onereward_jax.parallel import hosts
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.proving_ground.source import open_source
from onereward_jax.rl.batch import Batch, MatchingTargets
from onereward_jax.rl.build_update import adapters_of, attention_of, computation, frozen_dtype, make_update
from onereward_jax.rl.gradient_cosines import GradientCosines
from onereward_jax.rl.reference_cache import open_cache
from onereward_jax.rl.reference_refresh import refreshed, verdict
from onereward_jax.runs.request_report import report_requests, report_targets
from onereward_jax.tasks import NEGATIVE_PROMPT, dimensions_of
from onereward_jax.training import trainer
from onereward_jax.training.compile import Params
from onereward_jax.training.metrics import peak_memory_gib, training_seconds
from onereward_jax.training.state import TrainState
from onereward_jax.training.trainer import Evaluator, Experiment, Learning
from onereward_jax.weights.load import StoredParams, in_dtype
from onereward_jax.weights.peft_adapters import save_adapter
from onereward_jax.weights.save import save_component

MATCHING = "matching_"  # before the names of what flow matching learns in the place of the requests' targets


def train(
    config: RewardFeedback, workdir: Path, source: Source | None = None, held_out: Source | None = None
) -> TrainState:
    """Run Algorithm 1 (`config.algorithm` "fixed"), 2 ("dynamic") or "earned" in `workdir`, or resume it there.

    Exports the transformers of policy and EMA, in diffusers layout, to workdir/export/policy and workdir/export/ema
    (with "earned" that of the reference to workdir/export/reference, too); with `config.lora.rank`, their adapters.
    Writes workdir/training.json, what the run cost.

    Args:
      source: of the requests; by default the configured one.
      held_out: source of what the policy is measured on while it is trained; by default the configured one, or none
        if a `source` is given.

    Raises:
      FileNotFoundError, UserError: a model is missing or does not fit.
      Alarmed: `train.stop_on_alarm` has ended the run, and its last good state is exported.
    """
    trainer.check_devices(config)
    # Of processes that were killed, their steps; of this one, loading, compiling and exporting too.
    seconds_before, started = training_seconds(workdir / "metrics.jsonl"), time.perf_counter()
    if source is None:
        source, of_config = open_sources(config, workdir)
        held_out = of_config if held_out is None else held_out
    experiment = reward_feedback(config, workdir, source, held_out)
    state = trainer.train(experiment, config, workdir)
    stop = None if experiment.watch is None else experiment.watch.stop
    if hosts.is_primary():
        done = int(state.step) if stop is None else stop.at  # the result of a run that ended early has fewer steps
        _write_cost(workdir / "training.json", done, seconds_before + time.perf_counter() - started)
    if stop is not None:
        says = f"{stop}, exported to {buckets.native(workdir / 'export')}"
        if stop.is_alarm:
            raise Alarmed(f"{says}; with train.stop_on_alarm=false the same command goes on from step {stop.at}")
        if hosts.is_primary():
            print(says, file=sys.stderr)
    return state


def reward_feedback(config: RewardFeedback, workdir: Path, source: Source, held_out: Source | None) -> Experiment:
    """The policy of `config.model.base`, improved by the judge of `config.model.judge` on requests of a source."""
    if held_out is None:
        _check_needs_none_held_out(config)
    # ------------------------------------------------------------------------------------------------------- the models
    # What is frozen is read straight into its place on the mesh; what is trained, only by a run that begins.
    mesh, dtype, adapters = trainer.check_devices(config), frozen_dtype(config), adapters_of(config)
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype=dtype, read=False)
    for size in source.sizes:
        latent_shape(pipeline.vae, *size)  # refuses what doesn't divide
    if config.rl.reference_max_age and source.sizes != ((config.data.resolution,) * 2,):
        raise UserError(
            "rl.reference_max_age keeps reference images of one size, but the requests have several: set"
            " data.max_aspect to 1, or rl.reference_max_age to 0"
        )
    stored, pipeline.mesh = pipeline.params.pop("transformer"), mesh
    pipeline.params["vae"] = hosts.place(pipeline.params["vae"], shardings(pipeline.params["vae"], mesh))
    targets = None
    if config.data.targets and config.rl.flow_matching_weight > 0:
        assert isinstance(source, Requests), "data.targets come beside requests of one's own"
        learned = read_targets(config, workdir)
        hosts.on_primary(lambda: report_targets(workdir, learned))
        targets = Targets(source, learned)
    texts = _texts(*(of for of in (source, held_out, targets) if of is not None))
    if texts is None:
        pipeline.prompts.read()
    else:
        pipeline.prompts.encode_ahead(texts, config.max_sequence_length, workdir / "prompts", mesh)
    fields = computation(config)
    judge = Judge.from_pretrained(config.model.judge, dtype, fields=fields, mesh=mesh)
    judge = ensemble(judge, config.model.judge_adapters, config.rl.max_disagreement)
    for of in (source, held_out):
        if isinstance(of, Requests | HeldOut):
            _check_questions(judge, of.requests, config.question_length)
    transformer, vae = pipeline.transformer.clone(**fields, **attention_of(config)), pipeline.vae.clone(**fields)
    family = FluxFill(transformer, vae, pipeline.shift)

    # ------------------------------------------------------------------------------------------------------- the update
    learning = policy_learning(config, family, judge.scorer, stored, pipeline.params["vae"], judge.params, mesh)
    frozen = learning.frozen.read()
    wrap_step = open_cache(config, source).around if config.rl.reference_cache else lambda step: step

    # ----------------------------------------------------------------------------------------------------- its examples
    names = sample_fields(config)
    weighted = config.rl.flow_matching_weight > 0 and targets is None and source.target_share < 1
    if weighted and not source.target_share:
        raise UserError(
            "rl.flow_matching_weight is set, but no request has a target to learn: give some a target, name images to"
            " learn in data.targets, or set it to 0"
        )

    def example(index: int, task: str) -> dict[str, np.ndarray]:
        sample = source.sample(index, task)
        if targets is not None:
            learned = targets.sample(index).arrays("image", "mask", "prompt", "target")
            return sample.arrays(*names) | {f"{MATCHING}{name}": value for name, value in learned.items()}
        if not weighted:
            return sample.arrays(*names)
        target = sample.image if sample.target is None else sample.target
        weight = {"target_weight": np.float32(sample.target is not None)}
        return dataclasses.replace(sample, target=target).arrays(*names) | weight

    def prepare(batch: dict[str, np.ndarray]) -> Batch:
        return encode_text(batch, pipeline, judge, config.max_sequence_length, config.question_length, config.rl)

    # -------------------------------------------------------------------------------------------- evaluation and export
    evaluators = []
    if held_out is not None and config.evaluation.every:
        read_base = lambda: frozen.base if adapters.rank else stored.read(dtype, mesh)
        other = None
        if config.evaluation.other_judge:
            other = Judge.from_pretrained(config.evaluation.other_judge, dtype, fields=fields, read=False)
        comparison = ComparisonWithBase(config, pipeline, judge, held_out, read_base, workdir, other)

        def measure(state: TrainState) -> dict[str, float]:
            policy = attach(frozen.base, state.params, adapters.scale) if adapters.rank else state.params
            found, step = comparison.measure(policy, int(state.step)), int(state.step)
            # The evaluation after the last update changes nothing: a run that is made longer goes on as if it had been.
            earns = config.algorithm == "earned" and step % config.evaluation.every == 0
            return found | (verdict(state, found, config.rl.refresh_margin) if earns else {})

        evaluators.append(Evaluator(config.evaluation.every, measure))
        if config.alarms.gradient_cosines:
            gradient = make_update(config, family, judge.scorer).reward_gradient
            compared = GradientCosines(gradient, frozen, mesh, config.evaluation.every, config.train.num_steps)
            evaluators.append(Evaluator(config.evaluation.every, compared.measure))
            kept_references = wrap_step
            wrap_step = lambda step: compared.around(kept_references(step))

    def export(state: TrainState) -> None:
        reference = (("reference", state.reference),) if config.algorithm == "earned" else ()
        for name, trained in (("policy", state.params), ("ema", state.ema), *reference):
            directory = workdir / "export" / name
            if adapters.rank:
                save_adapter(directory, "transformer", trained, adapters.scale)
            else:
                save_component(directory, "transformer", pipeline.transformer, trained, stored.dtype)

    return Experiment(
        description=f"reward feedback learning ({config.algorithm})",
        step=learning.step,
        create=learning.create,
        params=learning.params,
        frozen=frozen,
        example=example,
        prepare=prepare,
        task_weights={task: weight for task, weight in config.data.task_weights.items() if task in source.tasks},
        num_conditions=_num_conditions(config, source),
        repeats=1 + config.rl.reference_max_age,
        together=len(source.sizes) > 1,
        wrap_step=wrap_step,
        evaluators=tuple(evaluators),
        watch=AlarmWatch(config.alarms, config.train, workdir, config.evaluation.every) if evaluators else None,
        after_evaluation=refreshed,
        export=export,
    )


def policy_learning(
    config: RewardFeedback,
    family: PolicyFamily,
    scorer: Scorer,
    transformer: StoredParams,
    vae: Any,
    judge: Any,
    mesh: Mesh | None,
) -> Learning:
    """What is trained of a policy, and the update.

    Args:
      family, scorer: see `rl.build_update.make_update`.
      transformer: its parameters at the start; vae, judge: those of autoencoder and judge, there.
    """
    update, dtype, adapters = make_update(config, family, scorer), frozen_dtype(config), adapters_of(config)
    base = in_dtype(transformer.shapes, dtype) if adapters.rank else None
    read_base = lambda: transformer.read(dtype, mesh) if adapters.rank else None
    if adapters.rank:
        trained = Params.made(lambda: update.params(transformer.shapes))
    else:
        trained = Params(transformer.shapes, lambda: transformer.read("float32", mesh))
    return Learning(
        step=update.step,
        create=update.create,
        params=trained,
        frozen=Params(jax.eval_shape(update.frozen, base, vae, judge), lambda: update.frozen(read_base(), vae, judge)),
    )


def open_sources(config: RewardFeedback, workdir: Path | None = None) -> tuple[Source, Source | None]:
    """The configured sources: to train on, and of what is held out, if anything is.

    Flow matching holds the policy to the data of its base model, synthetic defects included: it teaches nothing new.

    Args:
      workdir: of the run, which keeps what its requests are, and refuses to resume with others.
    """
    if not config.data.source:
        flaws = config.data.synthetic_defects if config.rl.flow_matching_weight > 0 else 0.0
        return open_source(config, "train", flaws), open_source(config, "test")
    trained_on, held_out = read_split(config, workdir)
    source = Requests(config, trained_on)
    if workdir is not None:
        hosts.on_primary(lambda: report_requests(workdir, source, held_out))
    return source, HeldOut(source, held_out) if held_out else None


def open_requests(config: RewardFeedback) -> Source:
    """The configured source to train on."""
    return open_sources(config)[0]


def _check_needs_none_held_out(config: RewardFeedback) -> None:
    """
    Raises:
      UserError: the run goes by what is measured on held-out requests.
    """
    if config.algorithm == "earned":
        raise UserError('the algorithm "earned" asks about held-out requests, but nothing is held out: hold some out')
    for name in ("stop_on_alarm", "stop_without_gain"):
        if config.train[name]:
            raise UserError(f"train.{name} goes by held-out requests, but nothing is held out: hold some out")


def _check_questions(judge: Judge, requests: Sequence[Request], length: int) -> None:
    """Check that the judge can read every question, which would else show when it is asked.

    Raises:
      UserError: it can't.
    """
    for request in requests:
        for task in request.tasks:
            prompt = request.text(task)
            asked = [judge.question(task, dimension, prompt) for dimension in dimensions_of(task, prompt)]
            try:
                judge.check_questions(asked, length)
            except UserError as error:
                raise UserError(f"{request.where}: {error}") from None


def _texts(*sources: Source | Targets) -> list[str] | None:
    """All texts to be encoded, if they are known."""
    texts = [NEGATIVE_PROMPT]
    for source in sources:
        if source.prompts is None:
            return None
        texts += [*source.prompts, *(source.negative_prompts if not isinstance(source, Targets) else ())]
    return texts


def sample_fields(config: RewardFeedback) -> tuple[str, ...]:
    """What an update needs of a sample: the target for flow matching alone, the negative prompt for true guidance."""
    negative = ("negative_prompt",) if config.rl.true_guidance else ()
    target = ("target",) if config.rl.flow_matching_weight > 0 and not config.data.targets else ()
    return ("image", "mask", "prompt", "task", *negative, *target)


def _num_conditions(config: RewardFeedback, source: Source) -> int:
    """Of how many samples the run has epochs; 0: every sample is new."""
    wanted: int = config.data.num_conditions
    return wanted if len(source) >= ENDLESS else min(wanted or len(source), len(source))


def _write_cost(path: Path, step: int, seconds: float) -> None:
    """What the run cost so far, over all its processes; a process that had nothing left to do adds nothing."""
    earlier = json.loads(path.read_text()) if path.exists() else {"step": -1, "peak_memory_gib": 0.0}
    if earlier["step"] != step:
        peak = max(earlier["peak_memory_gib"], peak_memory_gib())
        write_json(path, {"step": step, "seconds": seconds, "peak_memory_gib": peak})


def encode_text(
    batch: dict[str, np.ndarray],
    pipeline: FillPipeline,
    judge: Judge,
    max_sequence_length: int,
    question_length: int,
    config: RewardLearning,
) -> Batch:
    """Replaces a batch's prompts and tasks by embeddings and by the judge's questions, for `rl.step`."""
    prompts, tasks = [str(p) for p in batch["prompt"]], [str(t) for t in batch["task"]]
    float32 = lambda states: jnp.asarray(states, jnp.float32)
    encode = lambda texts: TextStates(*map(float32, pipeline.prompts.encode(texts, max_sequence_length)))
    texts = ("prompt", "task", "negative_prompt")
    arrays: dict[str, Any] = {
        name: value for name, value in batch.items() if name not in texts and not name.startswith(MATCHING)
    }
    learned = {name.removeprefix(MATCHING): value for name, value in batch.items() if name.startswith(MATCHING)}
    if learned:
        text = encode([str(prompt) for prompt in learned.pop("prompt")])
        arrays["matching"] = MatchingTargets(**learned, text=text)
    return Batch(
        **arrays,
        text=encode(prompts),
        negative=encode([str(p) for p in batch["negative_prompt"]]) if config.true_guidance else None,
        questions=question_batch(judge, tasks, prompts, question_length),
    )
