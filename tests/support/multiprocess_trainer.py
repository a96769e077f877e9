"""A small real training through `training.trainer.train`, in one process or one of several; slow enough to disturb.

python tests/support/multiprocess_trainer.py WORKDIR DATA,FSDP,TENSOR [SECONDS_A_STEP]

JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say whether it is one of several.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.config.schema import AutoencoderTraining, Mesh, SceneData, Training
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.parallel import cluster, heartbeat, hosts
from onereward_jax.training import trainer
from onereward_jax.training.compile import Params
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state, supervised_step

STEPS, HEARTBEAT_TIMEOUT = 24, 4.0


def config_of(mesh: str) -> AutoencoderTraining:
    return AutoencoderTraining(
        seed=7,
        mesh=Mesh(*map(int, mesh.split(","))),
        train=Training(
            num_steps=STEPS, batch_size=16, checkpoint_minutes=0.015, keep_checkpoints=9, log_every=1, offload=("ema",)
        ),
        data=SceneData(task_weights={"image_fill": 3.0, "object_removal": 1.0}, loader_threads=2, loader_timeout=60.0),
    )


def example(index: int, task: str) -> dict:
    generator = np.random.default_rng(index)
    inputs = generator.standard_normal(8).astype(np.float32)
    inputs[0] = 1.0 if task == "image_fill" else -1.0
    return {"inputs": inputs, "target": np.sign(inputs.sum(keepdims=True))}


def loss(params, frozen, batch, key):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.9, (64,)))(keys)
    hidden = jax.nn.gelu(batch["inputs"] @ params["to_q"]["kernel"]) * kept * frozen["scale"]
    value = jnp.mean((hidden @ params["to_out_0"]["kernel"] - batch["target"]) ** 2)
    return value, {}


def main(workdir: str, mesh: str, pause: str = "0") -> int:
    cluster.initialise(HEARTBEAT_TIMEOUT)
    config = config_of(mesh)
    directory = claim_workdir(workdir, config)
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "to_q": {"kernel": jax.random.normal(first, (8, 64)) / 3},
        "to_out_0": {"kernel": jax.random.normal(second, (64, 1)) / 8},
    }
    optimizer = make_optimizer(1e-2)

    def slowly(step):
        def wrapped(state, batch):
            time.sleep(float(pause))
            return step(state, batch)

        return wrapped

    experiment = trainer.Experiment(
        step=supervised_step(loss, optimizer, ema_decay=0.9),
        create=lambda params: create_state(params, optimizer, config.seed),
        params=Params.of(params),
        frozen={"scale": np.float32(1 / 0.9)},
        example=example,
        task_weights=config.data.task_weights,
        description="training",
        wrap_step=slowly,
    )
    state = trainer.train(experiment, config, directory)
    arrays = hosts.fetch(jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))))
    if hosts.is_primary():
        np.savez(directory / "final.npz", *arrays)
    return 0


if __name__ == "__main__":
    sys.exit(heartbeat.run_together(lambda: guarded(lambda: main(*sys.argv[1:]))))
