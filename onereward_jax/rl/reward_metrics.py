"""The judge's answers as metrics, by task and dimension."""

import jax
import jax.numpy as jnp

from onereward_jax.tasks import CELLS


def cell_sums(p_yes: jax.Array, cell: jax.Array) -> dict[str, jax.Array]:
    """Sum of P(Yes) and number of answers of each cell: additive over micro-batches."""
    member = cell[..., None] == jnp.arange(len(CELLS))
    return {
        "reward_sums": (p_yes[..., None] * member).sum(axis=(0, 1)),
        "reward_counts": member.sum(axis=(0, 1)).astype(jnp.float32),
    }


def with_rewards(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means in the place of `cell_sums`; `rewards/<task>/<dimension>` is NaN where the batch has no such cell."""
    sums, counts = metrics["reward_sums"], metrics["reward_counts"]
    means = sums / counts
    rewards = {f"rewards/{task}/{dimension}": means[i] for i, (task, dimension) in enumerate(CELLS)}
    others = {name: value for name, value in metrics.items() if name not in ("reward_sums", "reward_counts")}
    return others | rewards | {"rewards/mean": sums.sum() / counts.sum()}
