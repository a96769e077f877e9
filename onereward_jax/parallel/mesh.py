"""Devices as a mesh `(data, fsdp, tensor)`, and which parameter lies where.

A model's sharding is one ordered list of (path regex, spec): the first match wins. The same list places
parameters, EMA, reference and optimiser state, since their paths end alike.
"""

import functools
import re
import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from onereward_jax import tree as trees

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[str, PartitionSpec]]
Axes = tuple[str, ...] | None

P = PartitionSpec
BATCH = P(("data", "fsdp"))
VECTOR_FEATURES = ("fsdp", "tensor")
HOST = "pinned_host"

# Kernels are (..., in, out). Products that open a block (attention's queries, keys and values, the first of an MLP)
# split their outputs over `tensor`, those that close it split their inputs, so a block needs one reduction. A leading
# layer axis stays whole.
# An adapter's factors, (..., in, r) and (..., r, out), split the side that they share with the kernel as it does; where
# that is over `tensor`, their rank is split over `fsdp`.
_OPENING = (
    r"(^|/)(to_[qkv]|add_[qkv]_proj|[qkv]_proj|[qkv]|qkv|wi_[01]|fc1|gate_proj|up_proj|proj_mlp|net_0_proj|mlp_0)"
)
_CLOSING = r"(^|/)(to_out_0|to_add_out|o_proj|o|attn/proj|wo|fc2|down_proj|out_proj|proj_out|net_2|mlp_2)"
TRANSFORMER_RULES: Rules = (
    (rf"{_OPENING}/(kernel|lora_b)$", P(..., "fsdp", "tensor")),
    (rf"{_OPENING}/lora_a$", P(..., "fsdp", None)),
    (rf"{_CLOSING}/(kernel|lora_a)$", P(..., "tensor", "fsdp")),
    (rf"{_CLOSING}/lora_b$", P(..., None, "fsdp")),
    (r"(embedding|embed_tokens)$", P("tensor", "fsdp")),
    # Convolutions are small beside the pictures that pass through them.
    (r"(^|/)conv[^/]*/kernel$", P()),
    # A quarter of the transformer, its modulations, and the judge's output matrix: they meet few vectors a sample
    # (`go_to_weights`).
    (r"(^|/)(norm[^/]*/linear|lm_head)/kernel$", P(..., VECTOR_FEATURES, None)),
    (r"(kernel|lora_[ab])$", P(..., "fsdp", None)),
    (r"(^|/)references$", BATCH),
    (r".*", P()),
)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one axis may be −1: what the others leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    if shape.count(-1) > 1:
        raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))} leaves two axes open: set all but one")
    known = int(np.prod([size for size in shape if size != -1]))
    if -1 in shape and known > 0 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        asked = f"{known} devices" + (" or a multiple" if -1 in shape else "")
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} asks for {asked}, but there are {len(devices)}:"
            " change mesh.data, mesh.fsdp or mesh.tensor (-1: what the others leave)"
        )
    # Two of the mesh's axes may share a side of the torus where the sides don't divide otherwise.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def spec_for(rules: Rules, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The spec of one array: `...` stands for its leading axes; an axis that does not divide stays whole."""
    entries = list(next((spec for pattern, spec in rules if re.search(pattern, path)), P()))
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [None] * max(len(shape) - len(entries) + 1, 0)
    if len(entries) > len(shape):
        return P()  # a scalar or vector (an optimiser's count, say) under a matrix's name

    def size(axes):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        return int(np.prod([mesh.shape[name] for name in names]))

    return P(*[axes if extent % size(axes) == 0 else None for axes, extent in zip(entries, shape, strict=False)])


