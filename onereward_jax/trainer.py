"""A training run, the same for every model: mesh, compiled step, task mixture, loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from onereward_jax import loop
from onereward_jax.data import mixture
from onereward_jax.mesh import batch_sharding, make_mesh
from onereward_jax.train_state import TrainState, compile_step

Batch = dict[str, Any]


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]],
    new_state: Callable[[], TrainState],
    record: Callable[[int, str], dict[str, np.ndarray]],
    description: str,
    frozen: Any = None,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
    **shown: Any,
) -> TrainState:
    """Trains in `workdir`, or goes on there; see `loop.run`.

    Args:
      config: its `mesh`, `seed`, `data.task_weights`, `data.loader_threads` and `train`.
      step: pure (state, frozen, batch) -> (state, metrics).
      new_state: the state before the first update.
      record: (global sample index, task) -> arrays of one sample.
      description: word before the progress bar.
      frozen: parameters that the step reads and never changes.
      prepare: a batch of records and their `index` -> the arrays that the step takes.
      shown: `progress` and `optional` of `loop.run`.

    Returns:
      The state at `config.train.num_steps`.
    """
    mesh = make_mesh(**config.mesh)
    compiled, state, frozen = compile_step(step, new_state, {} if frozen is None else frozen, mesh)
    batches = mixture.mixture(
        dict(config.data.task_weights),
        record,
        seed=config.seed,
        batch_size=config.train.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.loader_threads,
    )

    def place(batch: Batch) -> Batch:
        arrays = prepare(batch)
        return jax.device_put(arrays | {"index": batch["index"].astype(np.int32)}, batch_sharding(mesh))

    return loop.run(
        step=lambda state, batch: compiled(state, frozen, batch),
        state=state,
        batches=iter(batches),
        prepare=place,
        num_steps=config.train.num_steps,
        workdir=workdir,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep_checkpoints,
        log_every=config.train.log_every,
        description=description,
        **shown,
    )
