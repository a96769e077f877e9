"""Searches the cheapest way to run an update on a TPU slice: attention block sizes first, then meshes, remat policies
and batch sizes."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.models.attention import LANES, attention
from onereward_jax.parallel.activations import can_share, traced_for
from onereward_jax.parallel.mesh import AXES, make_mesh, replicated
from onereward_jax.planning.compiling import LEAST_EFFORT, CompilerError
from onereward_jax.planning.cost import cost_of
from onereward_jax.planning.lives import life_of
from onereward_jax.planning.phases import GIB
from onereward_jax.planning.plan import held_bytes, plan
from onereward_jax.planning.topology import Topology
from onereward_jax.rl.build_update import computation
from onereward_jax.training.compile import Placement
from onereward_jax.weights.official_modules import official_module

# From least memory to least computation.
REMAT = ("full", "dots", "none")


Blocks = tuple[int, int]


class Choice(NamedTuple):
    """One point of the search: mesh, remat policy and batch size."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    batch: int

    @property
    def mesh(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def of(self, config: RewardFeedback) -> RewardFeedback:
        """Return a copy of the configuration with this choice."""
        mesh = {f"mesh.{axis}": size for axis, size in self.mesh.items()}
        return config.replace({**mesh, "model.remat": self.remat, "train.batch_size": self.batch})

    def needs_no_less_than(self, other: "Choice") -> bool:
        """Whether this needs at least as much memory as the other, on the same mesh."""
        return (
            self.mesh == other.mesh
            and REMAT.index(self.remat) >= REMAT.index(other.remat)
            and self.batch >= other.batch
        )


def choices(meshes: Iterable[Mapping[str, int]], batches: Iterable[int], accumulate: int = 1) -> list[Choice]:
    """List every mesh and batch whose micro-batches divide among the devices, with every remat policy; within a mesh,
    in order of memory."""
    return [
        Choice(**mesh, remat=remat, batch=batch)
        for mesh in meshes
        for batch in sorted(batches)
        for remat in REMAT
        if batch % accumulate == 0 and can_share(AbstractMesh(tuple(mesh.values()), tuple(mesh)), batch // accumulate)
    ]


def meshes_of(devices: int) -> Iterator[dict[str, int]]:
    """List every mesh over `devices` devices, smallest `data` axis first, since `data` shards no weights."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data in divisors:
        for tensor in divisors:
            if devices % (data * tensor) == 0:
                yield {"data": data, "fsdp": devices // (data * tensor), "tensor": tensor}


def search(
    config: RewardFeedback,
    topology: Topology,
    tried: Sequence[Choice],
    known: Mapping[Choice, Mapping[str, Any]] | None = None,
    exact: bool = False,
    tell: Callable[[Choice, dict[str, Any]], None] = lambda choice, row: None,
) -> dict[Choice, dict[str, Any]]:
    """Plan every choice.

    Args:
      tried: choices in the order of `choices`.
      known: rows of an interrupted search.
      exact: see `plan`.
      tell: called after every row.

    Returns:
      choice -> `Plan.to_json()`, {"fits": False, "skipped": reason} where compiling would be futile, or {"fits": False,
      "failed": reason} where the compiler fails for another reason than memory.

    Raises:
      UserError, FileNotFoundError, ValueError: see `plan`.
    """
    rows: dict[Choice, dict[str, Any]] = {}
    state: dict[tuple[int, ...], float] = {}
    for choice in tried:
        chosen, mesh = choice.of(config), tuple(choice.mesh.values())
        if mesh not in state:
            mesh_of_choice = make_mesh(**choice.mesh, devices=topology.devices)
            held, _ = held_bytes(life_of(chosen).program, mesh_of_choice, Placement.of(chosen))
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
    config: RewardFeedback, topology: Topology, around: Callable[[list[Blocks]], Iterable[Blocks]] = lambda sizes: sizes
) -> dict[Blocks, float | None]:
    """Estimate the seconds of the transformer's attention, forward and backward, for block sizes of the splash kernel.

    The estimate adds arithmetic and memory time at the chip's rates. None means that the kernel does not fit the chip.
    It is for two samples with all heads, as true guidance needs: with one head the compiler accepted sizes that do not
    fit.

    Sizes are multiples of 128 that divide the tokens of image and prompt. Each takes seconds to compile; wrap the sizes
    with `around` to show progress.
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
        summed = lambda *inputs: attend(*inputs).astype(jnp.float32).sum()
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
    """Return the fastest block sizes; None if none fits, or the number of tokens is not a multiple of 128."""
    fitting = {sizes: seconds for sizes, seconds in blocks.items() if seconds is not None}
    return min(fitting, key=fitting.__getitem__, default=None)


def cheapest(rows: Mapping[Choice, Mapping[str, Any]]) -> Choice | None:
    """Return the choice with the least time per image among those that fit; None if none fits."""
    cost = {choice: row["seconds"]["update"] / choice.batch for choice, row in rows.items() if row["fits"]}
    return min(cost, key=cost.__getitem__, default=None)


def table(rows: Mapping[Choice, Mapping[str, Any]], hbm_gib: float) -> str:
    """Format the rows as a table, with the cheapest choice marked."""
    best = cheapest(rows)
    lines = [f"data fsdp tensor batch  remat     GiB  seconds  images per hour   ({hbm_gib} GiB per device)"]
    for choice, row in rows.items():
        start = f"{choice.data:>4} {choice.fsdp:>4} {choice.tensor:>6} {choice.batch:>5}  {choice.remat:<5}"
        if why := row.get("skipped", row.get("failed")):
            lines.append(f"{start}  not compiled: {why}")
            continue
        peak = "?" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        takes = f"{row['seconds']['update']:>7.1f}  {row['images_per_hour']:>15.0f}" if row["fits"] else "does not fit"
        near = "  near the limit: check with --exact" if row.get("near_limit") else ""
        lines.append(f"{start} {peak:>7}  {takes}{near}" + ("  <- cheapest" if choice == best else ""))
    return "\n".join(lines)
