"""Rotary position embedding over several axes (Su et al. 2021), in float32.

Equals diffusers' `FluxPosEmbed` and `apply_rotary_emb`: a head's features are split among the axes, and within an
axis neighbouring features (2i, 2i + 1) form one plane of rotation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError


class Rotation(NamedTuple):
    """Cosine and sine of each token's angle in each plane: float32 (N, D / 2)."""

    cos: jax.Array
    sin: jax.Array


def rotation(ids: jax.Array | np.ndarray, axes_dims: Sequence[int], theta: float = 10_000.0) -> Rotation:
    """Compute the rotation of tokens at integer positions.

    Args:
      ids: (N, A) position of each token on each axis.
      axes_dims: A even numbers, a head's features for each axis; they sum to D.
      theta: base of the geometric sequence of wavelengths.

    Raises:
      UserError: `ids` and `axes_dims` differ in the number of axes, or a number of features is odd.
    """
    if ids.shape[-1] != len(axes_dims):
        raise UserError(f"positions have {ids.shape[-1]} axes, axes_dims_rope has {len(axes_dims)}: they must agree")
    if any(dim % 2 for dim in axes_dims):
        raise UserError(f"axes_dims_rope must be even numbers, not {tuple(axes_dims)}")
    positions = jnp.asarray(ids, jnp.float32)
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)
        angles.append(positions[:, axis, None] * frequencies)
    angle = jnp.concatenate(angles, axis=-1)
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Rotate queries or keys (B, N, H, D) by their tokens' angles; computed in float32, returned in x's dtype."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    cos, sin = by.cos[:, None, :], by.sin[:, None, :]
    rotated = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
