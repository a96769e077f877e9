"""A small real training run in a process of its own, which can kill itself at a chosen moment.

python tests/support/killed_trainer.py WORKDIR [MOMENT]
"""

import os
import signal
import sys
from pathlib import Path

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from onereward_jax.data.mixture import mixture
from onereward_jax.errors import Interrupted
from onereward_jax.training import checkpoint, loop, manifest, metrics
from onereward_jax.training.compile import Start

NUM_STEPS = 24
TASKS = {"image_fill": 3.0, "object_removal": 1.0}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def optimizer() -> optax.GradientTransformation:
    return optax.adamw(1e-2)


def initial_state() -> State:
    first, second, root = jax.random.split(jax.random.key(0), 3)
    params = {"hidden": jax.random.normal(first, (8, 64)) / 3, "out": jax.random.normal(second, (64, 1)) / 8}
    return State(jnp.zeros((), jnp.int32), params, optimizer().init(params), root)


def make_step(moment: str):
    def loss_of(params, batch, key):
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, (64,)))(keys)
        hidden = jax.nn.gelu(batch["inputs"] @ params["hidden"]) * kept
        return jnp.mean((hidden @ params["out"] - batch["target"]) ** 2)

    def step(state, batch):
        if moment == "compile":
            die()
        loss, gradient = jax.value_and_grad(loss_of)(state.params, batch, state.key)
        updates, opt_state = optimizer().update(gradient, state.opt_state, state.params)
        new = state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        return new, {"learning/loss": loss, "learning/grad_norm": optax.global_norm(gradient)}

    return jax.jit(step, donate_argnums=0)


def make_example(index: int, task: str) -> dict:
    generator = np.random.default_rng(index)
    inputs = generator.standard_normal(8).astype(np.float32)
    inputs[0] = 1.0 if task == "image_fill" else -1.0
    return {"inputs": inputs, "target": np.sign(inputs.sum(keepdims=True))}


def arm(moment: str, step):
    """Puts the kill where the moment says; returns the step function."""

    def at_step(number: int, signal_number: int):
        def wrapped(state, batch):
            if int(state.step) == number:
                os.kill(os.getpid(), signal_number)
            return step(state, batch)

        return wrapped

    if moment.startswith("step "):
        return at_step(int(moment.split()[1]), signal.SIGKILL)
    if moment.startswith("SIGTERM "):
        return at_step(int(moment.split()[1]), signal.SIGTERM)

    if moment == "while Orbax writes":
        original = checkpoint.ocp.save_checkpointables_async
        checkpoint.ocp.save_checkpointables_async = lambda *args, **kwargs: (original(*args, **kwargs), die())
    write_manifest = manifest.write
    if moment == "before the manifest":
        manifest.write = lambda *_: die()
    if moment == "after the manifest":
        manifest.write = lambda *args: (write_manifest(*args), die())
    if moment == "while deleting":
        remove = checkpoint._remove
        checkpoint._remove = lambda path: (
            ((path / "_CHECKPOINT_METADATA").unlink(), die()) if path.is_dir() else remove(path)
        )
    if moment == "in a line of metrics":
        write = metrics.MetricsWriter.write

        def torn(self, number, values):
            if number == 3:
                os.write(self._file, b'{"step": 3, "learning/lo')
                die()
            write(self, number, values)

        metrics.MetricsWriter.write = torn
    return step


def main(workdir: str, moment: str = "never") -> None:
    options = {"num_threads": 2, "batch_size": 16, "seed": 7}
    batches: grain.DatasetIterator = iter(mixture(TASKS, make_example, **options))
    state = loop.run(
        step=arm(moment, make_step(moment)),
        start=Start(jax.eval_shape(initial_state), initial_state),
        batches=batches,
        num_steps=NUM_STEPS,
        workdir=workdir,
        prepare=lambda batch: {name: jnp.asarray(array) for name, array in batch.items()},
        checkpoint_every=5,
        keep=2,
        evaluate=lambda state: (
            die() if moment == "evaluation" else {"evaluation/norm": optax.global_norm(state.params)}
        ),
        evaluate_every=6,
    )
    if moment == "after the end":
        die()
    leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
    np.savez(Path(workdir) / "final.npz", *[np.asarray(leaf) for leaf in leaves])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Interrupted as stop:
        print(stop.message, file=sys.stderr)
        raise
