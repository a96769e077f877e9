"""Plans a run on a TPU slice: compiles the programs of its phases ahead of time, counts what is held beside them, and
the cost of an update.

Memory is the compiler's report, FLOPs and bytes are counted on the traced program (`cost`), collectives on the compiled
one (`hlo`). What a run does when is in `lives`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from onereward_jax.config.schema import OFFLOADABLE, JudgeTraining, Recipe, RewardFeedback
from onereward_jax.planning.compiling import Compiled, compile_program
from onereward_jax.planning.cost import Cost, cost_of_program
from onereward_jax.planning.hlo import Collective
from onereward_jax.planning.lives import CHECKPOINT, STEP, HostShare, Program, life_of, size_of
from onereward_jax.planning.phases import GIB, Assumptions, Phase, bytes_of_parts, phase_of
from onereward_jax.planning.topology import Chip, Topology
from onereward_jax.training.compile import Placement
from onereward_jax.training.trainer import check_batch, mesh_of

# A full compilation may need this much more than one with the least effort: 1.8 GiB where both were run.
_MARGIN = 2 * GIB


@dataclasses.dataclass
class Plan:
    """Cost of an update: memory per device, FLOPs and traffic over all devices.

    Attributes:
      held: part of the state -> bytes on a device.
      on_hosts: offloaded part of the state -> bytes in host memory, per device.
      temporaries, peak: bytes; None if the compiler rejected the program as too large. `needed` is then the least size
        that it reported.
      cost: FLOPs and bytes of the whole update.
      collectives: None if the compiler rejected the program.
      exact: whether it was compiled with full effort, as for a run.
      phases: of the whole run, in order; empty if the update alone was planned.
      checkpoint: bytes of one.
    """

    topology: Topology
    mesh: dict[str, int]
    batch: int
    trips: dict[str, float]
    held: dict[str, int]
    cost: Cost
    compile_seconds: float
    references_made: float = 1.0
    temporaries: int | None = None
    peak: int | None = None
    needed: float | None = None
    collectives: list[Collective] | None = None
    on_hosts: dict[str, int] = dataclasses.field(default_factory=dict)
    exact: bool = False
    phases: list[Phase] = dataclasses.field(default_factory=list)
    checkpoint: int = 0

    @property
    def chip(self) -> Chip:
        return self.topology.chip

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def peak_gib(self) -> float | None:
        """Peak memory of a device, GiB; for a rejected program the size that the compiler reported."""
        found = self.needed if self.peak is None else self.peak
        return None if found is None else found / GIB

    @property
    def update_fits(self) -> bool:
        return self.peak is not None and self.peak <= self.chip.hbm_gib * GIB

    @property
    def too_large(self) -> list[Phase]:
        """The phases that take more than a device or a host has."""
        return [phase for phase in self.phases if not phase.fits(self.topology)]

    @property
    def fits(self) -> bool:
        """Whether the update fits, and every phase that was planned."""
        return self.update_fits and not self.too_large

    @property
    def is_near(self) -> bool:
        """Whether a full compilation may exceed the memory."""
        limit = self.chip.hbm_gib * GIB
        peaks = [self.peak or 0, *(phase.device for phase in self.phases)]
        return self.fits and not self.exact and max(peaks) > limit - _MARGIN

    def start_seconds(self, resumed: bool) -> float:
        """Seconds until the first update, compilation apart: of the phases before it, or of a resumed run's.

        A resumed run finds its prompts encoded and the base measured.
        """
        left_out = {"encode", "evaluation", "create"} if resumed else {"restore"}
        before = itertools.takewhile(lambda phase: phase.name != STEP, self.phases)
        return math.fsum(phase.seconds for phase in before if phase.name not in left_out)

    def seconds(self) -> dict[str, float]:
        """Return the least time by each of the chip's limits, and of the update if they overlap perfectly.

        Assumes evenly shared work: it leaves out work that devices repeat, in an autoencoder that `tensor` does not
        split, and in judge and autoencoder where tokens are split. A collective uses both directions of one side of the
        torus.
        """
        found = {
            "arithmetic": self.cost.flops / self.devices / self.chip.flops,
            "memory": self.cost.bytes / self.devices / self.chip.hbm_bandwidth,
        }
        if self.collectives is not None:
            sent = sum(collective.times * collective.sent for collective in self.collectives)
            found["links"] = sent / (2 * self.chip.link_bandwidth)
        return found | {"update": max(found.values())}

    def to_json(self) -> dict[str, Any]:
        gib = lambda size: None if size is None else round(size / GIB, 3)
        seconds = self.seconds()
        return {
            "topology": self.topology.name,
            "mesh": self.mesh,
            "batch": self.batch,
            "fits": self.fits,
            "near_limit": self.is_near,
            "hbm_gib": self.chip.hbm_gib,
            "peak_gib": None if self.peak_gib is None or math.isinf(self.peak_gib) else round(self.peak_gib, 3),
            "held_gib": {part: gib(size) for part, size in self.held.items()},
            "on_hosts_gib": {part: gib(size) for part, size in self.on_hosts.items()},
            "temporaries_gib": gib(self.temporaries),
            "flops": self.cost.flops,
            "flops_of_parts": self.cost.parts,
            "bytes": self.cost.bytes,
            "expected_steps": self.trips,
            "references_made": self.references_made,
            "collectives": None if self.collectives is None else by_kind(self.collectives),
            "seconds": seconds,
            "images_per_hour": self.batch * 3600 / seconds["update"],
            "compile_seconds": round(self.compile_seconds, 1),
            "exact": self.exact,
            "hosts": {"count": self.topology.hosts, "memory_gb": self.topology.machine.memory / 1e9},
            "phases": [phase.to_json() for phase in self.phases],
            "checkpoint_gb": self.checkpoint / 1e9,
            "start_seconds": {"first": self.start_seconds(False), "resumed": self.start_seconds(True)},
        }


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """Sum collectives by kind: {kind: {"times": runs per update, "bytes": sent by a device}}."""
    table: dict[str, dict[str, float]] = {}
    for collective in collectives:
        row = table.setdefault(collective.kind, {"times": 0.0, "bytes": 0.0})
        row["times"] += collective.times
        row["bytes"] += collective.times * collective.sent
    return dict(sorted(table.items()))


def plan(
    config: Recipe,
    topology: Topology,
    exact: bool = False,
    *,
    whole_life: bool = False,
    assumptions: Assumptions = Assumptions(),  # noqa: B008 (frozen)
    keep: Path | None = None,
    compiles: bool = True,
    tell: Callable[[Phase], None] = lambda phase: None,
) -> Plan:
    """Compile a run's programs for the slice and count their cost.

    Args:
      exact: compile with full effort, as a run does; otherwise with the least effort, which takes a fraction of the
        time and memory and gives somewhat smaller temporaries.
      whole_life: plan every phase, not the update alone.
      keep, compiles: see `compiling.compile_program`.
      tell: called after each phase.

    Raises:
      UserError: the configuration's mesh or batch does not fit the slice.
      FileNotFoundError, UserError: see `lives.life_of`.
      CompilerError: the compiler failed for another reason than memory.
    """
    mesh = mesh_of(config, topology.devices)
    check_batch(config, mesh)
    life, placement = life_of(config, mesh), Placement.of(config)
    program = life.program
    traced = program.trace(mesh, placement)
    held, on_hosts = held_bytes(program, mesh, placement)
    options: dict[str, Any] = {"keep": keep, "topology": topology.name, "compiles": compiles}
    of_update = compile_program(traced, exact, trips=program.trips, shares=program.shares, **options)
    compiled = of_update or Compiled()
    found = Plan(
        topology=topology,
        mesh=dict(mesh.shape),
        batch=config.train.batch_size,
        trips=dict(program.trips),
        held=held,
        on_hosts=on_hosts,
        cost=cost_of_program(traced.jaxpr, trips=program.trips, shares=program.shares, parts=program.parts),
        compile_seconds=compiled.seconds,
        references_made=program.references_made,
        exact=exact,
        temporaries=compiled.temporaries,
        peak=compiled.peak,
        needed=compiled.needed,
        collectives=compiled.collectives,
        checkpoint=size_of(program.state),
    )
    if not whole_life:
        return found
    host = HostShare(topology.devices_of_host, topology.hosts)
    phases = []
    for work in life.works(mesh, host, assumptions.prompts):
        if work.name in (STEP, CHECKPOINT):
            phase = phase_of(work, of_update, found.seconds()["update"], topology, assumptions)
        elif work.trace is None:
            phase = phase_of(work, None, 0.0, topology, assumptions)
        else:
            traced = work.trace()
            of_work = compile_program(traced, exact, trips=work.trips, shares=work.shares, **options)
            cost = cost_of_program(traced.jaxpr, trips=work.trips, shares=work.shares)
            phase = phase_of(work, of_work, work.times * _least(cost, topology), topology, assumptions)
        phases.append(phase)
        tell(phase)
    return dataclasses.replace(found, phases=phases)


def _least(cost: Cost, topology: Topology) -> float:
    """Seconds of a program at least, if its work is evenly shared."""
    chip, devices = topology.chip, len(topology.devices)
    return max(cost.flops / devices / chip.flops, cost.bytes / devices / chip.hbm_bandwidth)


def held_bytes(program: Program, mesh: Mesh, placement: Placement) -> tuple[dict[str, int], dict[str, int]]:
    """`bytes_of_parts` of what lies there while the update runs."""
    return bytes_of_parts(program.held(mesh, placement))


def parts_of_state(config: Recipe) -> tuple[str, ...]:
    """Return the parts of a run's state that may wait on the hosts."""
    has_reference = isinstance(config, RewardFeedback) and config.algorithm != "dynamic"
    return tuple(part for part in OFFLOADABLE if part != "reference" or has_reference)


