"""One train state for every trainer; in reward feedback learning it holds policy, EMA and reference."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import traced_for
from onereward_jax.parallel.mesh import replicated
from onereward_jax.parallel.offload import any_on_hosts, is_on_host, on_hosts, to_devices
from onereward_jax.parallel.rules import shardings, warn_of_unsharded


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
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any | None
    reference: Any | None
    key: jax.Array
    references: Any | None = None

    @property
    def averaged(self) -> Any:
        """The average, or where none is kept the parameters themselves; on the devices."""
        return to_devices(self.params if self.ema is None else self.ema)


class Placement(NamedTuple):
    """Where a run's state lies, beside what `parallel.rules.TRANSFORMER_RULES` say.

    Attributes:
      offload: parts of the state that wait in the hosts' memory until an update needs them, of
        `config.load.OFFLOADABLE`; of those that the state has.
      max_unsharded_mib: a warning names the arrays of this size and more that no axis of a mesh splits.
    """

    offload: tuple[str, ...] = ()
    max_unsharded_mib: float = 64.0

    @classmethod
    def of(cls, config: ConfigDict) -> "Placement":
        return cls(**{name: config.train[name] for name in cls._fields if name in config.train})

    def of_state(self, state: TrainState, mesh: Mesh) -> Any:
        """A sharding for every array of a state, or of its shapes."""
        places = shardings(state, mesh)
        waiting = {part: on_hosts(getattr(state, part), getattr(places, part)) for part in self.offload}
        return dataclasses.replace(places, **waiting)


def create_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, *, ema: bool = True, reference: bool = False
) -> TrainState:
    """The state before the first update; params, EMA and reference start alike, in separate buffers
    (one buffer under two names can't be donated)."""
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    copy = lambda: jax.tree.map(jnp.copy, params)  # noqa: E731
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
    choose = lambda *arguments: jax.lax.cond(finite, update, skip, *arguments)  # noqa: E731
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
    to_host = lambda new, old: jax.device_put(new, jax.memory.Space.Host) if is_on_host(old) else new  # noqa: E731
    parts, norms = [], []
    for number in range(structure.num_leaves):
        only = lambda leaf, its, number=number: leaf if its == number else optax.MaskedNode()  # noqa: E731
        pick = lambda tree: None if tree is None else jax.tree.map(only, tree, numbers)  # noqa: E731, B023
        old = pick(params), optax.tree_map_params(transformation, only, opt_state, numbers), pick(ema)
        new, norm = update(pick(gradient), *to_devices(old, after))
        new = jax.tree.map(to_host, new, old)
        parts.append(new)
        norms.append(norm)
        if any_on_hosts(new):
            after = new  # back on the hosts before the next comes
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    whole = lambda *of_parts: next(part for part in of_parts if not is_masked(part))  # noqa: E731
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
        clip = lambda x: jax.lax.select(norm < max_norm, x, (x / norm.astype(x.dtype)) * max_norm)  # noqa: E731
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def compile_step(
    step: Callable,
    create: Callable[[Any], TrainState],
    params: Any,
    frozen: Any,
    mesh: Mesh,
    placement: Placement = Placement(),  # noqa: B008 (a tuple)
) -> tuple[Callable, TrainState, Any]:
    """Places state and frozen parameters on the mesh and jits `step(state, frozen, batch)` for it.

    The state is donated; params, EMA, reference and optimiser state follow the same rules; batches come split over
    their leading axis, as `parallel.activations.batch_sharding` places them.

    Args:
      create: pure, parameters -> the state before the first update; runs on the mesh, so that no device ever holds
        more than its part.
      params: parameters to start from, on the host or on devices.
      placement: see `Placement`.

    Returns:
      (jitted step, state on the mesh, frozen on the mesh)
    """
    shapes = jax.eval_shape(create, params)
    params = hosts.place(params, shardings(params, mesh))
    places = placement.of_state(shapes, mesh)
    if placement.offload:  # part by part: together they may be more than the devices hold

        def made(part: str) -> Any:
            return jax.jit(lambda params: getattr(create(params), part), out_shardings=getattr(places, part))(params)

        state = TrainState(**{field.name: made(field.name) for field in dataclasses.fields(TrainState)})
    else:
        state = jax.jit(create, out_shardings=places)(params)
    compiled = jit_step(step, shapes, frozen, mesh, placement)
    return compiled, state, hosts.place(frozen, shardings(frozen, mesh))


def jit_step(
    step: Callable,
    state: Any,
    frozen: Any,
    mesh: Mesh,
    placement: Placement = Placement(),  # noqa: B008 (a tuple)
) -> Any:
    """`step(state, frozen, batch)` jitted for a mesh; the state is donated.

    Args:
      state, frozen: arrays, or their shapes: `onereward plan` compiles the step without any.
      placement: see `Placement`.
    """
    warn_of_unsharded({"state": state, "frozen": frozen}, mesh, placement.max_unsharded_mib)
    state_shardings = placement.of_state(state, mesh)

    return jax.jit(
        traced_for(mesh, step),
        in_shardings=(state_shardings, shardings(frozen, mesh), None),  # batches are where they were put
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
