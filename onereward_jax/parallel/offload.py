"""Arrays in the memory of the devices' hosts, and on their way to the devices."""

import jax

from onereward_jax import tree as trees

HOST = "pinned_host"


def on_hosts(shapes: trees.Tree, places: trees.Tree) -> trees.Tree:
    """These shardings, in the memory of the devices' hosts for what has two axes and more."""
    move = lambda leaf, place: place.with_memory_kind(HOST) if len(leaf.shape) > 1 else place
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
