"""Dense layers that can have an adapter."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn

from onereward_jax.models import lora


class Dense(nn.Dense):
    """`x·kernel + bias`, and `+ (x·lora_a)·lora_b` where `models.lora.attach` has put an adapter."""

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if not self.has_variable("params", lora.A):
            return y
        a, b = (jnp.asarray(self.get_variable("params", name), self.dtype) for name in (lora.A, lora.B))
        return y + (x.astype(a.dtype) @ a) @ b


class DenseOfParts(nn.Module):
    """`Dense` on the concatenation of several inputs, without concatenating them: `Σ xᵢ·kernelᵢ + bias`.

    When each input is sharded along its features, concatenating would move all of them between devices; splitting the
    kernel's rows moves less.
    """

    features: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """parts: (..., Fᵢ) -> (..., features)."""
        widths = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", self.kernel_init, (sum(widths), self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

        def product(matrix: jax.Array) -> jax.Array:
            rows = jnp.split(jnp.asarray(matrix, self.dtype), list(itertools.accumulate(widths[:-1])))
            products = [part.astype(self.dtype) @ row for part, row in zip(parts, rows, strict=True)]
            return functools.reduce(jnp.add, products)

        y = product(kernel) + bias.astype(self.dtype)
        if not self.has_variable("params", lora.A):
            return y
        a, b = (jnp.asarray(self.get_variable("params", name), self.dtype) for name in (lora.A, lora.B))
        return y + product(a) @ b
