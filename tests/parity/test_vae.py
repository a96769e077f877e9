"""AutoencoderKL equals diffusers' AutoencoderKL."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.weights.names import vae  # noqa: E402
from tests.support import parity  # noqa: E402

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "latent_channels": 6,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
BATCH, HEIGHT, WIDTH = 2, 16, 24


def pair(**changes):
    config = CONFIG | changes
    theirs = parity.randomize(diffusers.AutoencoderKL(**config))
    parity.shrink(theirs, ("conv_in", "conv1"))
    return vae.module_from_config(config), theirs


def images():
    return np.random.default_rng(1).uniform(-1, 1, (BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)


def latents():
    shape = (BATCH, HEIGHT // 4, WIDTH // 4, CONFIG["latent_channels"])
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x):
    return x.permute(0, 2, 3, 1)


def encode(theirs, x):
    posterior = theirs.encode(x).latent_dist
    return channels_last(posterior.mean), channels_last(posterior.logvar)


def decode(theirs, x):
    return channels_last(theirs.decode(x).sample)


def check(ours, theirs, method):
    """All parameters are compared by name and shape; gradients of the other half are zero on both sides."""
    call, x = {"encode": (encode, images()), "decode": (decode, latents())}[method]
    half = "decoder" if method == "encode" else "encoder"
    other = "post_quant_conv" if method == "encode" else "quant_conv"
    parity.assert_same(
        ours,
        parity.params_from_torch(theirs, vae.TABLE, ours, (images(),)),
        (x,),
        theirs,
        call,
        (channels_first(x),),
        table=vae.TABLE,
        method=method,
        unused=lambda name: name.startswith((half, other)),
    )


@pytest.mark.parametrize("quant_convs", [False, True])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_output_and_gradients(method, quant_convs):
    check(*pair(use_quant_conv=quant_convs, use_post_quant_conv=quant_convs), method)


@pytest.mark.parametrize("fields", [{"remat": "full"}, {"attention_implementation": "reference"}])
def test_every_implementation_equals_the_same_reference(fields):
    ours, theirs = pair()
    check(dataclasses.replace(ours, **fields), theirs, "decode")


def test_the_log_variance_is_clipped_as_theirs():
    ours, theirs = pair()
    with torch.no_grad():
        theirs.encoder.conv_out.weight *= 1000
        mean, log_variance = encode(theirs, channels_first(images()))
    params = parity.params_from_torch(theirs, vae.TABLE, ours, (images(),))
    result = ours.apply({"params": params}, images(), method="encode")
    assert float(log_variance.max()) == 20.0
    assert float(log_variance.min()) == -30.0
    assert parity.relative_error(result[0], mean) < parity.TOLERANCE
    assert parity.relative_error(result[1], log_variance) < parity.TOLERANCE
