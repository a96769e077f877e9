"""The optimiser of every trainer."""

import jax
import optax


def make_optimizer(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    clip_norm: float = 1.0,
    weight_decay: float = 0.0,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """AdamW after clipping by the norm that `apply_gradient` gives it: linear warm-up, then a constant rate, or a
    cosine to a tenth of it at `decay_steps`."""
    if decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps, learning_rate / 10)
    elif warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    else:
        rate = learning_rate
    return optax.chain(_clip_by_norm(clip_norm), optax.adamw(rate, b1=0.9, b2=b2, weight_decay=weight_decay))


def _clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` with the `norm` given, which is computed once an update."""

    def update(updates, state, params=None, *, norm, **_):
        clip = lambda x: jax.lax.select(norm < max_norm, x, (x / norm.astype(x.dtype)) * max_norm)
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
