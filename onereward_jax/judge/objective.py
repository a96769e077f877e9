"""Training the judge on preferences (Eq. 3): loss and metrics, pure."""

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
    """Eq. 3: −½ E[log P(Yes | winner, loser, q) + log P(No | loser, winner, q)], over annotated dimensions.

    Both orders of a pair are in one batch, and all its dimensions ask on one shared prefix.

    Args:
      apply: `Judge.apply`: (params, batch, both_orders=True) -> log P(Yes), log P(No), float32 (2, B, D, 2).
      params: of the judge.
      batch: first, second: (B, H, W, 3) in [0, 1]
        question_ids (B, D, S), question_lengths (B, D)
        label: (B, D), +1 the first image wins, −1 the second, 0 not annotated
        weights: (B, D), of each dimension; 1 if absent
        cell: optional int32 (B, D), index into `tasks.CELLS`, −1 on padding: accuracy of each cell as well

    Returns:
      The loss and metrics, scalars: `judge/accuracy` (mean of both orders), `judge/accuracy_as_given`
      and `judge/accuracy_swapped` (each order by itself), `judge/p_answers` (what Yes and No take of the whole
      vocabulary's probability), `judge/accuracy/<task>/<dimension>` (NaN where the batch has no such cell).
    """
    log_p = apply(params, batch, both_orders=True)
    label = batch["label"].astype(jnp.float32)
    weights = batch.get("weights", jnp.ones_like(label)) * (label != 0)
    mean = lambda x: (x * weights).sum() / jnp.maximum(weights.sum(), 1e-8)  # noqa: E731

    # The answer that is right when the first image shown wins is Yes; swapped, it is No.
    yes_is_right = jnp.stack([label > 0, label < 0])
    right = jnp.where(yes_is_right, log_p[..., 0], log_p[..., 1])
    loss = -0.5 * mean(right.sum(axis=0))

    # As in `evaluation.accuracy`: the image shown first is called better when P(Yes) > ½; exactly ½ counts half.
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
    """`loss(params, frozen, batch, key)` for `training.state.supervised_step`; `frozen` are the judge's other
    parameters, or None.

    With `max_shift`, the pairs are moved by `augment.shift_together`; with `adversarial_radius`, changed by
    `augment.perturb_against`; each by the randomness of its `index` in the batch.
    """

    def loss(params, frozen, batch, key):
        params = {**(frozen or {}), **params}
        if max_shift or adversarial_radius:
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
            first, second = (unit_range(batch[name]) for name in ("first", "second"))
            first, second = shift_together(keys, first, second, max_shift)
            if adversarial_radius:
                one_order = lambda a, b: _loss_as_given(apply, params, batch | {"first": a, "second": b})  # noqa: E731
                first, second = perturb_against(one_order, keys, first, second, adversarial_radius)
            batch = batch | {"first": first, "second": second}
        return preference_loss(apply, params, batch)

    return loss


def _loss_as_given(apply: ApplyBothOrders, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Eq. 3 in the order that the batch has, summed: half the cost, and enough for a direction."""
    log_p, label = apply(params, batch, both_orders=False), batch["label"]
    return -(jnp.where(label > 0, log_p[..., 0], log_p[..., 1]) * (label != 0)).sum()
