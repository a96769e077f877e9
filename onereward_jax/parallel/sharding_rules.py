"""Which parameter lies where on a mesh.

A model's sharding is one ordered list of (path regex, spec): the first match wins. The same list places
parameters, EMA, reference and optimiser state, since their paths end alike.
"""

import re
import warnings
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from onereward_jax import tree as trees
from onereward_jax.parallel.mesh import BATCH, P

Rules = Sequence[tuple[str, PartitionSpec]]

VECTOR_FEATURES = ("fsdp", "tensor")

# Kernels are (..., in, out). Products that open a block (attention's queries, keys and values, the first of an MLP)
# split their outputs over `tensor`, those that close it split their inputs, so a block needs one reduction. A leading
# layer axis stays whole.
# An adapter's factors, (..., in, r) and (..., r, out), split the side that they share with the kernel as it does; where
# that is over `tensor`, their rank is split over `fsdp`.
_OPENING = (
    r"(^|/)(to_[qkv]|add_[qkv]_proj|[qkv]_proj|[qkv]|qkv|wi_[01]|fc1|gate_proj|up_proj|proj_mlp|net_0_proj|mlp_0)"
)
_CLOSING = r"(^|/)(to_out_0|to_add_out|o_proj|o|attn/proj|wo|fc2|down_proj|out_proj|proj_out|net_2|mlp_2)"
TRANSFORMER_RULES: Rules = (
    (rf"{_OPENING}/(kernel|lora_b)$", P(..., "fsdp", "tensor")),
    (rf"{_OPENING}/lora_a$", P(..., "fsdp", None)),
    (rf"{_CLOSING}/(kernel|lora_a)$", P(..., "tensor", "fsdp")),
    (rf"{_CLOSING}/lora_b$", P(..., None, "fsdp")),
    (r"(embedding|embed_tokens)$", P("tensor", "fsdp")),
    # Convolutions are small beside the pictures that pass through them.
    (r"(^|/)conv[^/]*/kernel$", P()),
    # A quarter of the transformer, its modulations, and the judge's output matrix: they meet few vectors a sample
    # (`shard_like_weights`).
    (r"(^|/)(norm[^/]*/linear|lm_head)/kernel$", P(..., VECTOR_FEATURES, None)),
    (r"(kernel|lora_[ab])$", P(..., "fsdp", None)),
    (r"(^|/)references$", BATCH),
    (r".*", P()),
)


def spec_for(rules: Rules, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The spec of one array: `...` stands for its leading axes; an axis that does not divide stays whole."""
    entries = list(next((spec for pattern, spec in rules if re.search(pattern, path)), P()))
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [None] * max(len(shape) - len(entries) + 1, 0)
    if len(entries) > len(shape):
        return P()  # a scalar or vector (an optimiser's count, say) under a matrix's name

    def size(axes):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        return int(np.prod([mesh.shape[name] for name in names]))

    return P(*[axes if extent % size(axes) == 0 else None for axes, extent in zip(entries, shape, strict=False)])


def shardings(tree: trees.Tree, mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> trees.Tree:
    """A `NamedSharding` for every leaf of a tree of arrays or of `jax.eval_shape`."""
    return trees.map_with_path(lambda path, leaf: sharding_of(path, leaf.shape, mesh, rules), tree)


def sharding_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = TRANSFORMER_RULES) -> NamedSharding:
    """Where one parameter lies."""
    return NamedSharding(mesh, spec_for(rules, path, shape, mesh))


def warn_of_unsharded(tree: trees.Tree, mesh: Mesh, least_mib: float, rules: Rules = TRANSFORMER_RULES) -> None:
    """Names the arrays of `least_mib` MiB and more that every device of a mesh would hold whole, though its `fsdp` and
    `tensor` are there to split them."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    whole = {
        path: leaf.size * leaf.dtype.itemsize / 2**20
        for path, leaf in trees.flatten(tree).items()
        if sharding_of(path, leaf.shape, mesh, rules).is_fully_replicated
    }
    if large := [f"{path} ({mib:.0f} MiB)" for path, mib in whole.items() if mib >= least_mib]:
        warnings.warn(
            f"every device holds the whole of {', '.join(large)}: choose mesh.fsdp and mesh.tensor that divide its"
            " sides, or raise train.max_unsharded_mib",
            stacklevel=2,
        )
