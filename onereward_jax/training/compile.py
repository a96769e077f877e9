"""A step and its state on a mesh: where each array lies, and the jitted program."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from onereward_jax.config.schema import Recipe
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import traced_for
from onereward_jax.parallel.mesh import replicated
from onereward_jax.parallel.offload import on_hosts
from onereward_jax.parallel.sharding_rules import shardings, warn_of_unsharded
from onereward_jax.training.state import TrainState


class Placement(NamedTuple):
    """Where a run's state lies, beside what `parallel.sharding_rules.TRANSFORMER_RULES` say.

    Attributes:
      offload: parts of the state that wait in the hosts' memory until an update needs them, of
        `config.schema.OFFLOADABLE`; of those that the state has.
      max_unsharded_mib: a warning names the arrays of this size and more that no axis of a mesh splits.
    """

    offload: tuple[str, ...] = ()
    max_unsharded_mib: float = 64.0

    @classmethod
    def of(cls, config: Recipe) -> "Placement":
        return cls(config.train.offload, config.train.max_unsharded_mib)

    def of_state(self, state: TrainState, mesh: Mesh) -> Any:
        """A sharding for every array of a state, or of its shapes."""
        places = shardings(state, mesh)
        waiting = {part: on_hosts(getattr(state, part), getattr(places, part)) for part in self.offload}
        return dataclasses.replace(places, **waiting)


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
