"""Where a batch and a program's activations lie on a mesh."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from onereward_jax.parallel.mesh import BATCH, P, batch_shards
from onereward_jax.parallel.sharding_rules import VECTOR_FEATURES

Axes = tuple[str, ...] | None


def batch_sharding(mesh: Mesh, samples: int | None = None) -> NamedSharding:
    """The leading axis of every array of a batch, over `data` and `fsdp`; of so many `samples`, over what divides
    them."""
    return NamedSharding(mesh, BATCH if samples is None else P(activation_axes(mesh, samples)[0]))


def activation_axes(mesh: Mesh | AbstractMesh, samples: int, tokens: int = 0) -> tuple[Axes, Axes]:
    """Which axes share a batch's samples, and which the tokens of each.

    As many of `data` and `fsdp` as divide the samples; where there are fewer samples than devices, the tokens are split
    over what is left of the two, if that divides them.
    """
    ways = (("data", "fsdp"), ("fsdp",), ("data",), ())
    size = lambda axes: int(np.prod([mesh.shape[axis] for axis in axes]))
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


def shard_batch(x: jax.Array, splits_tokens: bool = False) -> jax.Array:
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
    """Pins (B, N, D) tokens to where their samples lie, undivided, where `shard_batch` divides them.

    For the two ends of a model that splits tokens. The partitioner would go on and split pictures in the autoencoder,
    and there it made other pictures of them (jax 0.10.2, on CPU); tests/fill/test_fill.py would see it.
    """
    return shard_batch(x) if tokens_are_split(x) else x


def shard_like_weights(x: jax.Array) -> jax.Array:
    """Pins the trailing axis, features, over `fsdp` and `tensor`, where the rows of the kernel lie that they meet next;
    nothing outside an update on a mesh. For a few vectors a sample, far smaller than that kernel: it stays there."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[-1] % (mesh.shape["fsdp"] * mesh.shape["tensor"]):
        return x
    return jax.lax.with_sharding_constraint(x, P(*[None] * (x.ndim - 1), VECTOR_FEATURES))
