"""Schedule and packing against diffusers' scheduler and FluxFillPipeline."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.fill.diffusers_io import read_shift  # noqa: E402
from onereward_jax.flow import conditioning  # noqa: E402
from onereward_jax.flow.schedule import Shift, sigmas  # noqa: E402


@pytest.mark.parametrize(("num_steps", "num_tokens"), [(1, 64), (8, 256), (28, 1024), (50, 4096)])
def test_sigmas_equal_the_scheduler(num_steps, num_tokens):
    from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    mu = calculate_shift(num_tokens, 256, 4096, 0.5, 1.15)
    assert Shift().mu(num_tokens) == pytest.approx(mu)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    np.testing.assert_allclose(sigmas(num_steps, num_tokens), scheduler.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize(("num_steps", "num_tokens"), [(2, 64), (8, 256), (28, 1024), (50, 4096)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"shift": 0.5},
        {"shift": 2.0, "shift_terminal": 0.1},
        {"shift": 3.0, "shift_terminal": 0},
        {"use_dynamic_shifting": True, "shift": 3.0},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.2},
        {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 0.9, "max_image_seq_len": 8192},
    ],
)
def test_every_schedule_that_loads_equals_the_scheduler(tmp_path, config, num_steps, num_tokens):
    from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.save_pretrained(tmp_path / "scheduler")
    given = scheduler.config
    line = (given.base_image_seq_len, given.max_image_seq_len, given.base_shift, given.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=calculate_shift(num_tokens, *line))
    np.testing.assert_allclose(
        sigmas(num_steps, num_tokens, read_shift(tmp_path)), scheduler.sigmas.numpy(), rtol=2e-6, atol=1e-6
    )


def test_packing_equals_the_pipeline():
    pipeline = diffusers.FluxFillPipeline
    latents = np.random.default_rng(0).normal(size=(2, 6, 8, 5)).astype(np.float32)
    official = pipeline._pack_latents(torch.from_numpy(latents).permute(0, 3, 1, 2), 2, 5, 6, 8)
    np.testing.assert_array_equal(conditioning.pack(latents), official.numpy())
    ids = pipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    np.testing.assert_array_equal(conditioning.image_ids(6, 8), ids.numpy())


def test_packed_mask_equals_the_pipeline():
    mask = (np.random.default_rng(0).random((2, 24, 32)) > 0.5).astype(np.float32)
    pipeline = diffusers.FluxFillPipeline.__new__(diffusers.FluxFillPipeline)
    pipeline.vae_scale_factor = 4
    pipeline.vae = SimpleNamespace(config=SimpleNamespace(shift_factor=0.0, scaling_factor=1.0))
    official, _ = pipeline.prepare_mask_latents(
        torch.from_numpy(mask)[:, None], torch.zeros(2, 1, 6, 8), 2, 1, 1, 24, 32, torch.float32, "cpu", None
    )
    np.testing.assert_array_equal(conditioning.pack_mask(mask, 4), official.numpy())
