"""A training loop without a model: the state is a sum over the batches, which are 0, 1, 2, ..."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.training import loop
from onereward_jax.training.compile import Start
from onereward_jax.training.metrics import read_metrics


@flax.struct.dataclass
class State:
    step: jax.Array
    total: jax.Array
    key: jax.Array


class Counter:
    """Batches 0, 1, 2, ...; state is the next one."""

    def __init__(self, end: int = 1 << 30):
        self.position, self.end, self.state = 0, end, {"next": 0}

    def __next__(self) -> np.ndarray:
        if self.position >= self.end:
            raise StopIteration
        self.position += 1
        self.state["next"] = self.position  # written in place, as an iterator may
        return np.float32(self.position - 1)

    def get_state(self) -> dict:
        return self.state

    def set_state(self, state: dict) -> None:
        self.position = state["next"]
        self.state = dict(state)


def initial() -> State:
    return State(jnp.int32(0), jnp.float32(0), jax.random.key(0))


@jax.jit
def step(state, batch):
    """total ← 1.5 total + batch, so that a batch left out, repeated or out of order shows."""
    new = state.replace(step=state.step + 1, total=state.total * 1.5 + batch)
    return new, {
        "learning/loss": new.total,
        "rewards/fill/structure": jnp.where(batch % 2 == 0, batch, jnp.nan),
        "rewards/mean": batch,
    }


def expected_total(steps: int) -> float:
    total = np.float32(0)
    for batch in range(steps):
        total = np.float32(total * np.float32(1.5) + np.float32(batch))
    return float(total)


START = Start(jax.eval_shape(initial), initial)


def run(workdir, num_steps=7, **options):
    settings = {"step": step, "start": START, "batches": Counter(), "checkpoint_every": 3, "workdir": workdir}
    return loop.run(**{**settings, "num_steps": num_steps, **options})


def lines(workdir):
    return read_metrics(workdir / "metrics.jsonl")
