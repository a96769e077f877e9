"""The judge's answers as metrics, by task and dimension."""

import jax
import jax.numpy as jnp

from onereward_jax.tasks import CELLS

SURE = 0.95  # P above which an answer is counted as sure


def cell_sums(p_yes: jax.Array, cell: jax.Array) -> dict[str, jax.Array]:
    """Sums over the answers, and the number of them, of each cell and of all: additive over micro-batches."""
    member = cell[..., None] == jnp.arange(len(CELLS))
    asked = cell >= 0
    return {
        "reward_squares": (p_yes**2 * asked).sum(),
        "reward_sure": ((p_yes > SURE) & asked).sum().astype(jnp.float32),
        "reward_sums": (p_yes[..., None] * member).sum(axis=(0, 1)),
        "reward_counts": member.sum(axis=(0, 1)).astype(jnp.float32),
    }


def with_rewards(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means in the place of `cell_sums`; `rewards/<task>/<dimension>` is NaN where the batch has no such cell.

    `learning/reward_deviation` and `learning/reward_sure` are the standard deviation of P(Yes) over the batch and the
    share above .95.
    """
    sums, counts = metrics["reward_sums"], metrics["reward_counts"]
    means = sums / counts
    rewards = {f"rewards/{task}/{dimension}": means[i] for i, (task, dimension) in enumerate(CELLS)}
    others = {name: value for name, value in metrics.items() if not name.startswith("reward_")}
    number, mean = counts.sum(), sums.sum() / counts.sum()
    spread = {
        "learning/reward_deviation": jnp.sqrt(jnp.maximum(0.0, metrics["reward_squares"] / number - mean**2)),
        "learning/reward_sure": metrics["reward_sure"] / number,
    }
    return others | rewards | spread | {"rewards/mean": mean}