def shardings(tree: trees.Tree, mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> trees.Tree:
    """A `NamedSharding` for every leaf of a tree of arrays or of `jax.eval_shape`."""
    return trees.map_with_path(lambda path, leaf: sharding_of(path, leaf.shape, mesh, rules), tree)


def sharding_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> NamedSharding:
    """Where one parameter lies."""
    return NamedSharding(mesh, spec_for(rules, path, shape, mesh))


def warn_of_unsharded(tree: trees.Tree, mesh: Mesh, least_mib: float, rules: Rules = TRANSFORMER_RULES) -> None:
    """Names the arrays of `least_mib` MiB and more that every device of a mesh would hold whole, though its `fsdp` and
    `tensor` are there to split them."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    whole = {
        path: leaf.size * leaf.dtype.itemsize / 2**20
        for path, leaf in trees.flatten(tree).items()
        if sharding_of(path, leaf.shape, mesh, rules).is_fully_replicated
    }
    if large := [f"{path} ({mib:.0f} MiB)" for path, mib in whole.items() if mib >= least_mib]:
        warnings.warn(
            f"every device holds the whole of {', '.join(large)}: choose mesh.fsdp and mesh.tensor that divide its"
            " sides, or raise train.max_unsharded_mib",
            stacklevel=2,
        )


def batch_sharding(mesh: Mesh, samples: int | None = None) -> NamedSharding:
    """The leading axis of every array of a batch, over `data` and `fsdp`; of so many `samples`, over what divides
    them."""
    return NamedSharding(mesh, BATCH if samples is None else P(activation_axes(mesh, samples)[0]))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Among how many devices a batch is divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def activation_axes(mesh: Mesh | AbstractMesh, samples: int, tokens: int = 0) -> tuple[Axes, Axes]:
    """Which axes share a batch's samples, and which the tokens of each.

    As many of `data` and `fsdp` as divide the samples; where there are fewer samples than devices, the tokens are split
    over what is left of the two, if that divides them.
    """
    ways = (("data", "fsdp"), ("fsdp",), ("data",), ())
    size = lambda axes: int(np.prod([mesh.shape[axis] for axis in axes]))  # noqa: E731
    of_samples = max((way for way in ways if samples % size(way) == 0), key=size)
    left = tuple(axis for axis in ways[0] if axis not in of_samples and mesh.shape[axis] > 1)
    return of_samples or None, left if left and tokens and tokens % size(left) == 0 else None


def can_share(mesh: Mesh | AbstractMesh, samples: int, splits_tokens: bool = True) -> bool:
    """Whether every device of `data` and `fsdp` has its part of so many samples: each as many; or, of a model that
    splits tokens, each sample as many devices."""
    if samples % batch_shards(mesh) == 0:
        return True
    of_samples, _ = activation_axes(mesh, samples)
    return splits_tokens and samples == int(np.prod([mesh.shape[axis] for axis in of_samples or ()]))


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh that an update is traced for, which may be of devices that are not here; else
    of the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def stay_with_samples(x: jax.Array, splits_tokens: bool = False) -> jax.Array:
    """Pins (B, ...) to where its samples lie, and with `splits_tokens` (B, N, D) to a device's share of the tokens
    (`activation_axes`); nothing outside an update on a mesh (`jit_step`).

    At the start of every block: left alone, the partitioner may leave a block's weights where they are and sum its
    activations over `fsdp`, and at full size those are many times larger. And at the end of a stack of blocks: where
    streams that were pinned inside two loops alone met in a concatenation, XLA (of jax 0.10.2) made another product of
    them on 2 x 2 x 2 devices; tests/runs/test_packaged.py would see it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    samples, tokens = activation_axes(mesh, x.shape[0], x.shape[1] if splits_tokens else 0)
    return jax.lax.with_sharding_constraint(x, P(samples, tokens) if splits_tokens else P(samples))


def tokens_are_split(x: jax.Array) -> bool:
    """Whether several devices share the N tokens of a sample of (B, N, ...), in a model that splits them."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and activation_axes(mesh, *x.shape[:2])[1] is not None


def keep_whole(x: jax.Array) -> jax.Array:
    """Pins (B, N, D) tokens to where their samples lie, undivided, where `stay_with_samples` divides them.

    For the two ends of a model that splits tokens. The partitioner would go on and split pictures in the autoencoder,
    and there it made other pictures of them (jax 0.10.2, on CPU); tests/fill/test_fill.py would see it.
    """
    return stay_with_samples(x) if tokens_are_split(x) else x


def go_to_weights(x: jax.Array) -> jax.Array:
    """Pins the trailing axis, features, over `fsdp` and `tensor`, where the rows of the kernel lie that they meet next;
    nothing outside an update on a mesh. For a few vectors a sample, far smaller than that kernel: it stays there."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[-1] % (mesh.shape["fsdp"] * mesh.shape["tensor"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * (x.ndim - 1), VECTOR_FEATURES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def on_hosts(shapes: trees.Tree, places: trees.Tree) -> trees.Tree:
    """These shardings, in the memory of the devices' hosts for what has two axes and more."""
    move = lambda leaf, place: place.with_memory_kind(HOST) if len(leaf.shape) > 1 else place  # noqa: E731
    return jax.tree.map(move, shapes, places)


def is_on_host(leaf: jax.Array) -> bool:
    """Whether an array is in the hosts' memory (`on_hosts`)."""
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def any_on_hosts(tree: trees.Tree) -> bool:
    return any(map(is_on_host, jax.tree.leaves(tree)))


def to_devices(tree: trees.Tree, after: trees.Tree = ()) -> trees.Tree:
    """Arrays in the hosts' memory brought to the devices, where anything can be computed; others as they are. They come
    `after` these arrays are there, so that they take no room on the devices before."""
    leaves, structure = jax.tree.flatten(tree)
    waiting = [leaf for leaf in leaves if is_on_host(leaf)]
    if waiting and jax.tree.leaves(after):
        waiting, _ = jax.lax.optimization_barrier((waiting, after))
    there = iter(jax.device_put(waiting, jax.memory.Space.Device))
    return jax.tree.unflatten(structure, [next(there) if is_on_host(leaf) else leaf for leaf in leaves])


def traced_for(mesh: Mesh | AbstractMesh | None, function: Callable) -> Callable:
    """The function as part of a mesh's program: its activations are pinned, and its attention is that of the mesh's
    devices. None leaves it as it is."""
    if mesh is None:
        return function

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced
