"""Plans an update on a TPU slice: compiles the program that training runs ahead of time and counts its cost.

Memory is the compiler's report, FLOPs and bytes are counted on the traced program (`cost`), collectives on the compiled
one (`hlo`). The text encoders are not in the update: prompts are encoded beforehand.
"""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from onereward_jax.config.find import find_model
from onereward_jax.config.schema import OFFLOADABLE, RewardFeedback, RewardLearning
from onereward_jax.errors import UserError
from onereward_jax.fill.diffusers_io import read_shift
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import Shift
from onereward_jax.judge import conversation
from onereward_jax.judge.judge import PREPROCESSOR_FILE
from onereward_jax.judge.scorer import JudgeScorer
from onereward_jax.judge.vision import OFFICIAL_SETTINGS, ImageSettings
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.parallel.offload import HOST
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.planning.cost import Cost, cost_of_program
from onereward_jax.planning.hlo import Collective, collectives_of
from onereward_jax.planning.topology import Chip, Topology
from onereward_jax.rl.batch import Batch, batch_shapes
from onereward_jax.rl.build_update import Update, adapters_of, attention_of, computation, make_update
from onereward_jax.rl.profile_scopes import PARTS, REFERENCE, ROLLOUT
from onereward_jax.training.compile import Placement, jit_step
from onereward_jax.training.trainer import check_batch
from onereward_jax.weights.load import param_shapes
from onereward_jax.weights.official_modules import official_module

GIB = 2**30
# Spends the least effort on the last part of compilation, code for one chip, which takes most of the time.
LEAST_EFFORT: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
# Allocations in device memory, in the compiler's own report; the temporaries that JAX reports are up to half as large
# again. "thread-local" allocations belong to computations on the hosts.
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(?!.*(?:, thread-local|, color [1-9]))", re.MULTILINE)
_REPORT = "*buffer-assignment.txt"
# Bytes of every device that the runtime reserves: libtpu 0.0.42 reports 260 to 263 MiB.
_RESERVED = 263 * 2**20
# A full compilation may need this much more than one with the least effort: 1.8 GiB where both were run.
_MARGIN = 2 * GIB
# The two sentences in which the TPU compiler says that a program is too large.
_TOO_LARGE = (
    re.compile(r"Used (?P<needed>[\d.]+)(?P<unit>[KMGT]) of [\d.]+[KMGT] hbm"),
    re.compile(r"required for [^(]*\((?P<needed>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM"),
)


class CompilerError(UserError):
    """The TPU compiler failed for another reason than device memory."""


class Program(NamedTuple):
    """An update without weights; state, frozen and batch are `jax.ShapeDtypeStruct`s.

    Attributes:
      update: see `rl.build_update`.
      state, frozen, batch: arguments of its step.
      trips: scopes of loops that end at a random index -> average number of iterations.
      shares: see `planning.cost.cost_of_program`.
      references_made: share of updates that make their reference images instead of reusing some.
    """

    update: Update
    state: Any
    frozen: Any
    batch: Batch
    trips: dict[str, float]
    shares: dict[str, tuple[float, float]]
    references_made: float

    def trace(self, mesh: Mesh, placement: Placement = Placement()) -> Any:  # noqa: B008 (a tuple)
        """Trace the program that `onereward train` runs on this mesh; `lower().compile()` of it needs no weights."""
        # The arguments' shardings are part of the traced program.
        state = placed(self.state, placement.of_state(self.state, mesh))
        frozen = placed(self.frozen, shardings(self.frozen, mesh))
        batch = placed(self.batch, jax.tree.map(lambda x: batch_sharding(mesh, x.shape[0]), self.batch))
        return jit_step(self.update.step, state, frozen, mesh, placement).trace(state, frozen, batch)


def placed(shapes: Any, places: Any) -> Any:
    """Attach shardings to shapes."""
    at = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return jax.tree.map(at, shapes, places)


def program_of(config: RewardFeedback) -> Program:
    """Build the update of a configuration, reading no more of its models than `official_module` does.

    Raises:
      FileNotFoundError, UserError: a model is unknown, or does not accept the image size.
    """
    if config.model.judge_adapters:
        raise UserError("a plan takes one judge: leave model.judge_adapters empty; each adapter adds a forward pass")
    fields = computation(config)
    directory = find_model(config.model.base)
    family = FluxFill(
        official_module(config.model.base, "transformer", fields | attention_of(config)),
        official_module(config.model.base, "vae", fields),
        read_shift(directory) if directory.is_dir() else Shift(),
    )
    family.token_shape(config.data.resolution, config.data.resolution)  # refuses what doesn't divide
    judge = official_module(config.model.judge, "judge", fields)
    update = make_update(config, family, _scorer(judge, config.model.judge))
    params = (
        param_shapes(family.transformer, "transformer"),
        param_shapes(family.vae, "vae"),
        param_shapes(judge, "judge"),
    )
    masters, frozen = jax.eval_shape(update.params, params[0]), jax.eval_shape(update.frozen, *params)
    full = len(judge.visual.fullatt_block_indexes) / judge.visual.depth
    made = share_of_references_made(config)
    return Program(
        update,
        jax.eval_shape(update.create, masters),
        frozen,
        batch_shapes(config, family),
        expected_trips(config.rl, config.train.batch_size),
        # Windowed and full attention; references made and reused.
        {"visual": (1 - full, full), REFERENCE: (made, 1 - made)},
        made,
    )


