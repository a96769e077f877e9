"""Directories go both ways between this package and diffusers, without a warning."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.weights.load import load_component  # noqa: E402
from onereward_jax.weights.names import flux, vae  # noqa: E402
from onereward_jax.weights.save import save_component  # noqa: E402
from tests.support import official_flux, official_vae, parity  # noqa: E402

CASES = {
    "transformer": (diffusers.FluxTransformer2DModel, official_flux, flux),
    "vae": (diffusers.AutoencoderKL, official_vae, vae),
}
SHARD_BYTES = 60_000


@pytest.fixture(params=CASES)
def case(request):
    library_class, official, weights = CASES[request.param]
    ours, theirs = official.pair()
    return request.param, library_class, weights, ours, theirs


def assert_equal_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("shards", [False, True])
def test_what_diffusers_saves_opens_here(case, shards, tmp_path):
    kind, _, weights, ours, theirs = case
    theirs.save_pretrained(tmp_path, max_shard_size=SHARD_BYTES if shards else "10GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    module, params = load_component(tmp_path, kind)
    assert module == ours
    expected = parity.params_from_torch(theirs, weights.TABLE, ours, weights.example_inputs(ours))
    flat = [np.asarray(x) for x in parity.jax.tree.leaves(expected)]
    assert all(np.array_equal(a, b) for a, b in zip(parity.jax.tree.leaves(params), flat, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [False, True])
def test_what_we_save_opens_in_diffusers(case, shards, dtype, tmp_path, caplog):
    """All warnings are errors here already; the library's logger may not warn either."""
    kind, library_class, weights, ours, theirs = case
    params = parity.params_from_torch(theirs, weights.TABLE, ours, weights.example_inputs(ours))
    save_component(tmp_path / kind, kind, ours, params, dtype, SHARD_BYTES if shards else 10**9)
    torch_dtype = getattr(torch, dtype)
    logger = diffusers.utils.logging.get_logger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        opened, report = library_class.from_pretrained(
            tmp_path / kind, torch_dtype=torch_dtype, output_loading_info=True, local_files_only=True
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(report.values()), report
    assert not caplog.messages
    assert_equal_tensors(opened.state_dict(), theirs.to(torch_dtype).state_dict())
    names = [field.name for field in dataclasses.fields(ours)]
    for name in [name for name in names if name in theirs.config]:
        given, expected = opened.config[name], theirs.config[name]
        assert (tuple(given) if isinstance(given, list) else given) == (
            tuple(expected) if isinstance(expected, list) else expected
        ), name


def test_the_outputs_are_the_same_after_the_round_trip(case, tmp_path):
    kind, library_class, weights, ours, theirs = case
    params = parity.params_from_torch(theirs, weights.TABLE, ours, weights.example_inputs(ours))
    save_component(tmp_path / kind, kind, ours, params)
    opened = library_class.from_pretrained(tmp_path / kind, local_files_only=True).eval()
    with torch.no_grad(), parity.one_thread():
        if kind == "vae":
            images = official_vae.images()
            expected = official_vae.channels_last(opened(official_vae.channels_first(images)).sample)
            result = parity.jax.jit(ours.apply)({"params": params}, images)
        else:
            arguments = official_flux.inputs()
            expected = official_flux.call(opened, *[torch.from_numpy(x) for x in arguments])
            result = parity.jax.jit(ours.apply)({"params": params}, *arguments)
    assert parity.relative_error(result, expected) < parity.TOLERANCE
