"""The judge's training loss on preferences (Eq. 3) and its metrics, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.judge.augment import perturb_against, shift_together
from onereward_jax.judge.scorer import unit_range
from onereward_jax.tasks import CELLS

# (params, batch, both_orders=True) -> (2, B, D, 2): `Judge.apply`
ApplyBothOrders = Callable[..., jax.Array]


def preference_loss(apply: ApplyBothOrders, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
    """Compute Eq. 3, −½ E[log P(Yes | winner, loser, q) + log P(No | loser, winner, q)], over annotated dimensions.

    Both orders of a pair are in one batch, and the questions of all its dimensions share one prefix.

    Args:
      apply: `Judge.apply`: (params, batch, both_orders=True) -> log P(Yes), log P(No), float32 (2, B, D, 2).
      params: the judge's parameters.
      batch: first, second: (B, H, W, 3) in [0, 1]
        question_ids (B, D, S), question_lengths (B, D)
        label: (B, D), +1 if the first image wins, −1 if the second, 0 if not annotated
        weights: (B, D), weight of each dimension; 1 if absent
        cell: optional int32 (B, D), index into `tasks.CELLS`, −1 on padding; adds the accuracy of each cell

    Returns:
      The loss and metrics, scalars: `judge/accuracy` (mean of both orders), `judge/accuracy_as_given`
      and `judge/accuracy_swapped` (each order alone), `judge/p_answers` (probability of Yes and No together
      over the whole vocabulary), `judge/accuracy/<task>/<dimension>` (NaN if the batch has no such cell).
    """
    log_p = apply(params, batch, both_orders=True)
    label = batch["label"].astype(jnp.float32)
    weights = batch.get("weights", jnp.ones_like(label)) * (label != 0)
    mean = lambda x: (x * weights).sum() / jnp.maximum(weights.sum(), 1e-8)

    # If the image shown first wins, the correct answer is Yes, otherwise No.
    yes_is_correct = jnp.stack([label > 0, label < 0])
    correct = jnp.where(yes_is_correct, log_p[..., 0], log_p[..., 1])
    loss = -0.5 * mean(correct.sum(axis=0))

    # As in `evaluation.accuracy`: P(Yes) > ½ prefers the image shown first; exactly ½ counts half.
    lead = jnp.sign(jnp.exp(log_p[..., 0]) - 0.5) * label
    given, swapped = (1 + lead[0]) / 2, (1 - lead[1]) / 2
    averaged = (given + swapped) / 2
    metrics = {
        "judge/accuracy": mean(averaged),
        "judge/accuracy_as_given": mean(given),
        "judge/accuracy_swapped": mean(swapped),
        "judge/p_answers": mean(jnp.exp(log_p).sum(axis=-1).mean(axis=0)),
    }
    if "cell" in batch:
        member = (batch["cell"][..., None] == jnp.arange(len(CELLS))) & (weights > 0)[..., None]
        accuracy = (averaged[..., None] * member).sum(axis=(0, 1)) / member.sum(axis=(0, 1))
        metrics |= {f"judge/accuracy/{task}/{dimension}": accuracy[i] for i, (task, dimension) in enumerate(CELLS)}
    return loss, metrics


def make_loss(
    apply: ApplyBothOrders, max_shift: int = 0, adversarial_radius: float = 0.0
) -> Callable[..., tuple[jax.Array, dict]]:
    """Make `loss(params, frozen, batch, key)` for `training.state.supervised_step`.

    `frozen` are the judge's other parameters, or None. With `max_shift`, pairs are shifted by
    `augment.shift_together`; with `adversarial_radius`, perturbed by `augment.perturb_against`. Random keys come from
    the batch's `index`.
    """

    def loss(params, frozen, batch, key):
        params = {**(frozen or {}), **params}
        if max_shift or adversarial_radius:
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
            first, second = (unit_range(batch[name]) for name in ("first", "second"))
            first, second = shift_together(keys, first, second, max_shift)
            if adversarial_radius:
                one_order = lambda a, b: _loss_as_given(apply, params, batch | {"first": a, "second": b})
                first, second = perturb_against(one_order, keys, first, second, adversarial_radius)
            batch = batch | {"first": first, "second": second}
        return preference_loss(apply, params, batch)

    return loss


def _loss_as_given(apply: ApplyBothOrders, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Compute Eq. 3 in one order, summed over pairs: half the cost, and enough to find a direction."""
    log_p, label = apply(params, batch, both_orders=False), batch["label"]
    return -(jnp.where(label > 0, log_p[..., 0], log_p[..., 1]) * (label != 0)).sum()
