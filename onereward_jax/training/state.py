"""One train state for every trainer; in reward feedback learning it holds policy, EMA and reference."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from onereward_jax.parallel.offload import any_on_hosts, is_on_host, to_devices


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on.

    Attributes:
      step: int32 (), updates done.
      params: what is trained (the policy θ, the judge φ, ...; with LoRA their adapters), float32.
      opt_state: of optax.
      ema: params averaged, `ema ← τ·ema + (1−τ)·params`, float32; the reference of Algorithm 2. None
        where a trainer keeps no average.
      reference: frozen pre-trained parameters (Algorithm 1), otherwise None. With LoRA it is the empty adapter `{}`:
        the base as it is, at no memory.
      key: root of all randomness; a sample's key is folded in from its global index.
      references: reference images (B, H, W, 3) that later updates use again (Algorithm 2), otherwise None.
      earned: float32 (), the preference for the policy at which the reference was refreshed last (algorithm earned),
        otherwise None.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any | None
    reference: Any | None
    key: jax.Array
    references: Any | None = None
    earned: jax.Array | None = None

    @property
    def averaged(self) -> Any:
        """The average, or where none is kept the parameters themselves; on the devices."""
        return to_devices(self.params if self.ema is None else self.ema)


def create_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, *, ema: bool = True, reference: bool = False
) -> TrainState:
    """The state before the first update; params, EMA and reference start alike, in separate buffers
    (one buffer under two names can't be donated)."""
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    copy = lambda: jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=copy() if ema else None,
        reference=copy() if reference else None,
        key=jax.random.key(seed),
    )


def apply_gradient(
    state: TrainState,
    loss: jax.Array,
    gradient: Any,
    optimizer: optax.GradientTransformation,
    ema_decay: float | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Optimiser step, EMA, step count.

    Where the loss or the gradient's norm is not finite, the update is skipped: parameters, optimiser state and EMA stay
    as they are, and the step counts, so that the next one has other samples.

    Returns:
      (new state, metrics `learning/grad_norm`, `learning/update_norm`, `learning/skipped`: int32 (), 1 where it was)
    """
    assert state.ema is None or ema_decay is not None, "a state with an EMA needs its decay"
    grad_norm = optax.global_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    transformation = optax.with_extra_args_support(optimizer)

    def update(gradient, params, opt_state, ema):
        updates, opt_state = transformation.update(gradient, opt_state, params, norm=grad_norm)
        params = optax.apply_updates(params, updates)
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
        return (params, opt_state, ema), optax.global_norm(updates)

    def skip(gradient, *old):
        return old, jnp.zeros((), jnp.float32)

    # A branch works in the donated buffers. A select of old and new took up to two copies of the parameters more.
    choose = lambda *arguments: jax.lax.cond(finite, update, skip, *arguments)
    old = state.params, state.opt_state, state.ema
    if any_on_hosts(old):
        new, update_norm = _one_by_one(choose, transformation, gradient, *old, after=grad_norm)
    else:
        new, update_norm = choose(gradient, *old)
    metrics = {
        "learning/grad_norm": grad_norm,
        "learning/update_norm": update_norm,
        "learning/skipped": (~finite).astype(jnp.int32),
    }
    params, opt_state, ema = new
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics


def _one_by_one(update, transformation, gradient, params, opt_state, ema, after):
    """`update(gradient, params, opt_state, ema) -> ((params, opt_state, ema), norm)`, of one array of the parameters
    after the other: of what waits in the hosts' memory the devices hold no more at a time."""
    structure = jax.tree.structure(params)
    numbers = jax.tree.unflatten(structure, range(structure.num_leaves))
    to_host = lambda new, old: jax.device_put(new, jax.memory.Space.Host) if is_on_host(old) else new
    parts, norms = [], []
    for number in range(structure.num_leaves):
        only = lambda leaf, its, number=number: leaf if its == number else optax.MaskedNode()
        pick = lambda tree: None if tree is None else jax.tree.map(only, tree, numbers)  # noqa: B023
        old = pick(params), optax.tree_map_params(transformation, only, opt_state, numbers), pick(ema)
        new, norm = update(pick(gradient), *to_devices(old, after))
        new = jax.tree.map(to_host, new, old)
        parts.append(new)
        norms.append(norm)
        if any_on_hosts(new):
            after = new  # back on the hosts before the next comes
    is_masked = lambda node: isinstance(node, optax.MaskedNode)
    whole = lambda *of_parts: next(part for part in of_parts if not is_masked(part))
    return jax.tree.map(whole, *parts, is_leaf=is_masked), optax.global_norm(norms)


def supervised_step(
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    ema_decay: float | None = None,
) -> Callable[[TrainState, Any, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, frozen, batch)` that descends `loss(params, frozen, batch, key)`, which returns (value, metrics)."""

    def step(state: TrainState, frozen: Any, batch: dict):
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, frozen, batch, state.key)
        state, update = apply_gradient(state, value, gradient, optimizer, ema_decay)
        return state, {"learning/loss": value, **update, **metrics}

    return step
