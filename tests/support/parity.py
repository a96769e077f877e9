"""Comparison of a Flax module with the torch module it must equal: outputs, gradients, completeness of the mapping.

A parity test reads:

    theirs = compare.randomize(diffusers.AutoencoderKL(...))         # random, none left at 0 or 1
    params = compare.params_from_torch(theirs, TABLE, ours, inputs)  # fails on a tensor that one side lacks
    compare.assert_same(
        ours, params, inputs,
        theirs, lambda m, image: m.decode(image).sample, torch_inputs, table=TABLE, method="decode",
    )

Both sides compute in float32 on one thread of torch.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch

from onereward_jax import tree as trees
from onereward_jax.weights.names import name_rules

TOLERANCE = 1e-5
# A tensor's gradient whose norm is below this share of the global norm is compared to that share instead.
GRADIENT_FLOOR = 1e-5
# Official names of tensors whose gradient is zero in truth, and has no relative error: an attention's softmax does not
# see the bias of its keys, where no rope or norm comes between. Both sides must give less than ZERO of the global norm.
ZERO_GRADIENTS = re.compile(
    r"text_model\.encoder\.layers\.\d+\.self_attn\.k_proj\.bias"  # CLIP
    r"|(encoder|decoder)\.mid_block\.attentions\.\d+\.to_k\.bias"  # AutoencoderKL
)
ZERO = 1e-7


def to_numpy(array: Any) -> np.ndarray:
    """torch tensor or jax array -> numpy."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def relative_error(ours: Any, theirs: Any, floor: float = 0.0) -> float:
    """‖ours − theirs‖ / max(‖theirs‖, floor), in float64; the shapes must agree."""
    ours, theirs = to_numpy(ours).astype(np.float64), to_numpy(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"shapes differ: ours {ours.shape}, theirs {theirs.shape}"
    assert np.isfinite(ours).all(), "our array is not finite"
    norm = max(float(np.linalg.norm(theirs)), floor)
    difference = float(np.linalg.norm(ours - theirs))
    return difference / norm if norm else difference


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the order of its sums, so the comparison, does not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def randomize(module: torch.nn.Module, seed: int = 0, noise: float = 0.1) -> torch.nn.Module:
    """Adds normal noise to every parameter, in place: an initial 0 or 1 could hide a missing bias or scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return module.float().eval()


def shrink(module: torch.nn.Module, parts: Sequence[str], factor: float = 0.1) -> None:
    """Makes the parameters small, in place, whose names hold one of `parts`: those before a norm, whose epsilon has
    a visible effect only then."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(part in name for part in parts):
                parameter *= factor


def named_parameters(module: torch.nn.Module, rename: Callable[[str], str] | None = None) -> dict[str, torch.Tensor]:
    """Every parameter under its name on disk, tied ones once.

    Args:
      rename: name in the torch module -> official name in a file, where the two differ.
    """
    return {rename(name) if rename else name: parameter for name, parameter in module.named_parameters()}


def params_from_torch(
    theirs: torch.nn.Module,
    table: name_rules.Table,
    ours: Any,
    inputs: Sequence[Any],
    *,
    method: str | None = None,
    rename: Callable[[str], str] | None = None,
) -> trees.Tree:
    """The torch module's parameters as our tree.

    Args:
      ours: the Flax module.
      inputs: arguments of its `init` (with `method`), for the shapes.

    Raises:
      AssertionError: a parameter of one side has no counterpart in the other, or another shape.
    """
    shapes = param_shapes(ours, inputs, method=method)
    named = named_parameters(theirs, rename)
    assert_same_names_and_shapes(
        name_rules.official_shapes(table, shapes), {name: tuple(parameter.shape) for name, parameter in named.items()}
    )
    params = name_rules.from_official(table, shapes, lambda name: to_numpy(named[name]))
    return jax.tree.map(jax.numpy.asarray, params)


def param_shapes(module: Any, inputs: Sequence[Any], *, method: str | None = None) -> trees.Tree:
    """The shapes of a Flax module's parameters; nothing is computed. It must hold no other collection."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, method=method))
    assert set(variables) == {"params"}, f"only parameters are allowed, not {sorted(variables)}"
    return variables["params"]


def assert_same_names_and_shapes(ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> None:
    """Both sides have the same tensors, name by name and shape by shape."""
    theirs = {name: tuple(shape) for name, shape in theirs.items()}
    only_ours, only_theirs = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    assert not only_ours, f"tensors that only our module has: {only_ours[:10]} ({len(only_ours)})"
    assert not only_theirs, f"tensors that our module lacks: {only_theirs[:10]} ({len(only_theirs)})"
    different = {name: (shape, theirs[name]) for name, shape in ours.items() if tuple(shape) != theirs[name]}
    assert not different, f"shapes that differ (ours, theirs): {different}"


def assert_gradients_close(
    gradients: trees.Tree,
    theirs: torch.nn.Module,
    table: name_rules.Table,
    *,
    tolerance: float = TOLERANCE,
    floor: float = GRADIENT_FLOOR,
    rename: Callable[[str], str] | None = None,
    unused: Callable[[str], bool] = lambda name: False,
) -> None:
    """Our gradients equal those in `.grad` of the torch parameters: in global norm, and tensor by tensor, except those
    of `ZERO_GRADIENTS`, which both sides must find to be about zero.

    Args:
      floor: smallest norm, as a share of the global norm, that a tensor's error is compared to.
      unused: official names whose torch gradient may be None (then ours must be zero).
    """
    ours = dict(name_rules.to_official(table, gradients))
    parameters = named_parameters(theirs, rename)
    assert ours.keys() == parameters.keys(), f"gradients without a counterpart: {ours.keys() ^ parameters.keys()}"
    expected = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None or unused(name), f"torch gives no gradient to {name}"
        expected[name] = np.zeros(parameter.shape) if parameter.grad is None else to_numpy(parameter.grad)
    names = sorted(expected)
    both = [np.concatenate([np.ravel(side[name]) for name in names]) for side in (ours, expected)]
    total = relative_error(*both)
    assert total < tolerance, f"global relative error of the gradients is {total:.2e}"
    norm = float(np.linalg.norm(both[1].astype(np.float64)))
    assert norm > 0, "all gradients are zero: nothing was compared"
    zero = [name for name in names if ZERO_GRADIENTS.fullmatch(name)]
    sizes = {name: max(float(np.linalg.norm(side[name])) for side in (ours, expected)) / norm for name in zero}
    large = {name: f"{size:.2e}" for name, size in sizes.items() if not size < ZERO}
    assert not large, f"shares of the global norm of gradients that are zero in truth: {large}"
    errors = {name: relative_error(ours[name], expected[name], floor * norm) for name in names if name not in zero}
    bad = {name: f"{error:.2e}" for name, error in errors.items() if not error < tolerance}
    assert not bad, f"relative errors of gradients: {bad}"


def assert_same(
    ours: Any,
    params: trees.Tree,
    inputs: Sequence[Any],
    theirs: torch.nn.Module,
    call: Callable[..., Any],
    torch_inputs: Sequence[Any],
    *,
    table: name_rules.Table,
    method: str | None = None,
    output_of: Callable[[Any], Any] = lambda output: output,
    tolerance: float = TOLERANCE,
    floor: float = GRADIENT_FLOOR,
    rename: Callable[[str], str] | None = None,
    unused: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
) -> None:
    """Outputs, and gradients with respect to all parameters of a random linear functional of them, are equal.

    Args:
      ours, params, inputs: the Flax module (called by `method`), its parameters, its arguments.
      theirs, call, torch_inputs: the torch module and call(theirs, *torch_inputs) -> array or tuple of arrays.
      output_of: our output -> array or tuple of arrays, as `call` gives them.
      unused: official names of parameters that these outputs do not depend on.
    """

    def apply(params):
        outputs = output_of(ours.apply({"params": params}, *inputs, method=method))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    with one_thread():
        expected = call(theirs, *torch_inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        generator = np.random.default_rng(seed)
        weights = [generator.standard_normal(output.shape).astype(np.float32) for output in expected]
        theirs.zero_grad()
        sum((output * torch.from_numpy(w)).sum() for output, w in zip(expected, weights, strict=True)).backward()

    def functional(params):
        outputs = apply(params)
        assert len(outputs) == len(weights), f"{len(outputs)} outputs of ours, {len(weights)} of theirs"
        return sum((output * w).sum() for output, w in zip(outputs, weights, strict=True)), outputs

    with jax.default_matmul_precision("highest"):
        (_, outputs), gradients = jax.jit(jax.value_and_grad(functional, has_aux=True))(params)
    for index, (output, target) in enumerate(zip(outputs, expected, strict=True)):
        error = relative_error(output, target)
        assert error < tolerance, f"output {index}: relative error {error:.2e}"
    assert_gradients_close(gradients, theirs, table, tolerance=tolerance, floor=floor, rename=rename, unused=unused)
