"""One attention function, several implementations.

Shapes: B batch, Q queries, K keys, H heads, G key/value heads (G divides H), D head size.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("reference", "xla", "cudnn")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention, equal to torch's `scaled_dot_product_attention`.

    Args:
      query: (B, Q, H, D).
      key, value: (B, K, G, D); each key/value head serves H/G query heads.
      mask: boolean, broadcastable to (B, H, Q, K); True may attend.
      bias: added to the scaled logits, broadcastable to (B, H, Q, K).
      scale: factor on the logits; D ** -0.5 if None.
      implementation: "reference" is readable and computes in float32; "xla" and "cudnn" are
        `jax.nn.dot_product_attention`.

    Returns:
      (B, Q, H, D), in the query's dtype.

    Raises:
      ValueError: the implementation has no such name.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if implementation == "reference":
        return _reference(query, key, value, mask, bias, scale)
    if implementation == "xla" or implementation == "cudnn":
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            scale=scale,
            implementation=implementation,  # type: ignore[arg-type,call-overload]
        )
    raise ValueError(f"unknown attention implementation {implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")


def _reference(query, key, value, mask, bias, scale):
    groups = query.shape[2] // key.shape[2]
    key = jnp.repeat(key, groups, axis=2).astype(jnp.float32)
    value = jnp.repeat(value, groups, axis=2).astype(jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query.astype(jnp.float32), key) * scale
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)
