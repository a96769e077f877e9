"""Official tensor names <-> parameter paths.

A model's table is an ordered tuple of `Rule`s; the first whose `path` matches the whole parameter path
wins. Paths have no layer index: a stacked parameter has a leading layer axis, and its official name
has `{layer}` in place of the index, so one rule reads and writes all layers.

    Rule(r"transformer_blocks/attn/(to_q|to_k)/kernel", r"transformer_blocks.{layer}.attn.\\1.weight", "linear")
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax import tree as trees
from onereward_jax.parallel import hosts

# "linear": (out, in, ...) on disk, (..., in, out) here: torch's Linear and Flax's Dense.
# "conv": OIHW on disk, HWIO here.
Layout = Literal["same", "linear", "conv"]


class Rule(NamedTuple):
    path: str  # regular expression for the whole parameter path
    name: str  # official name; \1 is a group of the expression, {layer} the index on the leading axis
    layout: Layout = "same"


Table = tuple[Rule, ...]
# (path, shape, function that reads a slice of the parameter) -> the parameter, in host or device memory.
Place = Callable[[str, tuple[int, ...], Callable[[tuple[slice, ...]], np.ndarray]], Any]


def _to_ours(array: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == "linear":
        return np.moveaxis(array, 0, -1)
    if layout == "conv":
        return np.transpose(array, (2, 3, 1, 0))
    return array


def _to_official(array: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == "linear":
        return np.moveaxis(array, -1, 0)
    if layout == "conv":
        return np.transpose(array, (3, 2, 0, 1))
    return array


def _official_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    order = _to_official(np.empty(range(len(shape))), layout).shape  # no array of that shape, which may be too large
    return tuple(shape[axis] for axis in order)


def _match(table: Table, path: str) -> tuple[str, Layout]:
    for rule in table:
        found = re.fullmatch(rule.path, path)
        if found:
            return found.expand(rule.name), rule.layout
    raise KeyError(f"no rule maps the parameter {path}: add it to the model's table")


def official_name(table: Table, path: str) -> str:
    """Return a parameter's name on disk, with `{layer}` in place of a stacked layer's index."""
    return _match(table, path)[0]


def official_shapes(table: Table, tree: trees.Tree) -> dict[str, tuple[int, ...]]:
    """Return {official name: shape on disk} for a tree of arrays or `jax.ShapeDtypeStruct`s."""
    shapes = {}
    for path, leaf in trees.flatten(tree).items():
        name, layout = _match(table, path)
        if "{layer}" in name:
            for layer in range(leaf.shape[0]):
                shapes[name.format(layer=layer)] = _official_shape(leaf.shape[1:], layout)
        else:
            shapes[name] = _official_shape(leaf.shape, layout)
    return shapes


def from_official(
    table: Table,
    shapes: trees.Tree,
    read: Callable[[str], np.ndarray],
    dtype: np.dtype | None = None,
    place: Place | None = None,
) -> trees.Tree:
    """Build the parameter tree, one parameter at a time.

    Args:
      table: the model's rules.
      shapes: tree of `jax.ShapeDtypeStruct`s, from `jax.eval_shape` of the model's init.
      read: official name -> array as on disk, which may be a view of the file.
      dtype: dtype of the parameters; as on disk if None.
      place: makes each parameter; None copies it whole into host memory.

    Returns:
      The tree of parameters that `place` returned, or of NumPy arrays.
    """

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> Any:
        name, layout = _match(table, path)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            stacked = "{layer}" in name
            layers = range(shape.shape[0])[index[0]] if stacked else range(1)
            view = lambda layer: _to_ours(read(name.format(layer=layer)), layout)[index[1:] if stacked else index]
            first = view(layers[0])
            array = np.empty((len(layers), *first.shape), dtype or first.dtype)
            for number, layer in enumerate(layers):
                _assign(array[number], view(layer))
            return array if stacked else array[0]

        return part((slice(None),) * len(shape.shape)) if place is None else place(path, shape.shape, part)

    return trees.map_with_path(leaf, shapes)


def _assign(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`."""
    if target.dtype == source.dtype == jnp.bfloat16:  # NumPy is slow with dtypes that are not its own
        target, source = target.view(np.uint16), source.view(np.uint16)
    target[...] = source


def official_tensors(
    table: Table, tree: trees.Tree, dtype: np.dtype | None = None
) -> dict[str, Callable[[], np.ndarray]]:
    """Return {official name: function that returns the array as on disk}, gathered and cast one tensor at a time.

    Of several processes, all call the functions, in one order, and all but the primary get None: see
    `hosts.fetch_to_primary`.
    """
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for path, leaf in trees.flatten(tree).items():
        name, layout = _match(table, path)
        if "{layer}" in name:
            for layer in range(leaf.shape[0]):
                tensors[name.format(layer=layer)] = functools.partial(_layer, leaf, layer, layout, dtype)
        else:
            tensors[name] = functools.partial(_layer, leaf, None, layout, dtype)
    return tensors


def _layer(leaf: Any, index: int | None, layout: Layout, dtype: np.dtype | None) -> Any:
    array = hosts.fetch_to_primary(leaf, index, dtype)
    return None if array is None else np.ascontiguousarray(_to_official(array, layout))


def to_official(table: Table, tree: trees.Tree, dtype: np.dtype | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over (official name, array as on disk) for every tensor in the tree: see `official_tensors`."""
    return ((name, read()) for name, read in official_tensors(table, tree, dtype).items())
