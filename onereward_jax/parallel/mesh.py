"""Devices as a mesh `(data, fsdp, tensor)`."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from onereward_jax.errors import UserError

P = PartitionSpec
AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))


def make_mesh(
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    samples: int | None = None,
) -> Mesh:
    """A mesh over all devices; one axis may be −1: what the others leave. With `samples`, both fsdp and tensor may be:
    fsdp is then the most devices that share so many samples evenly, and tensor what it leaves.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if samples and fsdp == tensor == -1 and data > 0 and len(devices) % data == 0:
        fsdp = math.gcd(len(devices) // data, max(samples // data, 1))
    shape = [data, fsdp, tensor]
    if shape.count(-1) > 1:
        raise UserError(f"mesh {dict(zip(AXES, shape, strict=True))} leaves two axes open: set all but one")
    known = int(np.prod([size for size in shape if size != -1]))
    if -1 in shape and known > 0 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        asked = f"{known} devices" + (" or a multiple" if -1 in shape else "")
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} asks for {asked}, but there are {len(devices)}:"
            " change mesh.data, mesh.fsdp or mesh.tensor (-1: what the others leave)"
        )
    # Two of the mesh's axes may share a side of the torus where the sides don't divide otherwise.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_of_all() -> Mesh | None:
    """A mesh that spreads parameters and batches over all devices; None where there is one."""
    return make_mesh() if jax.device_count() > 1 else None


def batch_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """The number of devices that share a batch; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())
