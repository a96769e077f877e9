"""The cheapest way to run an update on a TPU slice: plans of several meshes, remat policies and batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from onereward_jax.mesh import AXES, can_share, make_mesh
from onereward_jax.rl.plan import GIB, held_bytes, plan, program_of
from onereward_jax.topology import Topology
from onereward_jax.train_state import Placement

# From the one that keeps least in memory to the one that computes least.
REMAT = ("full", "dots", "none")


class Choice(NamedTuple):
    """What a search varies."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    batch: int

    @property
    def mesh(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def of(self, config: ConfigDict) -> ConfigDict:
        """That configuration with this choice."""
        config = config.copy_and_resolve_references()
        config.mesh.update(self.mesh)
        config.model.remat = self.remat
        config.train.batch_size = self.batch
        return config

    def needs_no_less_than(self, other: "Choice") -> bool:
        """Whether this takes at least the memory of the other, both on one mesh."""
        return (
            self.mesh == other.mesh
            and REMAT.index(self.remat) >= REMAT.index(other.remat)
            and self.batch >= other.batch
        )


def choices(meshes: Iterable[Mapping[str, int]], batches: Iterable[int], accumulate: int = 1) -> list[Choice]:
    """Every mesh and batch whose micro-batches the devices can share, with every remat policy; of a mesh those first
    that need less memory."""
    return [
        Choice(**mesh, remat=remat, batch=batch)
        for mesh in meshes
        for batch in sorted(batches)
        for remat in REMAT
        if batch % accumulate == 0 and can_share(AbstractMesh(tuple(mesh.values()), tuple(mesh)), batch // accumulate)
    ]


def meshes_of(devices: int) -> Iterator[dict[str, int]]:
    """Every mesh over so many devices; those first that leave no axis to `data`, which splits no weights."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data in divisors:
        for tensor in divisors:
            if devices % (data * tensor) == 0:
                yield {"data": data, "fsdp": devices // (data * tensor), "tensor": tensor}


def search(
    config: ConfigDict,
    topology: Topology,
    tried: Sequence[Choice],
    known: Mapping[Choice, Mapping[str, Any]] | None = None,
    tell: Callable[[Choice, dict[str, Any]], None] = lambda choice, row: None,
) -> dict[Choice, dict[str, Any]]:
    """A row for every choice: `Plan.to_json()`, or {"fits": False, "skipped": why} where compiling would be idle.

    Args:
      tried: in the order of `choices`.
      known: rows of a search that was stopped.
      tell: called after every row.

    Raises:
      as `plan`.
    """
    rows: dict[Choice, dict[str, Any]] = {}
    state: dict[tuple[int, ...], float] = {}
    for choice in tried:
        chosen, mesh = choice.of(config), tuple(choice.mesh.values())
        if mesh not in state:
            mesh_of_choice = make_mesh(**choice.mesh, devices=topology.devices)
            held, _ = held_bytes(program_of(chosen), mesh_of_choice, Placement.of(chosen))
            state[mesh] = sum(held.values()) / GIB
        failed = [other for other, row in rows.items() if not row["fits"] and choice.needs_no_less_than(other)]
        if state[mesh] > topology.chip.hbm_gib:
            row = {"fits": False, "skipped": f"the state alone takes {state[mesh]:.1f} GiB"}
        elif failed:
            row = {"fits": False, "skipped": f"{failed[0].remat} with batch {failed[0].batch} does not fit"}
        elif known and choice in known:
            row = dict(known[choice])
        else:
            row = plan(chosen, topology).to_json()
        rows[choice] = row
        tell(choice, row)
    return rows


def cheapest(rows: Mapping[Choice, Mapping[str, Any]]) -> Choice | None:
    """The choice that fits and takes the least time for a picture; None if none fits."""
    cost = {choice: row["seconds"]["update"] / choice.batch for choice, row in rows.items() if row["fits"]}
    return min(cost, key=cost.__getitem__, default=None)


def table(rows: Mapping[Choice, Mapping[str, Any]], hbm_gib: float) -> str:
    """A line for every choice that was compiled or would have to be; the cheapest is marked."""
    best = cheapest(rows)
    lines = [f"data fsdp tensor batch  remat     GiB  seconds  images an hour   ({hbm_gib} GiB a device)"]
    for choice, row in rows.items():
        start = f"{choice.data:>4} {choice.fsdp:>4} {choice.tensor:>6} {choice.batch:>5}  {choice.remat:<5}"
        if "skipped" in row:
            lines.append(f"{start}  not compiled: {row['skipped']}")
            continue
        peak = "?" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        takes = f"{row['seconds']['update']:>7.1f}  {row['images_per_hour']:>14.0f}" if row["fits"] else "does not fit"
        lines.append(f"{start} {peak:>7}  {takes}" + ("  <- cheapest" if choice == best else ""))
    return "\n".join(lines)
