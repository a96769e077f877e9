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


class Params(NamedTuple):
    """Parameters to start from, which a run that goes on from a checkpoint never reads.

    Attributes:
      shapes: arrays or `jax.ShapeDtypeStruct`s.
      read: gives the parameters, on the host or on devices; nobody else holds them.
    """

    shapes: Any
    read: Callable[[], Any]

    @classmethod
    def of(cls, params: Any) -> "Params":
        """Parameters that are there already."""
        return cls(params, lambda: params)

    @classmethod
    def made(cls, make: Callable[[], Any]) -> "Params":
        """Parameters that a function makes which `jax.eval_shape` can trace."""
        return cls(jax.eval_shape(make), make)


class Start(NamedTuple):
    """The state before the first update, which is made only if no checkpoint takes its place.

    Attributes:
      shapes: `jax.ShapeDtypeStruct`s with the sharding of each array.
      make: makes it.
    """

    shapes: Any
    make: Callable[[], Any]


def compile_step(
    step: Callable,
    create: Callable[[Any], TrainState],
    params: Params,
    frozen: Any,
    mesh: Mesh,
    placement: Placement = Placement(),  # noqa: B008 (a tuple)
) -> tuple[Callable, Start, Any]:
    """Jits `step(state, frozen, batch)` for a mesh and places the frozen parameters there.

    The state is donated; params, EMA, reference and optimiser state follow the same rules; batches come split over
    their leading axis, as `parallel.activations.batch_sharding` places them.

    Args:
      create: pure, parameters -> the state before the first update; runs on the mesh, so that no device ever holds
        more than its part.
      params: parameters to start from.
      placement: see `Placement`.

    Returns:
      (jitted step, how its first state is made on the mesh, frozen on the mesh)
    """
    shapes = jax.eval_shape(create, params.shapes)
    places = placement.of_state(shapes, mesh)
    programs = creating(create, places, placement)

    def make() -> TrainState:
        read = params.read()
        placed = hosts.place(read, shardings(read, mesh))
        del read
        if not placement.offload:
            return programs["state"](placed)
        return TrainState(**{part: made(placed) for part, made in programs.items()})

    placed_shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    compiled = jit_step(step, shapes, frozen, mesh, placement)
    return compiled, Start(placed_shapes, make), hosts.place(frozen, shardings(frozen, mesh))


def creating(create: Callable[[Any], TrainState], places: Any, placement: Placement) -> dict[str, Any]:
    """The jitted programs that make the first state of placed parameters, in order: {"state": the one that makes all of
    it}, or where some of it waits on the hosts {part: the one that makes it}, since together the parts may be more than
    the devices hold.

    Args:
      places: `placement.of_state`.
    """
    if not placement.offload:
        return {"state": jax.jit(create, out_shardings=places)}
    of_part = lambda part: lambda params: getattr(create(params), part)
    names = [field.name for field in dataclasses.fields(TrainState)]
    return {part: jax.jit(of_part(part), out_shardings=getattr(places, part)) for part in names}


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
