"""Properties of the flow that hold for any velocity field."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onereward_jax.errors import UserError
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.schedule import Shift, sigmas


@given(st.integers(1, 60), st.integers(1, 5000))
def test_schedule_falls_from_noise_to_data(num_steps, num_tokens):
    schedule = sigmas(num_steps, num_tokens)
    assert schedule.shape == (num_steps + 1,)
    assert schedule[0] == pytest.approx(1.0)
    assert schedule[-1] == 0.0
    assert (np.diff(schedule) < 0).all()


def test_larger_images_spend_more_steps_at_high_noise():
    assert (sigmas(10, 4096)[1:-1] > sigmas(10, 256)[1:-1]).all()
    assert Shift().mu(256) == pytest.approx(0.5)
    assert Shift().mu(4096) == pytest.approx(1.15)


def test_schedule_needs_a_step():
    with pytest.raises(UserError):
        sigmas(0, 64)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_pack_and_unpack_are_inverse(batch, rows, columns, channels):
    latents = np.arange(batch * rows * columns * 4 * channels, dtype=np.float32)
    latents = latents.reshape(batch, 2 * rows, 2 * columns, channels)
    tokens = conditioning.pack(latents)
    assert tokens.shape == (batch, rows * columns, 4 * channels)
    np.testing.assert_array_equal(conditioning.unpack(tokens, 2 * rows, 2 * columns), latents)


def test_packed_mask_keeps_every_pixel_at_its_token():
    mask = np.zeros((1, 16, 24), np.float32)
    mask[0, 9, 17] = 1  # second row of tokens, third column, of 8×8 pixels each
    tokens = np.asarray(conditioning.pack_mask(mask, 4))
    assert tokens.shape == (1, 6, 64)
    assert tokens.sum() == 1
    assert tokens[0, 1 * 3 + 2].sum() == 1


def test_straight_paths_are_integrated_exactly():
    """With the velocity ε − x of one straight path, any number of Euler steps ends at x, and so does one
    prediction from any index."""
    data, noise = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    velocity = lambda tokens, sigma: noise - data
    schedule = jnp.asarray(sigmas(7, 64))
    np.testing.assert_allclose(sampler.denoise(velocity, noise, schedule, 7), data, atol=1e-5)
    stop = jnp.array([0, 3, 7])
    stopped = sampler.denoise(velocity, noise, schedule, stop)
    level = schedule[stop][:, None, None]
    np.testing.assert_allclose(stopped, (1 - level) * data + level * noise, atol=1e-5)
    np.testing.assert_allclose(sampler.predict_data(velocity, stopped, schedule[stop]), data, atol=1e-5)


def test_one_program_serves_every_stopping_index():
    traces = []

    @jax.jit
    def run(noise, stop):
        traces.append(stop)
        return sampler.denoise(lambda tokens, sigma: tokens, noise, sigmas(6, 64), stop)

    noise = jnp.ones((2, 3, 4))
    outputs = [np.asarray(run(noise, jnp.int32(stop))) for stop in range(7)]
    assert len(traces) == 1
    assert all((later < earlier).all() for earlier, later in itertools.pairwise(outputs))
