"""Schedule and packing against diffusers' scheduler and FluxFillPipeline."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

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
