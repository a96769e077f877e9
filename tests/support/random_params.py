"""Random parameters by NumPy: initialising a model compiles a program that runs once."""

import zlib
from typing import Any

import jax
import numpy as np

from onereward_jax import tree


def random_params(module: Any, weights: Any, deviation: float = 0.05) -> Any:
    """Parameters of a module, each a function of its path and shape: kernels and embeddings of unit gain, the others
    near their usual start, 1 for scales and 0 else, but none at it: a gate at 0 would hide what is behind it.

    Args:
      weights: the module's file of `onereward_jax.weights.names`, for the inputs that shapes are traced with.
      deviation: of the parameters that are not drawn with unit gain.
    """
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *weights.example_inputs(module)))["params"]

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        normal = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(leaf.shape).astype(np.float32)
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            # A leading axis counts layers, those before the last two of a convolution are its window.
            fan_in = leaf.shape[-2] * (int(np.prod(leaf.shape[:-2])) if leaf.ndim > 3 else 1)
            return normal / np.float32(np.sqrt(fan_in))
        if kind.endswith("embedding"):
            return normal / np.float32(np.sqrt(leaf.shape[-1]))
        return np.float32(kind in ("scale", "weight")) + np.float32(deviation) * normal

    return tree.map_with_path(draw, shapes)