def _scorer(model: Any, judge: str) -> JudgeScorer:
    """Join the judge's module with its prefix, answer tokens and image settings."""
    directory = find_model(judge)
    if not directory.is_dir():
        return JudgeScorer(model, conversation.OFFICIAL_PREFIX, conversation.OFFICIAL_ANSWERS, OFFICIAL_SETTINGS)
    from onereward_jax.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    settings = ImageSettings.from_file(directory / PREPROCESSOR_FILE)
    return JudgeScorer(model, conversation.shared_prefix(tokenizer), conversation.answer_ids(tokenizer), settings)


def share_of_references_made(config: RewardFeedback) -> float:
    """Return the share of a run's updates that make their reference images: with a cache those of the first epoch, with
    a maximal age one in every 1 + age."""
    step_config = config.rl
    if step_config.reference_cache:
        return min(1.0, config.data.num_conditions / (config.train.num_steps * config.train.batch_size))
    return 1 / (1 + step_config.reference_max_age)


def expected_trips(config: RewardLearning, batch_size: int) -> dict[str, float]:
    """Return the average Euler steps of the two rollouts: all samples of a batch, and all predictions of a sample, run
    to the latest index among them."""
    draws = config.predictions * (batch_size // config.accumulate if config.index_per_sample else 1)
    count = config.last_index - config.first_index + 1
    latest = config.last_index - math.fsum((k / count) ** draws for k in range(1, count))
    return {REFERENCE: latest if config.matched_reference else float(config.num_steps), ROLLOUT: latest}


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
    """

    topology: str
    chip: Chip
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

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def peak_gib(self) -> float | None:
        """Peak memory of a device, GiB; for a rejected program the size that the compiler reported."""
        found = self.needed if self.peak is None else self.peak
        return None if found is None else found / GIB

    @property
    def fits(self) -> bool:
        return self.peak is not None and self.peak <= self.chip.hbm_gib * GIB

    @property
    def is_near(self) -> bool:
        """Whether a full compilation may exceed the memory."""
        limit = self.chip.hbm_gib * GIB
        return self.fits and not self.exact and self.peak is not None and self.peak > limit - _MARGIN

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
            "topology": self.topology,
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
        }


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """Sum collectives by kind: {kind: {"times": runs per update, "bytes": sent by a device}}."""
    table: dict[str, dict[str, float]] = {}
    for collective in collectives:
        row = table.setdefault(collective.kind, {"times": 0.0, "bytes": 0.0})
        row["times"] += collective.times
        row["bytes"] += collective.times * collective.sent
    return dict(sorted(table.items()))


def plan(config: RewardFeedback, topology: Topology, exact: bool = False) -> Plan:
    """Compile an update for the slice and count its cost.

    Args:
      exact: compile with full effort, as a run does; otherwise with the least effort, which takes a fraction of the
        time and memory and gives somewhat smaller temporaries.

    Raises:
      UserError: the configuration's mesh or batch does not fit the slice.
      FileNotFoundError, UserError: see `program_of`.
      CompilerError: the compiler failed for another reason than memory.
    """
    mesh = make_mesh(**config.mesh, devices=topology.devices)
    check_batch(config, mesh)
    program = program_of(config)
    placement = Placement.of(config)
    traced = program.trace(mesh, placement)
    held, on_hosts = held_bytes(program, mesh, placement)
    found = Plan(
        topology=topology.name,
        chip=topology.chip,
        mesh=dict(mesh.shape),
        batch=config.train.batch_size,
        trips=program.trips,
        held=held,
        on_hosts=on_hosts,
        cost=cost_of_program(traced.jaxpr, trips=program.trips, shares=program.shares, parts=PARTS),
        compile_seconds=0.0,
        references_made=program.references_made,
        exact=exact,
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        try:
            compiled = traced.lower().compile(({} if exact else LEAST_EFFORT) | {"xla_dump_to": directory})
        except jax.errors.JaxRuntimeError as error:
            if "memory space vmem" in str(error):
                raise CompilerError(
                    "a kernel of this update needs more vector memory than a chip has: set smaller"
                    " --config.model.attention_blocks"
                ) from error
            needed = needed_bytes(str(error))
            if needed is None:
                first_line = str(error).partition("\n")[0]
                raise CompilerError(
                    f"the TPU compiler can't compile this update ({first_line}): try another --mesh"
                    + (", or leave --exact out" if exact else "")
                ) from error
            return dataclasses.replace(found, needed=needed, compile_seconds=time.perf_counter() - started)
        memory = compiled.memory_analysis()
        reports = [file.read_text(encoding="utf-8") for file in Path(directory).glob(_REPORT)]
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the donated state's memory is reused
    laid_out = max(
        (sum(map(int, _ALLOCATION.findall(report))) for report in reports),
        default=memory.argument_size_in_bytes + memory.temp_size_in_bytes + results,
    )
    peak = laid_out + memory.generated_code_size_in_bytes + _RESERVED
    return dataclasses.replace(
        found,
        temporaries=peak - memory.argument_size_in_bytes,
        peak=peak,
        collectives=collectives_of(compiled.as_text(), program.trips, program.shares),
        compile_seconds=time.perf_counter() - started,
    )


def held_bytes(program: Program, mesh: Mesh, placement: Placement) -> tuple[dict[str, int], dict[str, int]]:
    """Return {part: bytes on a device} and {part: bytes in host memory, per device}, without empty parts."""

    def bytes_of(tree: Any, places: Any, on_host: bool) -> int:
        leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
        return sum(
            math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, place in leaves
            if (place.memory_kind == HOST) == on_host
        )

    state, frozen = program.state, program.frozen
    places = placement.of_state(state, mesh)
    names = ("params", "ema", "opt_state", "reference", "references")
    parts = {name: (getattr(state, name), getattr(places, name)) for name in names}
    parts |= {name: (tree, shardings(tree, mesh)) for name, tree in vars(frozen).items()}
    parts["batch"] = program.batch, jax.tree.map(lambda x: batch_sharding(mesh, x.shape[0]), program.batch)

    def held(on_host: bool) -> dict[str, int]:
        sizes = {name: bytes_of(*part, on_host) for name, part in parts.items()}
        return {name: size for name, size in sizes.items() if size}

    return held(False), held(True)


def needed_bytes(message: str) -> float | None:
    """Read from a compiler error how many bytes a device would need; None if it is about something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = next((found for pattern in _TOO_LARGE if (found := pattern.search(message))), None)
    if found is None:
        return math.inf
    return float(found["needed"]) * 1024 ** ("KMGT".index(found["unit"]) + 1)


def advice(config: RewardFeedback) -> str:
    """Suggest changes that make an update need less memory per device."""
    ways = ["a larger --topology"]
    if config.model.remat != "full":
        ways.append("--config.model.remat=full")
    trains_adapter = bool(adapters_of(config).rank)
    parts = tuple(part for part in OFFLOADABLE if part != "reference" or config.algorithm == "fixed")
    if not trains_adapter and set(parts) - set(config.train.offload):
        ways.append(f'--config.train.offload="{parts}"'.replace(", ", ","))
    twice = 2 * config.rl.accumulate
    if config.train.batch_size % twice == 0:
        ways.append(f"--config.rl.accumulate={twice}, if the mesh can share what is left of a batch")
    if not trains_adapter:
        ways.append("LoRA (a _lora variant, or --config.lora.rank)")
    if config.rl.gradient_true_cfg_scale != 1.0:
        ways.append("--config.rl.gradient_true_cfg_scale=1, which halves what the backward pass keeps")
    if config.train.batch_size > 1:
        ways.append("a smaller --batch, or more of the devices for mesh.tensor")
    return "; or ".join(ways)


def report(name: str, found: Plan, config: RewardFeedback) -> str:
    """Describe a plan in text."""
    seconds = found.seconds()
    mesh = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    peak = "an unknown size" if found.peak_gib is None or math.isinf(found.peak_gib) else f"{found.peak_gib:.1f} GiB"
    verdict = "fits" if found.fits else "does NOT fit"
    least = "" if found.peak is not None else "at least "
    lines = [
        f"{name} on {found.topology}, mesh {mesh}, batch {found.batch}",
        f"{verdict}: {least}{peak} of {found.chip.hbm_gib} GiB per device"
        + ("" if found.fits else f"; what helps: {advice(config)}")
        + ("; near the limit: check with --exact" if found.is_near else ""),
        "",
        "memory per device, GiB",
    ]
    memory: dict[str, float] = dict(found.held)
    if found.temporaries is not None:
        memory["temporaries"] = found.temporaries
    lines += [_row(part, f"{size / GIB:.3f}") for part, size in memory.items()]
    lines += [_row(f"{part}, on hosts", f"{size / GIB:.3f}") for part, size in found.on_hosts.items()]
    steps = ", ".join(f"{part.replace('_', ' ')} {count:.1f} steps" for part, count in found.trips.items())
    if found.references_made < 1:
        steps += f"; references made in {found.references_made:.0%} of the updates"
    lines += ["", f"arithmetic per update, TFLOP on all devices ({steps})"]
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


def _largest_first(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda item: -item[1])


def _row(name: str, value: str) -> str:
    return f"  {name.replace('_', ' '):<20}{value:>14}"
