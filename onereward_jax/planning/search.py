"""The cheapest way to run an update on a TPU slice: blocks of its attention, then plans of several meshes, remat
policies and batches."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from onereward_jax.fill.pipeline import latent_shape
from onereward_jax.models.attention import LANES, attention
from onereward_jax.parallel.activations import can_share, traced_for
from onereward_jax.parallel.mesh import AXES, make_mesh, replicated
from onereward_jax.planning.cost import cost_of
from onereward_jax.planning.plan import GIB, LEAST_EFFORT, CompilerError, held_bytes, plan, program_of
from onereward_jax.planning.topology import Topology
from onereward_jax.rl.build import computation
from onereward_jax.training.compile import Placement
from onereward_jax.weights.official import official_module

# From the one that keeps least in memory to the one that computes least.
REMAT = ("full", "dots", "none")


Blocks = tuple[int, int]


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
    exact: bool = False,
    tell: Callable[[Choice, dict[str, Any]], None] = lambda choice, row: None,
) -> dict[Choice, dict[str, Any]]:
    """A row for every choice: `Plan.to_json()`, or {"fits": False, "skipped": why} where compiling would be idle, and
    {"fits": False, "failed": why} where the compiler fails for another reason than memory.

    Args:
      tried: in the order of `choices`.
      known: rows of a search that was stopped.
      exact: see `plan`.
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
        too_large = [
            other
            for other, row in rows.items()
            if not row["fits"] and "failed" not in row and choice.needs_no_less_than(other)
        ]
        if state[mesh] > topology.chip.hbm_gib:
            row = {"fits": False, "skipped": f"the state alone takes {state[mesh]:.1f} GiB"}
        elif too_large:
            row = {"fits": False, "skipped": f"{too_large[0].remat} with batch {too_large[0].batch} does not fit"}
        elif known and choice in known:
            row = dict(known[choice])
        else:
            try:
                row = plan(chosen, topology, exact).to_json()
            except CompilerError as error:
                row = {"fits": False, "failed": str(error)}
        rows[choice] = row
        tell(choice, row)
    return rows


def attention_blocks(
    config: ConfigDict, topology: Topology, around: Callable[[list[Blocks]], Iterable[Blocks]] = lambda sizes: sizes
) -> dict[Blocks, float | None]:
    """Seconds of the transformer's attention, forward and backward, by block sizes of the splash kernel: products and
    memory one after the other, at the chip's rates. None: the kernel does not fit the chip.

    Of two samples with all heads, as true guidance has them: for one head the compiler found room where there is none.

    Sizes are multiples of 128 that divide the tokens of picture and prompt. Each takes a compilation of seconds;
    `around` may show how far it is.
    """
    fields = computation(config)
    transformer = official_module(config.model.base, "transformer", fields)
    vae = official_module(config.model.base, "vae", fields)
    height, width, _ = latent_shape(vae, config.data.resolution, config.data.resolution)
    tokens = height * width // 4 + config.max_sequence_length
    sizes = [n for n in range(LANES, tokens + 1, LANES) if tokens % n == 0]
    mesh = make_mesh(1, 1, 1, devices=topology.devices[:1])
    shape = (2, tokens, transformer.num_attention_heads, transformer.attention_head_dim)
    inputs = [jax.ShapeDtypeStruct(shape, fields["dtype"], sharding=replicated(mesh))] * 3

    def seconds(blocks: Blocks) -> float | None:
        attend = functools.partial(attention, implementation="splash", blocks=blocks)
        summed = lambda *inputs: attend(*inputs).astype(jnp.float32).sum()  # noqa: E731
        gradient = traced_for(mesh, jax.grad(summed, argnums=(0, 1, 2)))
        try:
            jax.jit(gradient).lower(*inputs).compile(LEAST_EFFORT)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        cost = cost_of(gradient, *inputs)
        return cost.flops / topology.chip.flops + cost.bytes / topology.chip.hbm_bandwidth

    return {blocks: seconds(blocks) for blocks in around(list(itertools.product(sizes, sizes)))}


def fastest(blocks: Mapping[Blocks, float | None]) -> Blocks | None:
    """The block sizes that take the least time; None if there are none, for tokens that are no multiple of 128, or none
    fits."""
    fitting = {sizes: seconds for sizes, seconds in blocks.items() if seconds is not None}
    return min(fitting, key=fitting.__getitem__, default=None)


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
        if why := row.get("skipped", row.get("failed")):
            lines.append(f"{start}  not compiled: {why}")
            continue
        peak = "?" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        takes = f"{row['seconds']['update']:>7.1f}  {row['images_per_hour']:>14.0f}" if row["fits"] else "does not fit"
        near = "  near the limit: --exact says for sure" if row.get("near_limit") else ""
        lines.append(f"{start} {peak:>7}  {takes}{near}" + ("  <- cheapest" if choice == best else ""))
    return "\n".join(lines)
