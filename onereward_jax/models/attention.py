"""One attention function, several implementations.

Shapes: B batch, Q queries, K keys, H heads, G key/value heads (G divides H), D head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from onereward_jax.errors import UserError
from onereward_jax.parallel.activations import activation_axes, platform, tokens_are_split
from onereward_jax.parallel.mesh import P

IMPLEMENTATIONS = ("auto", "reference", "xla", "cudnn", "splash")
# Block sizes of splash attention: queries, keys/values. They divide FLUX's token counts at 1024² and 512² pixels (4608,
# 1536), and on every TPU generation a kernel of that size is bound by compute, not by reading the keys and values once
# for each block of queries.
BLOCKS = (768, 768)
LANES = 128


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    implementation: str = "xla",
    blocks: tuple[int, int] = BLOCKS,
    splits_tokens: bool = False,
) -> jax.Array:
    """Compute scaled dot-product attention, equal to torch's `scaled_dot_product_attention`.

    Args:
      query: (B, Q, H, D).
      key, value: (B, K, G, D); each key/value head serves H/G query heads.
      mask: boolean, broadcastable to (B, H, Q, K); True may attend.
      bias: added to the scaled logits, broadcastable to (B, H, Q, K).
      scale: factor on the logits; D ** -0.5 if None.
      implementation: "reference" is readable and computes in float32; "xla" and "cudnn" are
        `jax.nn.dot_product_attention`; "splash" is the TPU kernel (interpreted elsewhere), which never stores the
        logits. "auto" is splash on a TPU and cuDNN on a GPU, by the platform of the program's mesh
        (`parallel.activations.platform`), where they support the arguments, and "xla" otherwise.
      blocks: block sizes of "splash" for queries and for keys/values: multiples of 128.
      splits_tokens: the queries may be sharded by tokens, like the caller's other activations, see
        `parallel.activations.activation_axes`.

    Returns:
      (B, Q, H, D), in the query's dtype.

    Raises:
      UserError: the implementation is unknown, or does not support these arguments.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if implementation == "auto":
        implementation = _best(query, mask is None and bias is None)
    if implementation == "reference":
        return _reference(query, key, value, mask, bias, scale)
    if implementation == "xla" or implementation == "cudnn":
        attend = functools.partial(
            jax.nn.dot_product_attention,
            bias=bias,
            mask=mask,
            scale=scale,
            implementation=implementation,  # type: ignore[arg-type]
        )
        if splits_tokens and mask is None and bias is None and tokens_are_split(query):
            return _by_device(attend, query, key, value, splits_tokens)
        return attend(query, key, value)
    if implementation == "splash":
        if mask is not None or bias is not None:
            raise UserError('splash attention takes neither mask nor bias here: choose "xla" or "auto"')
        scaled = (query.astype(jnp.float32) * scale).astype(query.dtype)  # the kernel does not scale
        return _splash(scaled, key, value, blocks, splits_tokens)
    raise UserError(f"unknown attention implementation {implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")


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


def _best(query: jax.Array, is_unmasked: bool) -> str:
    """Choose the implementation for the platform; cuDNN's needs half precision and heads up to 128."""
    if platform() == "tpu" and is_unmasked:
        return "splash"
    half, size = query.dtype in (jnp.bfloat16, jnp.float16), query.shape[-1]
    fits_cudnn = half and size <= 128 and size % 8 == 0
    return "cudnn" if platform() == "gpu" and fits_cudnn and _gpus_have_cudnn_attention() else "xla"


def _gpus_have_cudnn_attention() -> bool:
    """Ampere or newer."""
    return all(float(device.compute_capability) >= 8 for device in jax.local_devices(backend="gpu"))


def _splash(query, key, value, blocks, splits_tokens):
    """Splash attention; the queries are already scaled."""
    if any(block <= 0 or block % LANES for block in blocks):
        raise UserError(f"blocks of splash attention must be multiples of {LANES}, not {tuple(blocks)}")
    kernel = functools.partial(_splash_on_device, blocks=blocks)
    # XLA can't split a kernel by itself.
    on_mesh = not jax.sharding.get_abstract_mesh().empty
    return _by_device(kernel, query, key, value, splits_tokens) if on_mesh else kernel(query, key, value)


def _by_device(function, query, key, value, splits_tokens):
    """Run `function` per device on its shard of samples, queries and heads, with all of their keys and values."""
    mesh = jax.sharding.get_abstract_mesh()
    samples, tokens = activation_axes(mesh, query.shape[0], query.shape[1] if splits_tokens else 0)
    heads = "tensor" if all(x.shape[2] % mesh.shape["tensor"] == 0 for x in (query, key)) else None
    queries, keys = P(samples, tokens, heads), P(samples, None, heads)
    specs = {"in_specs": (queries, keys, keys), "out_specs": queries}
    return jax.shard_map(function, **specs, check_vma=False)(query, key, value)


def _splash_on_device(query, key, value, blocks):
    queries, keys = query.shape[1], key.shape[1]
    block_q, block_kv = (min(block, -(-n // LANES) * LANES) for block, n in zip(blocks, (queries, keys), strict=True))
    query, key, value = _padded(query, block_q), _padded(key, block_kv), _padded(value, block_kv)
    segments = None
    if key.shape[1] > keys:  # padding keys get a segment id of their own, so that no query attends to them
        is_padding = (jnp.arange(key.shape[1]) >= keys).astype(jnp.int32)
        segments = splash_attention.SegmentIds(q=jnp.zeros(query.shape[1], jnp.int32), kv=is_padding)
    # Two separate backward kernels: the fused one would keep a gradient of the queries for each block of keys.
    sizes = splash_attention.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    full = splash_attention.FullMask((query.shape[1], key.shape[1]))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([full] * query.shape[2]),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )
    heads_first = [x.swapaxes(1, 2) for x in (query, key, value)]
    attended = jax.vmap(lambda query, key, value: kernel(query, key, value, segments))(*heads_first)
    return attended.swapaxes(1, 2)[:, :queries]


def _padded(x, block):
    """Zero-pad (B, N, H, D) to a multiple of `block` tokens."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
