"""Low-rank adapters (LoRA, Hu et al. 2021) as parameter trees.

An adapter is a tree like its model's, with two leaves where the model has a kernel:

    kernel  W  (..., in, out)
    lora_a  A  (..., in, r)
    lora_b  B  (..., r, out)

The layer then computes `x·W + (x·A)·B`. Stacked layers have the same leading axis in all three. The factor alpha / r is
no leaf: a trained adapter is scaled by `LoRA.scale` where it is used, and one from a file comes with its factor in B.
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
    """An adapter to be trained.

    Attributes:
      rank: r; 0 trains the whole model instead.
      alpha: the product A·B counts alpha / rank.
      targets: regular expression, searched in the path of every kernel's layer, "transformer_blocks/attn/to_q".
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = ".*"

    @property
    def scale(self) -> float:
        """alpha / rank; without an adapter 1."""
        return self.alpha / self.rank if self.rank else 1.0

    def init(self, params: trees.Tree, key: jax.Array) -> trees.Tree:
        """A new adapter, float32: A uniform in ±1/√in as in PEFT, B zero, so that it changes nothing yet.

        Args:
          params: of the model, or their shapes.

        Raises:
          UserError: no layer's path matches `targets`.
        """
        leaves = {}
        for path, kernel in layers(params).items():
            if re.search(self.targets, path):
                *stack, features_in, features_out = kernel.shape
                of_layer = jax.random.fold_in(key, zlib.crc32(path.encode()))
                bound = features_in**-0.5
                leaves[f"{path}/{A}"] = jax.random.uniform(
                    of_layer, (*stack, features_in, self.rank), minval=-bound, maxval=bound
                )
                leaves[f"{path}/{B}"] = jnp.zeros((*stack, self.rank, features_out))
        if not leaves:
            some = ", ".join(sorted(layers(params))[:4])
            raise UserError(f"lora.targets {self.targets!r} matches no layer: its layers are {some}, ...")
        return trees.unflatten(leaves)

    def whole(self, trained: trees.Tree, frozen: trees.Tree) -> trees.Tree:
        """The model's parameters: the frozen ones with the adapter, or without a rank what is trained beside them."""
        return attach(frozen, trained, self.scale) if self.rank else {**frozen, **trained}

    def loss(self, loss: Callable) -> Callable:
        """`loss(params, frozen, batch, key)` as a function of what is trained, with the model's other parameters
        frozen: what `training.state.supervised_step` descends."""
        return lambda trained, frozen, batch, key: loss(self.whole(trained, frozen), None, batch, key)


def layers(params: trees.Tree) -> dict[str, Any]:
    """{path of a layer: its kernel}, of all that can have an adapter: matrices, or stacks of them."""
    kernels = {path: leaf for path, leaf in trees.flatten(params).items() if path.endswith("/kernel")}
    return {path.removesuffix("/kernel"): leaf for path, leaf in kernels.items() if leaf.ndim in (2, 3)}


def factors(adapter: trees.Tree) -> dict[str, tuple[Any, Any]]:
    """{path of a layer: (A, B)}."""
    leaves = trees.flatten(adapter)
    paths = [path.removesuffix(f"/{A}") for path in leaves if path.endswith(f"/{A}")]
    return {path: (leaves[f"{path}/{A}"], leaves[f"{path}/{B}"]) for path in paths}


def from_factors(pairs: dict[str, tuple[Any, Any]]) -> trees.Tree:
    """Undoes `factors`."""
    return trees.unflatten(
        {f"{path}/{name}": x for path, ab in pairs.items() for name, x in zip((A, B), ab, strict=True)}
    )


def attach(params: trees.Tree, adapter: trees.Tree, scale: float = 1.0) -> trees.Tree:
    """Parameters with which the model's `apply` computes `x·W + scale·(x·A)·B`: the live form.

    No kernel is made anew: a layer costs r·(in + out) products a token more, and its backward pass gives gradients to A
    and B alone, without one of the kernel's size. An empty adapter leaves the model as it is. Only layers of
    `models.dense` look for an adapter: those of the transformer and of the judge.
    """
    scaled = {f"{path}/{name}": x for path, (a, b) in factors(adapter).items() for name, x in ((A, a), (B, scale * b))}
    return trees.unflatten(trees.flatten(params) | scaled)


def detach(params: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
    """Undoes `attach`: the plain model's parameters, and the adapter with its scale in B."""
    leaves = trees.flatten(params)
    plain = {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[2] not in (A, B)}
    return trees.unflatten(plain), from_factors(factors(params))


def merge(params: trees.Tree, adapter: trees.Tree, scale: float = 1.0) -> trees.Tree:
    """Parameters of the plain model with kernels `W + scale·A·B`, in the kernel's dtype.

    Every kernel that has an adapter exists a second time, beside one float32 layer of it; to train through this would
    need gradients as large. `attach` does not.
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
    """One adapter that does what several do together, each by its weight: their ranks stand side by side."""
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
