"""Parameter trees as (path, array) pairs: names and counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from onereward_jax.errors import UserError

Tree = Any  # a nested mapping with arrays (or shapes) as leaves


def path_name(key_path: tuple) -> str:
    """Write a `jax.tree_util` key path as "double_blocks/attn/to_q/kernel"."""
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
    """Apply function(path, leaf) to every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def mean(trees: Sequence[Tree]) -> Tree:
    """Average the parameters of several models, leaf by leaf.

    Raises:
      UserError: the trees have different leaves or shapes.
    """
    shapes = [{path: leaf.shape for path, leaf in flatten(tree).items()} for tree in trees]
    if any(other != shapes[0] for other in shapes):
        raise UserError("models of different layers or sizes can't be averaged: give checkpoints of one training run")
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def count(tree: Tree) -> int:
    """Count the scalars in the tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
