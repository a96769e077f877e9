"""Counts a program's operations and memory traffic on its jaxpr: loops as often as they run, kernels included.

XLA's own count takes a loop's body once and leaves kernels out. Counted here:

  FLOPs   multiplications and additions in matrix products and convolutions, without those on padding; one per
          output number for all other arithmetic
  bytes   operands and results of matrix products, convolutions, gathers, scatters and sorts, and the program's
          arguments and results: the traffic that remains when everything else is fused into them

Both are totals over all devices.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from onereward_jax.errors import UserError

# Primitives that move or create numbers without arithmetic.
_FREE = frozenset(
    (
        *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "split", "concatenate", "pad", "rev"),
        *("slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "select_n", "iota", "copy", "copy_p"),
        *("convert_element_type", "bitcast_convert_type", "stop_gradient", "optimization_barrier", "name"),
        *("sharding_constraint", "device_put", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor"),
        *("random_bits", "random_wrap", "random_unwrap", "random_seed", "random_fold_in", "threefry2x32"),
        *("get", "swap", "program_id", "num_programs"),  # in kernels
        *("shift_left", "shift_right_logical", "argmax", "argmin", "sort", "top_k"),
    )
)
_TRAFFIC = frozenset(("gather", "scatter", "scatter-add", "dynamic_update_slice", "sort", "top_k"))
_REDUCTIONS = ("reduce_", "cum")
_IN_KERNEL = "/pallas_call"
# Primitives with a jaxpr among their parameters that is not called like a function.
_CALLS_NOTHING = (*_TRAFFIC, "reduce", "reduce_window", "select_and_scatter_add")


@dataclasses.dataclass
class Cost:
    """FLOPs and bytes of a program; `parts` has the FLOPs by part."""

    flops: float = 0.0
    bytes: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for part, flops in other.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + times * flops


def cost_of(function: Callable, *arguments: Any, **options: Any) -> Cost:
    """Count the cost of one call of a function, without computing anything.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`s.
      options: options of `cost_of_program`.
    """
    return cost_of_program(jax.make_jaxpr(function)(*arguments), **options)


def cost_of_program(
    program: ClosedJaxpr,
    *,
    trips: Mapping[str, float] | None = None,
    shares: Mapping[str, Sequence[float]] | None = None,
    parts: Sequence[str] = (),
) -> Cost:
    """Count the cost of a program.

    Args:
      trips: name of a `jax.named_scope` -> number of iterations of a loop inside it whose length is not static.
      shares: name of a scope -> how often each branch of a `cond` inside it is taken, as shares; for any other `cond`
        the most expensive branch counts.
      parts: names of scopes whose FLOPs are counted separately; the rest is "other".

    Raises:
      UserError: a loop of unknown length is in no scope of `trips`.
    """
    count = _Count(dict(trips or {}), dict(shares or {}), tuple(parts))
    cost = count.of(program.jaxpr, "")
    ends = [variable.aval for variable in program.jaxpr.invars] + list(program.out_avals)
    cost.bytes += sum(_bytes(aval) for aval in ends)
    return cost


class _Count:
    def __init__(self, trips: dict[str, float], shares: dict[str, Sequence[float]], parts: tuple[str, ...]):
        self._trips, self._shares, self._parts = trips, shares, parts
        self._known: dict[tuple[int, str], tuple[Jaxpr, Cost]] = {}

    def of(self, jaxpr: Jaxpr, scope: str) -> Cost:
        """Count one pass through a program inside a scope."""
        key = (id(jaxpr), scope)
        if key not in self._known:
            total = Cost()
            for equation in live(jaxpr):
                total.add(self._equation(equation, f"{scope}/{equation.source_info.name_stack}"))
            self._known[key] = (jaxpr, total)  # keeps the program alive, so that its id is not reused
        return self._known[key][1]

    def _equation(self, equation: Any, scope: str) -> Cost:
        name, parameters = equation.primitive.name, equation.params
        if name == "scan":
            inner, times = self.of(parameters["jaxpr"].jaxpr, scope), parameters["length"]
        elif name == "while":
            inner, times = Cost(), self._named(self._trips, scope)
            if times is None:
                raise UserError(f"a loop of unknown length is in {scope or 'no scope'}: give its number of iterations")
            for part in ("cond_jaxpr", "body_jaxpr"):
                inner.add(self.of(parameters[part].jaxpr, scope))
        elif name == "cond":
            branches = [self.of(branch.jaxpr, scope) for branch in parameters["branches"]]
            # A scope's shares are for its own branches, not for those inside a kernel.
            shares = None if _IN_KERNEL in scope else self._named(self._shares, scope)
            inner, times = Cost(), 1
            if shares is None or len(shares) != len(branches):
                inner.add(max(branches, key=lambda cost: cost.flops))
            else:
                for share, branch in zip(shares, branches, strict=True):
                    inner.add(branch, share)
        elif name == "pallas_call":
            inner, times = self._kernel(parameters, scope), 1
        elif name not in _CALLS_NOTHING and (inside := list(programs_in(parameters.values()))):
            # The inner program of `shard_map` is one shard; every device runs one.
            inner, times = Cost(), parameters["mesh"].size if name == "shard_map" else 1
            # A custom derivative comes with several programs; the first is the function itself.
            for program in inside[:1] if name.startswith("custom_") else inside:
                inner.add(self.of(program, scope))
        else:
            flops = _flops(name, equation)
            return Cost(flops, _traffic(name, equation), self._part(scope, flops))
        total = Cost()
        total.add(inner, times)
        return total

    def _kernel(self, parameters: Mapping[str, Any], scope: str) -> Cost:
        """Take a kernel's own estimate, or else count its program once per cell of its grid.

        A block moves between memory and kernel when its index changes from one cell to the next.
        """
        if (estimate := parameters.get("cost_estimate")) is not None:
            return Cost(float(estimate.flops), float(estimate.bytes_accessed), self._part(scope, estimate.flops))
        mapping = parameters["grid_mapping"]
        cost = Cost()
        cost.add(self.of(parameters["jaxpr"], scope + _IN_KERNEL), math.prod(mapping.grid))
        cost.bytes = 0.0
        for block in mapping.block_mappings:
            place = block.index_map_jaxpr.jaxpr
            read = {id(variable) for equation in live(place) for variable in equation.invars}
            read |= {id(variable) for variable in place.outvars}
            axes = [axis for axis, index in enumerate(place.invars[: len(mapping.grid)]) if id(index) in read]
            cost.bytes += math.prod(mapping.grid[: max(axes, default=-1) + 1]) * _bytes(block.block_aval.inner_aval)
        return cost

    def _part(self, scope: str, flops: float) -> dict[str, float]:
        part = next((part for part in self._parts if part in scope), "other")
        return {part: float(flops)} if flops else {}

    @staticmethod
    def _named(values: Mapping[str, Any], scope: str) -> Any:
        return next((value for name, value in values.items() if re.search(rf"\b{re.escape(name)}\b", scope)), None)


def live(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations whose results are used; the compiler drops the others."""
    names = lambda variables: {variable for variable in variables if not isinstance(variable, Literal)}
    read, kept = names(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not read.isdisjoint(equation.outvars):
            read |= names(equation.invars)
            kept.append(equation)
    return kept


def programs_in(values: Any) -> Iterator[Jaxpr]:
    """Find the programs among an equation's parameters."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple):
            yield from programs_in(value)


def _flops(name: str, equation: Any) -> float:
    out: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted) * out.size
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name in _FREE or out is None or not hasattr(out, "size"):
        return 0.0
    if name.startswith(_REDUCTIONS):
        return float(equation.invars[0].aval.size)
    return float(out.size)


def _convolution(equation: Any) -> float:
    """Return 2 · (pairs of an output and a kernel position that meet an input element, neither padding nor a dilation
    hole) · samples · input features · output features."""
    left, right = (variable.aval for variable in equation.invars[:2])
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    pairs = 1
    for axis, (low, _), stride, base, window in zip(
        range(len(numbers.lhs_spec) - 2),
        parameters["padding"],
        parameters["window_strides"],
        parameters["lhs_dilation"],
        parameters["rhs_dilation"],
        strict=True,
    ):
        size = left.shape[numbers.lhs_spec[2 + axis]]
        outputs = equation.outvars[0].aval.shape[numbers.out_spec[2 + axis]]
        taps = right.shape[numbers.rhs_spec[2 + axis]]
        # The gradient of a kernel is a convolution with a long kernel and many outputs, so arrays, not loops.
        positions = np.arange(outputs)[:, None] * stride + np.arange(taps)[None, :] * window - low
        pairs *= int(((positions >= 0) & (positions < (size - 1) * base + 1) & (positions % base == 0)).sum())
    samples, features_out = left.shape[numbers.lhs_spec[0]], right.shape[numbers.rhs_spec[0]]
    features_in = right.shape[numbers.rhs_spec[1]]  # per group
    return 2.0 * pairs * samples * features_in * features_out / parameters["batch_group_count"]


def _traffic(name: str, equation: Any) -> float:
    if name in ("dot_general", "conv_general_dilated"):
        return float(sum(_bytes(variable.aval) for variable in itertools.chain(equation.invars, equation.outvars)))
    if name in ("dynamic_update_slice", "scatter", "scatter-add"):  # the written part, in place
        return 2.0 * _bytes(equation.invars[1 if name == "dynamic_update_slice" else 2].aval)
    if name in _TRAFFIC:
        return 2.0 * sum(_bytes(variable.aval) for variable in equation.outvars)
    return 0.0


def _bytes(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    return aval.size * dtype.itemsize if dtype is not None and hasattr(aval, "size") else 0
