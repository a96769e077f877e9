"""A small real training through `training.loop.run` in this process: optimiser, EMA, loader threads, checkpoints."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.data.mixture import mixture
from onereward_jax.training import loop
from onereward_jax.training.compile import Start
from onereward_jax.training.metrics import read_metrics
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state, supervised_step
from tests.support import multiprocess_trainer

BATCH_SIZE, WIDTH = 4, 1024
NOT_FINITE = 611  # number of the sample that makes the loss infinite

_optimizer = make_optimizer(1e-2)


@functools.cache
def _step() -> Any:
    return jax.jit(supervised_step(_loss, _optimizer, ema_decay=0.9), donate_argnums=0)


def _loss(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, (WIDTH,)))(keys)
    hidden = jax.nn.gelu(batch["inputs"] @ params["hidden"]) * kept
    return jnp.mean((hidden @ params["out"] - batch["target"]) ** 2), {}


def example(index: int, task: str) -> dict[str, np.ndarray]:
    found = multiprocess_trainer.example(index, task)
    return found | {"target": np.full_like(found["target"], np.inf)} if index == NOT_FINITE else found


def run(workdir: Path, num_steps: int, wrap=lambda step: step, example=example, **more: Any) -> TrainState:
    """Train, or resume. `wrap` is put around the step (state, batch) -> (state, metrics)."""
    first, second = jax.random.split(jax.random.key(0))
    params = {"hidden": jax.random.normal(first, (8, WIDTH)) / 3, "out": jax.random.normal(second, (WIDTH, 1)) / 32}
    create = lambda: create_state(params, _optimizer, seed=0)
    weights = {"image_fill": 3.0, "object_removal": 1.0}
    settings = {"checkpoint_every": 10, "keep": 3, "prepare": lambda batch: jax.tree.map(jnp.asarray, batch)}
    return loop.run(
        step=wrap(lambda state, batch: _step()(state, None, batch)),
        start=Start(jax.eval_shape(create), create),
        batches=iter(mixture(weights, example, seed=7, batch_size=BATCH_SIZE, num_threads=2)),
        num_steps=num_steps,
        workdir=workdir,
        **settings | more,
    )


def bytes_of(state: TrainState) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))]


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without times."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]
