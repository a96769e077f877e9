"""Low-rank adapters (LoRA, Hu et al. 2021) as parameter trees.

An adapter is a parameter tree with two leaves in place of each adapted kernel:

    kernel  W  (..., in, out)
    lora_a  A  (..., in, r)
    lora_b  B  (..., r, out)

The layer then computes `x·W + (x·A)·B`. Stacked layers have the same leading axis in all three. The factor alpha / r is
not stored: a trained adapter is scaled by `LoRA.scale` when it is attached or merged, and an adapter read from a file
has the factor already multiplied into B.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax import tree as trees
from onereward_jax.errors import UserError

A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Settings of a trained adapter.

    Attributes:
      rank: r; 0 trains the whole model instead.
      alpha: the product A·B is scaled by alpha / rank.
      targets: regular expression, searched in each layer's path, such as "transformer_blocks/attn/to_q".
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = ".*"

    @property
    def scale(self) -> float:
        """alpha / rank, or 1 without an adapter."""
        return self.alpha / self.rank if self.rank else 1.0

    def init(self, params: trees.Tree, key: jax.Array) -> trees.Tree:
        """Initialise an adapter, float32: A uniform in ±1/√in as in PEFT, B zero, so the model is unchanged at first.

        Args:
          params: the model's parameters, or their shapes.

        Raises:
          UserError: no layer's path matches `targets`.
        """
        leaves = {}
        for path, kernel in layers(params).items():
            if re.search(self.targets, path):
                *stack, features_in, features_out = kernel.shape
                layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
                bound = features_in**-0.5
                leaves[f"{path}/{A}"] = jax.random.uniform(
                    layer_key, (*stack, features_in, self.rank), minval=-bound, maxval=bound
                )
                leaves[f"{path}/{B}"] = jnp.zeros((*stack, self.rank, features_out))
        if not leaves:
            some = ", ".join(sorted(layers(params))[:4])
            raise UserError(f"lora.targets {self.targets!r} matches no layer: the model's layers are {some}, ...")
        return trees.unflatten(leaves)

    def full_params(self, trained: trees.Tree, frozen: trees.Tree) -> trees.Tree:
        """Return the full parameter tree: base plus adapter, or frozen plus trained when rank is 0."""
        return attach(frozen, trained, self.scale) if self.rank else {**frozen, **trained}

    def loss(self, loss: Callable) -> Callable:
        """Turn a loss of the full parameters into one of (trained, frozen), for `training.state.supervised_step`."""
        return lambda trained, frozen, batch, key: loss(self.full_params(trained, frozen), None, batch, key)


def layers(params: trees.Tree) -> dict[str, Any]:
    """Return {layer path: kernel} of all layers that can have an adapter: matrices, or stacks of them."""
    kernels = {path: leaf for path, leaf in trees.flatten(params).items() if path.endswith("/kernel")}
    return {path.removesuffix("/kernel"): leaf for path, leaf in kernels.items() if leaf.ndim in (2, 3)}


def factors(adapter: trees.Tree) -> dict[str, tuple[Any, Any]]:
    """Return {layer path: (A, B)}."""
    leaves = trees.flatten(adapter)
    paths = [path.removesuffix(f"/{A}") for path in leaves if path.endswith(f"/{A}")]
    return {path: (leaves[f"{path}/{A}"], leaves[f"{path}/{B}"]) for path in paths}


def from_factors(pairs: dict[str, tuple[Any, Any]]) -> trees.Tree:
    """Invert `factors`."""
    return trees.unflatten(
        {f"{path}/{name}": x for path, ab in pairs.items() for name, x in zip((A, B), ab, strict=True)}
    )


def attach(params: trees.Tree, adapter: trees.Tree, scale: float = 1.0) -> trees.Tree:
    """Add the adapter's leaves to the parameters, so that the model's `apply` computes `x·W + scale·(x·A)·B`.

    No kernel is copied: a layer costs r·(in + out) more multiplications a token, and the backward pass computes
    gradients for A and B only, none of the kernel's size. An empty adapter changes nothing. Only `models.dense` layers
    read an adapter: those of the transformer and the judge.
    """
    scaled = {f"{path}/{name}": x for path, (a, b) in factors(adapter).items() for name, x in ((A, a), (B, scale * b))}
    return trees.unflatten(trees.flatten(params) | scaled)


def detach(params: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
    """Invert `attach`: return the base parameters, and the adapter with the scale multiplied into B."""
    leaves = trees.flatten(params)
    plain = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] not in (A, B)}
    return trees.unflatten(plain), from_factors(factors(params))


def merge(params: trees.Tree, adapter: trees.Tree, scale: float = 1.0) -> trees.Tree:
    """Merge the adapter into the kernels: `W + scale·A·B`, in the kernel's dtype.

    Every adapted kernel is copied, one layer at a time in float32. Training through this would need gradients of the
    kernels' size; `attach` does not.
    """

    def merged(kernel, a, b):
        if kernel.ndim == 3:  # one layer at a time
            return jax.lax.map(lambda layer: merged(*layer), (kernel, a, b))
        product = jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
        return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

    leaves = trees.flatten(params)
    for path, (a, b) in factors(adapter).items():
        leaves[f"{path}/kernel"] = merged(*(jnp.asarray(x) for x in (leaves[f"{path}/kernel"], a, b)))
    return trees.unflatten(leaves)


def combine(adapters: Iterable[tuple[trees.Tree, float]]) -> trees.Tree:
    """Combine weighted adapters into one by concatenating their ranks."""
    parts: dict[str, list[tuple[Any, Any]]] = {}
    for adapter, weight in adapters:
        for path, (a, b) in factors(adapter).items():
            parts.setdefault(path, []).append((a, np.float32(weight) * b))
    return from_factors(
        {
            path: (np.concatenate([a for a, _ in pairs], axis=-1), np.concatenate([b for _, b in pairs], axis=-2))
            for path, pairs in parts.items()
        }
    )
