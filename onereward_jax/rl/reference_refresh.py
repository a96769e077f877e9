"""Algorithm "earned": the reference stays as it is until the policy has earned a better one.

It starts as the frozen base. It becomes the policy when a judge that training never sees prefers the policy to the
frozen base on held-out requests, by `rl.refresh_margin` more than at the last refresh, or at the start more than ½. A
policy that exploits its judge gains nothing there, and keeps the reference it had (after GARDO, arXiv 2512.24138).
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.parallel import hosts
from onereward_jax.training.state import TrainState

NO_PREFERENCE = 0.5
PREFERENCE, REFRESHED = "evaluation/mean_other_preference", "evaluation/reference_refreshed"
_OF_TASK = "/other_preference"


def verdict(state: TrainState, found: Mapping[str, float], margin: float) -> dict[str, float]:
    """Whether an evaluation earns the policy a refresh, as metrics: the mean of the tasks' preferences, and 1 or 0."""
    assert state.earned is not None, "algorithm earned keeps what was reached"
    of_tasks = [value for name, value in found.items() if name.endswith(_OF_TASK) and math.isfinite(value)]
    if not of_tasks:
        return {REFRESHED: 0.0}
    preference = sum(of_tasks) / len(of_tasks)
    return {PREFERENCE: preference, REFRESHED: float(preference >= float(state.earned) + margin)}


def refreshed(state: TrainState, found: Mapping[str, float]) -> TrainState:
    """The state after an evaluation: with its policy for a reference, where `verdict` said so."""
    here = (np.float32(found.get(REFRESHED, 0.0)), np.float32(found.get(PREFERENCE, NO_PREFERENCE)))
    earned, preference = hosts.broadcast(here)
    if not earned:
        return state
    # Copies: the state is donated, and no buffer may be in it twice.
    place = lambda new, old: jax.device_put(jnp.copy(new), old.sharding)
    return dataclasses.replace(
        state,
        reference=jax.tree.map(place, state.params, state.reference),
        earned=place(jnp.asarray(preference, jnp.float32), state.earned),
    )
