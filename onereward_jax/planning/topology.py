"""Devices of absent TPU slices, for ahead-of-time compilation, and the specifications of each TPU generation."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from onereward_jax.errors import UserError


class Chip(NamedTuple):
    """One device as JAX sees it: a chip, or half a chip on TPU7x.

    Attributes:
      hbm_gib: memory available to a program, GiB; less than the nominal size.
      flops: bfloat16 matrix operations per second.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second of one link in one direction.
      sides: dimensions of a slice, which is a torus.
      devices: of a chip.
      machines: of what sizes they are rented: chips of a machine -> its memory in GB, with the machine of larger slices
        last.
    """

    hbm_gib: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    sides: int = 3
    devices: int = 1
    machines: Mapping[int, int] = {4: 448}


class Machine(NamedTuple):
    """A host of a slice.

    Attributes:
      chips: of it.
      memory: bytes.
    """

    chips: int
    memory: float


# Rates: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}, "system architecture"; a link is the bidirectional
# bandwidth of a chip over 2 directions and its ports (4 on a 2D torus, 6 on a 3D one). Memory: the limit that
# libtpu 0.0.42 names when a program exceeds it. Machines: "VM types" of the v5e page; the others' are to be
# compared with `gcloud compute machine-types describe`.
CHIPS = {
    "v5e": Chip(15.75, 197e12, 819e9, 400e9 / 8, sides=2, machines={1: 48, 8: 384, 4: 192}),
    "v5p": Chip(95.74, 459e12, 2765e9, 1200e9 / 12, machines={4: 448}),
    "v6e": Chip(31.25, 918e12, 1638e9, 800e9 / 8, sides=2, machines={1: 176, 8: 1440, 4: 720}),
    "tpu7x": Chip(94.75, 2307e12 / 2, 7380e9 / 2, 1200e9 / 12, devices=2, machines={4: 960}),
}
_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d{1,9}(x\d{1,9}){1,2})", re.ASCII)
_MOST_CHIPS = 2**14  # of a slice; the largest have 9,216, and libtpu crashes at 2**30


class Topology(NamedTuple):
    """A slice: its name, the specification of a device, and the `devices` for `parallel.mesh.make_mesh`."""

    name: str
    chip: Chip
    devices: list[Any]

    @property
    def machine(self) -> Machine:
        """What its hosts are: one for all of it where there is such a machine."""
        chips, machines = len(self.devices) // self.chip.devices, self.chip.machines
        of_one = chips if chips in machines else list(machines)[-1]
        return Machine(of_one, machines[of_one] * 1e9)

    @property
    def hosts(self) -> int:
        """The number of its hosts."""
        return -(-len(self.devices) // (self.machine.chips * self.chip.devices))

    @property
    def devices_of_host(self) -> list[Any]:
        """The devices of its first host."""
        in_order = sorted(self.devices, key=lambda device: (device.process_index, device.id))
        return in_order[: self.machine.chips * self.chip.devices]


def prepare_environment() -> None:
    """Let the TPU compiler work without a TPU, and beside another process that uses it; call before JAX starts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Otherwise libtpu asks for a TPU host's names and prints that there are none. The compiler ignores the values.
    for name, value in (("ACCELERATOR_TYPE", "v5p-8"), ("WORKER_HOSTNAMES", "localhost"), ("WORKER_ID", "0")):
        os.environ.setdefault(f"TPU_{name}", value)


def open_topology(name: str) -> Topology:
    """Open a slice by a name like "v5p:2x2x4", the generation and the chips along each side.

    Raises:
      UserError: there is no such slice, or no TPU compiler is installed.
    """
    found = _NAME.fullmatch(name)
    if found is None or found["chip"] not in CHIPS:
        raise UserError(
            f"there is no topology {name!r}: give a generation ({', '.join(CHIPS)}) and its sides, such as v5p:2x2x4"
        )
    chip, sides = CHIPS[found["chip"]], 1 + found["shape"].count("x")
    if sides != chip.sides:
        raise UserError(f"a slice of {found['chip']} has {chip.sides} sides, not {sides} as {name}: write all of them")
    if math.prod(map(int, found["shape"].split("x"))) > _MOST_CHIPS:
        raise UserError(f"a slice has at most {_MOST_CHIPS:,} chips, which {name} exceeds: choose shorter sides")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is missing: pip install 'onereward-jax[tpu]' (no TPU is needed)")
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # the compiler's errors have no type of their own; it alone is called here
        why = str(error).removeprefix("INVALID_ARGUMENT: ").partition("\n")[0]
        raise UserError(f"the TPU compiler knows no topology {name!r} ({why}): choose other sides") from None
    return Topology(name, chip, list(devices))
