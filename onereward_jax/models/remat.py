"""Named rematerialisation policies: what the backward pass keeps and what it recomputes."""

from collections.abc import Callable

import jax
from flax import linen as nn

from onereward_jax.errors import UserError

# "none" keeps every activation; "full" keeps only each block's input; "dots" keeps the results of
# matrix products that have no batch dimension (weights times activations), not attention's.
_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat(block: type[nn.Module], policy: str, in_scan: bool = True) -> type[nn.Module]:
    """Wrap a block class so that its activations are rematerialised by the named policy.

    Args:
      in_scan: the block is the body of an nn.scan, where the loop already keeps XLA from merging the forward pass
        with its recomputation; elsewhere a barrier is needed.

    Raises:
      UserError: the policy is unknown.
    """
    if policy not in _POLICIES:
        raise UserError(f"unknown remat policy {policy!r}: choose one of {', '.join(_POLICIES)}")
    if policy == "none":
        return block
    return nn.remat(block, policy=_POLICIES[policy], prevent_cse=not in_scan)
