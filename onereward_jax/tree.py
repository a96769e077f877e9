"""Parameter trees as (path, array) pairs: names, masks, interpolation, counts."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Tree = Any  # a nested mapping with arrays (or shapes) as leaves


def path_name(key_path: tuple) -> str:
    """`jax.tree_util` key path -> "double_blocks/attn/to_q/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """Applies function(path, leaf) to every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def mask(tree: Tree, patterns: Iterable[str]) -> Tree:
    """True at every leaf whose path contains a match of one of the regular expressions."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return map_with_path(lambda path, _: any(pattern.search(path) for pattern in compiled), tree)


def lerp(start: Tree, end: Tree, weight: float | jax.Array) -> Tree:
    """start + weight · (end − start), leaf by leaf."""
    return jax.tree.map(lambda a, b: a + weight * (b - a), start, end)


def cast(tree: Tree, dtype) -> Tree:
    """Every floating-point leaf in the given dtype; other leaves unchanged."""
    is_float = lambda x: jax.numpy.issubdtype(x.dtype, jax.numpy.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)


def count(tree: Tree) -> int:
    """Number of scalars in the tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
    """Bytes of the tree's arrays."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
