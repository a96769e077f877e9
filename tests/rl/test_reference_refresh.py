"""Algorithm "earned": when the reference is refreshed, and that a killed run refreshes it alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.rl.reference_refresh import PREFERENCE, REFRESHED, refreshed, verdict
from onereward_jax.training.compile import Start
from onereward_jax.training.state import create_state
from tests.support.counting_run import Counter, lines, run

# What the other judge thinks of the policy after so many updates, in each of two tasks; the margin is .05.
PREFERENCES = {1: (0.5, 0.5), 2: (0.6, 0.54), 3: (0.7, 0.4), 4: (0.66, 0.60), 5: (0.66, 0.66), 6: (0.68, 0.70)}
REFRESHES = {2: 0.57, 4: 0.63, 6: 0.69}


def initial():
    state = create_state({"w": jnp.float32(0.0)}, optax.sgd(1.0), seed=0, reference=True)
    return state.replace(earned=jnp.float32(0.5))


def descend(state, batch):
    """w moves by the batch and by what it is above the reference."""
    moved = {"w": state.params["w"] + batch + 0.5 * (state.params["w"] - state.reference["w"]) + 1}
    return state.replace(step=state.step + 1, params=moved), {"learning/loss": moved["w"]}


STEP = jax.jit(descend, donate_argnums=0)


def found_of(state):
    first, second = PREFERENCES[int(state.step)]
    found = {"evaluation/image_fill/other_preference": first, "evaluation/object_removal/other_preference": second}
    found["evaluation/image_fill/preference"] = 0.99  # of the judge that it is trained by
    return found | verdict(state, found, margin=0.05)


def train(workdir, num_steps):
    state = run(
        workdir,
        num_steps,
        step=STEP,
        start=Start(jax.eval_shape(initial), initial),
        batches=Counter(),
        evaluate=found_of,
        evaluate_every=1,
        after_evaluation=refreshed,
    )
    return {name: float(getattr(state, name)["w"]) for name in ("params", "reference")} | {"earned": state.earned}


def test_a_refresh_is_earned_and_survives_a_kill(tmp_path):
    """The step donates its state, so that policy and reference may not share a buffer."""
    whole = train(tmp_path / "whole", 6)
    for stop in (2, 3, 5):
        train(tmp_path / "stopped", stop)
    assert train(tmp_path / "stopped", 6) == whole
    found = lines(tmp_path / "whole")
    assert {line["step"]: pytest.approx(line[PREFERENCE]) for line in found if line[REFRESHED]} == REFRESHES
    at = {line["step"]: line["learning/loss"] for line in found}
    assert whole["reference"] == whole["params"] == at[6]
    np.testing.assert_allclose(at[3] - at[2], 2 + 1)  # just refreshed: the reference is the policy
    np.testing.assert_allclose(at[2] - at[1], 1 + 0.5 * at[1] + 1)  # still the base
    assert whole["earned"] == pytest.approx(0.69)


def test_nothing_is_earned_where_no_other_judge_was_asked():
    state = initial()
    found = verdict(state, {"evaluation/image_fill/preference": 0.9}, margin=0.05)
    assert found == {REFRESHED: 0.0}
    assert refreshed(state, found) is state
