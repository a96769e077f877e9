"""A dense layer that can have an adapter."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onereward_jax import lora


class Dense(nn.Dense):
    """`x·kernel + bias`, and `+ (x·lora_a)·lora_b` where `lora.attach` has put an adapter among the parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if not self.has_variable("params", lora.A):
            return y
        a, b = (jnp.asarray(self.get_variable("params", name), self.dtype) for name in (lora.A, lora.B))
        return y + (x.astype(a.dtype) @ a) @ b
