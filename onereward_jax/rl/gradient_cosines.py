"""Whether dimensions, and tasks, pull the policy in one direction: cosines between the gradients of their losses.

A gradient is as large as the policy, and one is needed for each dimension and task. So each is reduced to a sketch as
soon as it is there: random signs and sums into buckets keep inner products, with an error of about 1 / sqrt(buckets)
of the norms' product (Charikar et al. 2002, "Finding frequent items in data streams").
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import traced_for
from onereward_jax.rl.batch import Batch
from onereward_jax.tasks import CELLS, DIMENSIONS, TASKS

BUCKETS = 4096
# A gradient of (parameters' state, frozen, batch), a tree of arrays.
Gradient = Callable[[Any, Any, Batch], Any]


def sketch(gradient: Any) -> jax.Array:
    """Reduce a tree of arrays to float32 (BUCKETS,), linearly and always in the same way."""
    total = jnp.zeros(BUCKETS)
    for number, leaf in enumerate(jax.tree.leaves(gradient)):
        flat = leaf.astype(jnp.float32).reshape(-1)
        signs = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), number), flat.shape, jnp.int8)
        padded = jnp.pad(flat * signs, (0, -len(flat) % BUCKETS))
        # Leaves begin at other buckets, so that small ones do not all fall into the first.
        total += jnp.roll(padded.reshape(-1, BUCKETS).sum(axis=0), 1009 * number)
    return total


def groups() -> dict[str, np.ndarray]:
    """{dimension or task: bool (cells,), whether it has the cell}."""
    of = lambda place, name: np.array([cell[place] == name for cell in CELLS])
    return {name: of(1, name) for name in DIMENSIONS} | {name: of(0, name) for name in TASKS}


def sketches(gradient: Gradient, state: Any, frozen: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sketch the gradient of every dimension's and task's loss, one after the other.

    Args:
      gradient: of the update, without flow matching, which belongs to none.

    Returns:
      float32 (groups, BUCKETS), and the sum of the weights of each group, (groups,).
    """
    asked = jnp.stack([jnp.asarray(cells)[batch.questions.cell] for cells in groups().values()])
    weights = asked * batch.questions.weights * (batch.questions.cell >= 0)  # (groups, B, E)

    def one(weights: jax.Array) -> jax.Array:
        questions = dataclasses.replace(batch.questions, weights=weights)
        return sketch(gradient(state, frozen, dataclasses.replace(batch, questions=questions)))

    return jax.lax.map(one, weights), weights.sum(axis=(1, 2))


def cosines(sketched: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Compare the sketches of two dimensions, or of two tasks.

    Returns:
      {"gradients/<one>/<other>": cosine}, of those that the batch has and that have a gradient: beyond the threshold
      of Eq. 5 there is none.
    """
    norms = np.linalg.norm(sketched, axis=1)
    there = dict(zip(groups(), (weights > 0) & (norms > 0), strict=True))
    rows = dict(zip(groups(), sketched / np.maximum(norms, 1e-30)[:, None], strict=True))
    pairs = (*itertools.combinations(DIMENSIONS, 2), *itertools.combinations(TASKS, 2))
    return {f"gradients/{a}/{b}": float(rows[a] @ rows[b]) for a, b in pairs if there[a] and there[b]}


class GradientCosines:
    """Compares gradients at some updates of a run, before they are taken, on their own batches.

    Args:
      gradient: see `sketches`.
      every, last: it does so at the multiples of `every` and at the update `last`.
    """

    def __init__(self, gradient: Gradient, frozen: Any, mesh: Mesh, every: int, last: int):
        program = lambda state, frozen, batch: sketches(gradient, state, frozen, batch)
        self._program, self._frozen = hosts.launch_together(jax.jit(traced_for(mesh, program))), frozen
        self._every, self._last = every, last
        self._update: int | None = None
        self._found: Any = None

    def around(self, step: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
        """Wrap (state, batch) -> (state, metrics); nothing that it computes changes."""

        def compared(state: Any, batch: Batch) -> Any:
            # The state's own number would be waited for.
            self._update = int(state.step) + 1 if self._update is None else self._update + 1
            if self._update % self._every == 0 or self._update == self._last:
                self._found = self._program(state, self._frozen, batch)
            return step(state, batch)

        return compared

    def measure(self, state: Any) -> dict[str, float]:
        """`cosines` of the newest update at which gradients were compared."""
        del state
        return {} if self._found is None else cosines(*map(np.asarray, hosts.fetch(self._found)))
