"""A training run, the same for every model: mesh, compiled step, task mixture, loop."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from onereward_jax.config.schema import Recipe, RewardFeedback
from onereward_jax.data import mixture
from onereward_jax.errors import UserError
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding, can_share
from onereward_jax.parallel.mesh import batch_shards, make_mesh
from onereward_jax.training import loop
from onereward_jax.training.compile import Placement, compile_step
from onereward_jax.training.state import TrainState

Batch = dict[str, Any]
Step = Callable[[TrainState, Any], tuple[TrainState, Any]]
# Whole numbers of a sample, for random keys.
_NUMBERS = ("index", "condition", "age")


def train(
    config: Recipe,
    workdir: Path,
    *,
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Any]],
    create: Callable[[Any], TrainState],
    params: Any,
    record: Callable[[int, str], dict[str, np.ndarray]],
    description: str,
    frozen: Any = None,
    prepare: Callable[[Batch], Any] = lambda batch: batch,
    task_weights: Mapping[str, float] | None = None,
    num_conditions: int = 0,
    repeats: int = 1,
    around: Callable[[Step], Step] = lambda step: step,
    **options: Any,
) -> TrainState:
    """Trains in `workdir`, or goes on there; see `training.loop.run`.

    Args:
      config: its `mesh`, `seed`, `data.task_weights`, `data.loader_threads`, `data.loader_timeout` and
        `train`.
      step: pure (state, frozen, batch) -> (state, metrics).
      create: pure, parameters -> the state before the first update.
      params: parameters to start from.
      record: (global sample index, task) -> arrays of one sample.
      description: word before the progress bar.
      frozen: parameters that the step reads and never changes.
      prepare: a batch of records and their `index` -> the arrays that the step takes; of several processes, each
        prepares the rows that its devices hold.
      task_weights: of the tasks, if not `config.data.task_weights`.
      num_conditions, repeats: records that come again, see `data.mixture.mixture`.
      around: (state, batch) -> (state, metrics) as it was compiled -> as the loop calls it.
      options: `progress`, `optional`, `evaluate` and `evaluate_every` of `training.loop.run`.

    Returns:
      The state at `config.train.num_steps`.

    Raises:
      UserError: the batch can't be shared by the devices; and what `training.loop.run` raises.
    """
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    frozen = {} if frozen is None else frozen
    compiled, state, frozen = compile_step(step, create, params, frozen, mesh, Placement.of(config))
    size = config.train.batch_size
    sharding = batch_sharding(mesh, size)
    batches = mixture.mixture(
        dict(config.data.task_weights if task_weights is None else task_weights),
        record,
        seed=config.seed,
        batch_size=size,
        rows=hosts.rows_of(sharding, size),
        num_threads=config.data.loader_threads,
        num_conditions=num_conditions,
        repeats=repeats,
    )

    def place(batch: Batch) -> Batch:
        numbers = {name: batch[name].astype(np.int32) for name in _NUMBERS if name in batch}
        return hosts.place_rows(prepare(batch | numbers), sharding, size)

    launch = hosts.launch_together(compiled)
    return loop.run(
        step=around(lambda state, batch: launch(state, frozen, batch)),
        state=state,
        batches=iter(batches),
        prepare=place,
        num_steps=config.train.num_steps,
        workdir=workdir,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        log_every=config.train.log_every,
        max_skipped=config.train.max_skipped,
        data_timeout=config.data.loader_timeout,
        description=description,
        **options,
    )


def check_batch(config: Recipe, mesh: Mesh) -> None:
    """That the devices can share a batch: each has as many of its samples; or, in reward feedback learning, with fewer
    samples than devices, each sample has as many devices, which split its tokens.

    Raises:
      UserError: they can't.
    """
    rl = config.rl if isinstance(config, RewardFeedback) else None
    shards, parts = batch_shards(mesh), rl.accumulate if rl else 1
    samples, rest = divmod(config.train.batch_size, parts)
    if rest or not can_share(mesh, samples, splits_tokens=rl is not None):
        of_parts = f" in each of {parts} micro-batches (rl.accumulate)" if parts > 1 else ""
        raise UserError(
            f"a batch of {config.train.batch_size} can't be shared by {shards} devices{of_parts}: make"
            f" train.batch_size a multiple of {shards * parts}, or change mesh.data and mesh.fsdp"
        )
