"""AutoencoderKL equals diffusers' AutoencoderKL."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.weights.names import vae  # noqa: E402
from tests.support import parity  # noqa: E402
from tests.support.official_vae import channels_first, channels_last, images, latents, pair  # noqa: E402


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
