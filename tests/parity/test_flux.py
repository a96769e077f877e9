"""FluxTransformer equals diffusers' FluxTransformer2DModel."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.weights.names import flux  # noqa: E402
from tests.support import parity  # noqa: E402
from tests.support.official_flux import call, inputs, pair  # noqa: E402


@pytest.mark.parametrize("guidance", [True, False])
def test_output_and_gradients(guidance):
    ours, theirs = pair(guidance_embeds=guidance)
    arguments = inputs(guidance)
    params = parity.params_from_torch(theirs, flux.TABLE, ours, arguments)
    tensors = [None if x is None else torch.from_numpy(x) for x in arguments]
    parity.assert_same(ours, params, arguments, theirs, call, tensors, table=flux.TABLE)


@pytest.mark.parametrize("fields", [{"remat": "full"}, {"remat": "dots", "attention_implementation": "reference"}])
def test_every_implementation_equals_the_same_reference(fields):
    ours, theirs = pair()
    ours = dataclasses.replace(ours, **fields)
    arguments = inputs()
    params = parity.params_from_torch(theirs, flux.TABLE, ours, arguments)
    parity.assert_same(
        ours, params, arguments, theirs, call, [torch.from_numpy(x) for x in arguments], table=flux.TABLE
    )


def test_output_at_noise_levels_and_guidance_in_use():
    ours, theirs = pair()
    arguments = list(inputs())
    arguments[3], arguments[6] = np.array([0.83, 0.127], np.float32), np.array([1.0, 3.5], np.float32)
    params = parity.params_from_torch(theirs, flux.TABLE, ours, arguments)
    with torch.no_grad(), parity.one_thread():
        expected = call(theirs, *[torch.from_numpy(x) for x in arguments])
    result = parity.jax.jit(ours.apply)({"params": params}, *arguments)
    assert parity.relative_error(result, expected) < parity.TOLERANCE


def test_time_features():
    """σ and guidance up to 30. The angles go up to 1000·x, where one unit in the last place of a frequency, in
    which torch's own `exp` differs between machines, is worth 1000·x·2⁻²³."""
    from diffusers.models.embeddings import Timesteps

    from onereward_jax.models.flux import sinusoidal_features

    x = np.array([0.0, 1 / 50, 0.127, 0.83, 1.0, 3.5, 30.0], np.float32)
    ours = sinusoidal_features(x)
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(1000 * torch.from_numpy(x)).numpy()
    assert (np.abs(ours - theirs) <= 1e-6 + 1000 * x[:, None] * 2.0**-23).all()
    assert (np.abs(ours - theirs) < 1e-6).mean() > 0.95


def test_rope_at_the_far_end_of_a_large_image():
    """Positions of a 2048-pixel image and 512 text tokens, float32 against diffusers' float64."""
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    from onereward_jax.models import rope

    ids = np.stack([np.zeros(64), np.arange(64, 128), np.arange(127, 63, -1)], -1).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((2, 64, 3, 128)).astype(np.float32)
    ours = rope.rotate(x, rope.rotation(ids, (16, 56, 56)))
    embedding = FluxPosEmbed(theta=10_000, axes_dim=(16, 56, 56))(torch.from_numpy(ids))
    theirs = apply_rotary_emb(torch.from_numpy(x), embedding, sequence_dim=1)
    assert parity.relative_error(ours, theirs) < parity.TOLERANCE
