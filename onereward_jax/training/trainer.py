"""What is trained, and the one trainer of it: mesh, compiled step, task mixture, loop, export.

A recipe in `runs/` builds an `Experiment`; `train` runs it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from onereward_jax.config.schema import Recipe, RewardFeedback
from onereward_jax.data import mixture
from onereward_jax.errors import UserError
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding, can_share
from onereward_jax.parallel.mesh import batch_shards, make_mesh
from onereward_jax.training import loop
from onereward_jax.training.compile import Params, Placement, compile_step
from onereward_jax.training.early_stop import Watch
from onereward_jax.training.state import TrainState

Batch = dict[str, Any]
Step = Callable[[TrainState, Any], tuple[TrainState, Any]]
# Whole numbers of a sample, for random keys.
_NUMBERS = ("index", "condition", "age")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures the state every so many updates, and after the last.

    Attributes:
      every: updates between two evaluations, 1 or more.
      measure: state -> {name: number}, joined to the metrics of its update.
    """

    every: int
    measure: Callable[[TrainState], Mapping[str, float]]


class Learning(NamedTuple):
    """What a run computes, before any parameter is read: `onereward plan` compiles it, a recipe makes an `Experiment`
    of it.

    Attributes:
      step, create, params: see `Experiment`.
      frozen: parameters that the step reads and never changes, unread.
    """

    step: Callable[[TrainState, Any, Any], tuple[TrainState, Any]]
    create: Callable[[Any], TrainState]
    params: Params
    frozen: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained, on what, and what becomes of it.

    Attributes:
      description: word before the progress bar.
      step: pure (state, frozen, batch) -> (state, metrics).
      create: pure, parameters -> the state before the first update.
      params: parameters to start from; a resumed run does not read them.
      frozen: parameters that the step reads and never changes.
      example: (global index, task) -> arrays of one sample, see `data.mixture.mixture`.
      prepare: a batch of examples and their numbers -> what the step takes; in multi-process runs, each process
        prepares the rows that its devices hold.
      task_weights: of the mixture.
      num_conditions, repeats, together: examples that come again, see `data.mixture.mixture`.
      wrap_step: (state, batch) -> (state, metrics) as it was compiled -> as the loop calls it.
      evaluators: what is measured while it trains.
      watch: ends the run by what they measure.
      after_evaluation: what was measured may change the state, see `training.loop.run`.
      export: writes what was trained, from the last state; every process calls it.
      progress: {word: metric} shown beside the bar.
      optional: prefixes of metrics that are NaN where a batch has no sample of their kind.
    """

    description: str
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Any]]
    create: Callable[[Any], TrainState]
    params: Params
    frozen: Any = dataclasses.field(default_factory=dict)
    example: Callable[[int, str], mixture.Example]
    prepare: Callable[[Batch], Any] = lambda batch: batch
    task_weights: Mapping[str, float]
    num_conditions: int = 0
    repeats: int = 1
    together: bool = False
    wrap_step: Callable[[Step], Step] = lambda step: step
    evaluators: tuple[Evaluator, ...] = ()
    watch: Watch | None = None
    after_evaluation: Callable[[TrainState, Mapping[str, float]], TrainState] = lambda state, found: state
    export: Callable[[TrainState], None] = lambda state: None
    progress: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(loop.PROGRESS))
    optional: tuple[str, ...] = ("rewards/",)


def train(experiment: Experiment, config: Recipe, workdir: Path) -> TrainState:
    """Run an experiment in `workdir`, or resume it there, and export what it trained; see `training.loop.run`.

    Args:
      config: its `mesh`, `seed`, `data.loader_threads`, `data.loader_timeout` and `train`.

    Returns:
      The state at `config.train.num_steps`, or that of `experiment.watch.stop`.

    Raises:
      UserError: the batch can't be shared by the devices; and what `training.loop.run` raises.
    """
    mesh, size = check_devices(config), config.train.batch_size
    compiled, start, frozen = compile_step(
        experiment.step, experiment.create, experiment.params, experiment.frozen, mesh, Placement.of(config)
    )
    sharding = batch_sharding(mesh, size)
    batches = mixture.mixture(
        dict(experiment.task_weights),
        experiment.example,
        seed=config.seed,
        batch_size=size,
        rows=hosts.rows_of(sharding, size),
        num_threads=config.data.loader_threads,
        num_conditions=experiment.num_conditions,
        repeats=experiment.repeats,
        together=experiment.together,
    )

    def place(batch: Batch) -> Any:
        numbers = {name: batch[name].astype(np.int32) for name in _NUMBERS if name in batch}
        return hosts.place_rows(experiment.prepare(batch | numbers), sharding, size)

    launch = hosts.launch_together(compiled)
    evaluate, evaluate_every = combined(experiment.evaluators, config.train.num_steps)
    state = loop.run(
        step=experiment.wrap_step(lambda state, batch: launch(state, frozen, batch)),
        start=start,
        batches=iter(batches),
        prepare=place,
        num_steps=config.train.num_steps,
        workdir=workdir,
        checkpoint_every=config.train.checkpoint_every,
        checkpoint_minutes=config.train.checkpoint_minutes,
        keep=config.train.keep_checkpoints,
        log_every=config.train.log_every,
        max_skipped=config.train.max_skipped,
        data_timeout=config.data.loader_timeout,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        watch=experiment.watch,
        after_evaluation=experiment.after_evaluation,
        description=experiment.description,
        progress=experiment.progress,
        optional=experiment.optional,
    )
    experiment.export(state)
    return state


def combined(
    evaluators: tuple[Evaluator, ...], num_steps: int
) -> tuple[Callable[[TrainState], dict[str, float]] | None, int]:
    """All evaluators as the loop takes them: one function, and after how many updates it is called."""
    if not evaluators:
        return None, 0

    def evaluate(state: TrainState) -> dict[str, float]:
        step = int(state.step)
        found: dict[str, float] = {}
        for evaluator in evaluators:
            if step % evaluator.every == 0 or step == num_steps:
                found |= evaluator.measure(state)
        return found

    return evaluate, math.gcd(*(evaluator.every for evaluator in evaluators))


def check_devices(config: Recipe) -> Mesh:
    """The mesh of a configuration; recipes ask for it before they load a model, since it may be refused.

    Raises:
      UserError: the devices make no such mesh, or can't share the batch.
    """
    mesh = mesh_of(config)
    check_batch(config, mesh)
    return mesh


def mesh_of(config: Recipe, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a configuration over these devices, or over all that are here.

    Raises:
      UserError: see `make_mesh`.
    """
    return make_mesh(**config.mesh, devices=devices, samples=config.train.batch_size // micro_batches(config))


def micro_batches(config: Recipe) -> int:
    """Into how many parts an update cuts its batch."""
    return config.rl.accumulate if isinstance(config, RewardFeedback) else 1


def check_batch(config: Recipe, mesh: Mesh) -> None:
    """That the devices can share a batch: each has as many of its samples; or, in reward feedback learning, with fewer
    samples than devices, each sample has as many devices, which split its tokens.

    Raises:
      UserError: they can't.
    """
    shards, parts = batch_shards(mesh), micro_batches(config)
    samples, rest = divmod(config.train.batch_size, parts)
    if rest or not can_share(mesh, samples, splits_tokens=isinstance(config, RewardFeedback)):
        of_parts = f" in each of {parts} micro-batches (rl.accumulate)" if parts > 1 else ""
        raise UserError(
            f"a batch of {config.train.batch_size} can't be shared by {shards} devices{of_parts}: make"
            f" train.batch_size a multiple of {shards * parts}, or change mesh.data and mesh.fsdp"
        )
