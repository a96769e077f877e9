"""Means over the parts of an update, one after the other: the memory is that of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mean_over_micro_batches(function: Callable[[Any], tuple[Any, Any]], batch: Any, parts: int) -> tuple[Any, Any]:
    """`function(batch) -> (sums and means, rows)`: the first's mean over micro-batches, all of the second."""
    if parts == 1:
        return function(batch)
    mean, rows = _mean_and_rows(function, _micro_batches(batch, parts))
    return mean, jax.tree.map(_whole_batch, rows)


def mean_over(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Mean of a function over the inputs' leading axis."""
    return _mean_and_rows(lambda part: (function(part), None), inputs)[0]


def sum_over(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Sum of a function over the inputs' leading axis."""
    if jax.tree.leaves(inputs)[0].shape[0] == 1:
        return function(jax.tree.map(lambda x: x[0], inputs))
    return _sum_and_rows(lambda part: (function(part), None), inputs)[0]


def _micro_batches(batch: Any, parts: int) -> Any:
    """A batch's arrays (B, ...) as (parts, B/parts, ...).

    Sample i goes to micro-batch i mod parts, so that a batch sharded in contiguous pieces leaves each
    device a piece of every micro-batch.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _whole_batch(parts: jax.Array) -> jax.Array:
    """The inverse of `_micro_batches`, of an array."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def _mean_and_rows(function: Callable[[Any], tuple[Any, Any]], inputs: Any) -> tuple[Any, Any]:
    """Over the inputs' leading axis: the mean of the function's first result; and all of its second, stacked."""
    total, rows = _sum_and_rows(function, inputs)
    count = jax.tree.leaves(inputs)[0].shape[0]
    return jax.tree.map(lambda x: x / count, total), rows


def _sum_and_rows(function: Callable[[Any], tuple[Any, Any]], inputs: Any) -> tuple[Any, Any]:
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        result, rows = function(part)
        return jax.tree.map(jnp.add, total, result), rows

    return jax.lax.scan(add, zeros, inputs)
