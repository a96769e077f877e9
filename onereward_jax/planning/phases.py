"""Adds up the phases of a run: bytes of a device and of a host, seconds."""

import dataclasses
import math
from typing import Any

import jax

from onereward_jax.parallel.offload import HOST
from onereward_jax.planning.compiling import Compiled
from onereward_jax.planning.lives import Held, Work, itemsize
from onereward_jax.planning.topology import Topology

GIB = 2**30
# What a process holds beside its arrays: at most while it compiles, 12.1 GB with full effort for the update of
# FLUX.1-Fill on v5p:2x2x4 (docs/lab-notes/scale.md).
PROCESS_BYTES = 14e9


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted.

    Attributes:
      disk: bytes a second that a host reads from where the files are, and writes there.
      prompts: that are encoded before the training.
    """

    disk: float = 1e9
    prompts: int = 10_000


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes:
      name, what: see `lives.Work`.
      how: "compiled"; "counted" where it runs no program; or "not compiled", and `device` is what is held.
      held: part -> bytes on a device all the while.
      temporaries: bytes beside them, of a device; None if the compiler rejected the program, or did not see it.
      device: peak bytes of a device; without `temporaries`, at least.
      host: peak bytes of a host; parts of it are in `on_host`.
      seconds: at least, by the rates of chip and disk.
      read, written: bytes of files, of a host.
    """

    name: str
    what: str
    how: str
    held: dict[str, int]
    on_host: dict[str, float]
    temporaries: int | None
    device: float
    host: float
    seconds: float
    read: float
    written: float
    compile_seconds: float = 0.0

    def fits(self, topology: Topology) -> bool:
        """Whether device and host have room for it."""
        on_device = self.temporaries is not None and self.device <= topology.chip.hbm_gib * GIB
        return on_device and self.host <= topology.machine.memory

    def to_json(self) -> dict[str, Any]:
        gib = lambda size: None if size is None else round(size / GIB, 3)
        return {
            "name": self.name,
            "what": self.what,
            "how": self.how,
            "device_gib": gib(self.device),
            "host_gib": gib(self.host),
            "held_gib": {part: gib(size) for part, size in self.held.items()},
            "on_host_gib": {part: gib(size) for part, size in self.on_host.items()},
            "temporaries_gib": gib(self.temporaries),
            "seconds": self.seconds,
            "read_gb": self.read / 1e9,
            "written_gb": self.written / 1e9,
            "compile_seconds": round(self.compile_seconds, 1),
        }


def phase_of(
    work: Work, compiled: Compiled | None, seconds: float, topology: Topology, assumptions: Assumptions
) -> Phase:
    """Add up a phase.

    Args:
      compiled: its program; None if it has none, or it was not compiled.
      seconds: of its programs.
    """
    local = len(topology.devices_of_host)
    held, on_hosts = bytes_of_parts(work.held)
    on_host = {part: size * local for part, size in on_hosts.items()} | dict(work.on_host)
    total = sum(held.values())
    if compiled is None:
        how, temporaries = ("counted", 0) if work.trace is None else ("not compiled", None)
    else:
        how, temporaries = "compiled", compiled.temporaries
    needed = compiled.needed if compiled and compiled.needed and math.isfinite(compiled.needed) else 0.0
    device = max(total + (temporaries or 0), needed)
    return Phase(
        name=work.name,
        what=work.what,
        how=how,
        held=held,
        on_host=on_host,
        temporaries=temporaries,
        device=device,
        host=PROCESS_BYTES + sum(on_host.values()),
        seconds=seconds + (work.read + work.written) / assumptions.disk,
        read=work.read,
        written=work.written,
        compile_seconds=compiled.seconds if compiled else 0.0,
    )


def bytes_of_parts(held: Held) -> tuple[dict[str, int], dict[str, int]]:
    """Return {part: bytes on a device} and {part: bytes in host memory, per device}, without empty parts."""

    def bytes_of(tree: Any, on_host: bool) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize(leaf)
            for leaf in jax.tree.leaves(tree)
            if (leaf.sharding.memory_kind == HOST) == on_host
        )

    def of(on_host: bool) -> dict[str, int]:
        sizes = {name: bytes_of(tree, on_host) for name, tree in held.items()}
        return {name: size for name, size in sizes.items() if size}

    return of(False), of(True)