def advice(config: Any) -> str:
    """Suggest changes that make a run need less memory per device."""
    ways = ["a larger --topology"]
    group = "judge" if isinstance(config, JudgeTraining) else "model"
    if getattr(config, group).remat != "full":
        ways.append(f"--config.{group}.remat=full")
    trains_adapter = bool(config.lora.rank)
    parts = parts_of_state(config)
    if not trains_adapter and set(parts) - set(config.train.offload):
        ways.append(f'--config.train.offload="{parts}"'.replace(", ", ","))
    if isinstance(config, RewardFeedback):
        twice = 2 * config.rl.accumulate
        if config.train.batch_size % twice == 0:
            ways.append(f"--config.rl.accumulate={twice}, if the mesh can share what is left of a batch")
    if not trains_adapter:
        ways.append("LoRA (a _lora variant, or --config.lora.rank)")
    if isinstance(config, RewardFeedback) and config.rl.gradient_true_cfg_scale != 1.0:
        ways.append("--config.rl.gradient_true_cfg_scale=1, which halves what the backward pass keeps")
    if config.train.batch_size > 1:
        ways.append("a smaller --batch, or more of the devices for mesh.tensor")
    return "; or ".join(ways)


def report(name: str, found: Plan, config: Recipe) -> str:
    """Describe a plan in text."""
    seconds = found.seconds()
    mesh = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    peak = "an unknown size" if found.peak_gib is None or math.isinf(found.peak_gib) else f"{found.peak_gib:.1f} GiB"
    verdict = "fits" if found.fits else "does NOT fit"
    least = "" if found.peak is not None else "at least "
    of = "" if not found.phases else " for an update"
    lines = [
        f"{name} on {found.topology.name}, mesh {mesh}, batch {found.batch}",
        f"{verdict}: {least}{peak} of {found.chip.hbm_gib} GiB per device{of}"
        + "".join(f"; {phase.name} ({phase.what}) is too large" for phase in found.too_large)
        + ("" if found.fits else f"; what helps: {advice(config)}")
        + ("; near the limit: check with --exact" if found.is_near else ""),
        *_of_phases(found),
        "",
        "memory per device in an update, GiB" if found.phases else "memory per device, GiB",
    ]
    memory: dict[str, float] = dict(found.held)
    if found.temporaries is not None:
        memory["temporaries"] = found.temporaries
    lines += [_row(part, f"{size / GIB:.3f}") for part, size in memory.items()]
    lines += [_row(f"{part}, on hosts", f"{size / GIB:.3f}") for part, size in found.on_hosts.items()]
    steps = ", ".join(f"{part.replace('_', ' ')} {count:.1f} steps" for part, count in found.trips.items())
    if found.references_made < 1:
        steps += f"; references made in {found.references_made:.0%} of the updates"
    lines += ["", "arithmetic per update, TFLOP on all devices" + (f" ({steps})" if steps else "")]
    lines += [_row(part, f"{flops / 1e12:.1f}") for part, flops in _largest_first(found.cost.parts)]
    if found.collectives is not None:
        lines += ["", "collectives per update, GB sent per device"]
        lines += [
            _row(kind, f"{row['bytes'] / 1e9:.1f} in {row['times']:.0f}")
            for kind, row in by_kind(found.collectives).items()
        ]
    lines += ["", "seconds per update, at least"]
    lines += [_row(limit, f"{value:.3f}") for limit, value in seconds.items()]
    lines.append(_row("images per hour", f"{found.batch * 3600 / seconds['update']:.0f}"))
    lines.append(_row("compile time, s", f"{found.compile_seconds:.0f}"))
    return "\n".join(lines)


def _of_phases(found: Plan) -> list[str]:
    """A row for each phase, and how long a start takes."""
    if not found.phases:
        return []
    machine, size = found.topology.machine, lambda value: f"{value / GIB:.2f}"
    rows = [
        f"  {phase.name:<11}{phase.what:<40}{size(phase.device):>8}{phase.host / 1e9:>9.1f}{phase.seconds:>9.1f}"
        f"  {phase.how}" + ("" if phase.fits(found.topology) or phase.how == "not compiled" else ", too large")
        for phase in found.phases
    ]
    return [
        "",
        f"  {'phase':<51}{'GiB of a':>8}{'GB of a':>9}{'seconds,':>9}",
        f"  {'':<51}{'device':>8}{'host':>9}{'at least':>9}",
        f"  {'there are':<51}{found.chip.hbm_gib:>8}{machine.memory / 1e9:>9.0f}",
        *rows,
        f"  start, without compiling: {found.start_seconds(False):.0f} s, resumed {found.start_seconds(True):.0f} s; a"
        f" checkpoint of {found.checkpoint / 1e9:.1f} GB",
    ]


def _largest_first(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda item: -item[1])


def _row(name: str, value: str) -> str:
    return f"  {name.replace('_', ' '):<20}{value:>14}"
