"""Every argument of FillPipeline makes the image that it makes in diffusers' FluxFillPipeline, from the same weights.

One set of keyword arguments goes into both, as PIL images and arrays; the posterior's mean is taken in both, for its
random numbers are each library's own.
"""

import contextlib
import inspect

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.fill.pipeline import FillPipeline  # noqa: E402
from tests.support import parity, tiny_fill  # noqa: E402
from tests.support.official_fill import guided, opened  # noqa: E402

HEIGHT, WIDTH, LENGTH = tiny_fill.FILL_HEIGHT, tiny_fill.FILL_WIDTH, tiny_fill.T5_LENGTH
PROMPTS, NEGATIVE = tiny_fill.FILL_PROMPTS, tiny_fill.FILL_NEGATIVE
TOLERANCE = parity.TOLERANCE  # relative error of images and latents


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Ours and diffusers', of one random model."""
    ours = tiny_fill.drawn_pipeline(tmp_path_factory.mktemp("tokenizers"))
    directory = tmp_path_factory.mktemp("model") / "base"
    ours.save_pretrained(directory)
    return ours, opened(directory)


@pytest.fixture(scope="module")
def plain():
    """Arguments of two images, and their noise (2, h, w, C)."""
    images, masks, noise = tiny_fill.fill_request()
    arguments = {
        "prompt": PROMPTS,
        "image": [Image.fromarray(image) for image in images],
        "mask_image": [Image.fromarray(mask) for mask in masks],
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "latents": packed(noise),
        "max_sequence_length": LENGTH,
        "output_type": "np",
    }
    return arguments, noise


def packed(noise):
    count, height, width, channels = noise.shape
    tensor = torch.from_numpy(noise).permute(0, 3, 1, 2)
    return diffusers.FluxFillPipeline._pack_latents(tensor, count, channels, height, width).numpy()


def made_by_theirs(theirs, arguments, noise=None):
    """Its images; `noise` (B, h, w, C) is what it draws."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.pipelines.flux import pipeline_flux_fill

    tensors = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), parity.one_thread():
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        if noise is not None:
            draw = lambda *args, **kwargs: torch.from_numpy(noise).permute(0, 3, 1, 2)
            patch.setattr(pipeline_flux_fill, "randn_tensor", draw)
        made = theirs(**tensors)[0]
    return made.numpy() if isinstance(made, torch.Tensor) else made


def assert_same(pipelines, arguments, noise=None, context=None, **ours_alone):
    ours, theirs = pipelines
    with context or contextlib.nullcontext():
        expected = made_by_theirs(theirs, arguments, noise)
    made = ours(**arguments, posterior="mode", noise=noise, **ours_alone).images
    assert parity.relative_error(made, expected) < TOLERANCE
    return made


@pytest.fixture(scope="module")
def expected(pipelines, plain):
    """Both make the same of the plain request, and it is no image of black and white."""
    made = assert_same(pipelines, plain[0])
    assert ((made > 0) & (made < 1)).mean() > 0.5
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_2": [PROMPTS[1], NEGATIVE]},
        {"sigmas": [1.0, 0.7, 0.2]},
        {"strength": 0.5},  # of latents that are given, the last steps alone
        {"strength": 0.5, "sigmas": [0.9, 0.6, 0.5, 0.1]},
        {"strength": 0.5, "latents": None},
        {"sigmas": [0.8, 0.4], "latents": None},
        {"prompt": PROMPTS[0], "num_images_per_prompt": 2},
        {"prompt": PROMPTS[0], "guidance_scale": 2.0, "return_dict": False},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_an_argument(pipelines, plain, expected, changes):
    arguments, noise = plain
    if isinstance(changes.get("prompt"), str):
        changes = {"image": arguments["image"][0], "mask_image": arguments["mask_image"][0]} | changes
    if changes.get("num_images_per_prompt") is None and "image" in changes:
        changes = changes | {"latents": arguments["latents"][:1]}
    arguments = arguments | changes
    made = assert_same(pipelines, arguments, noise if arguments["latents"] is None else None)
    assert parity.relative_error(made[-1], expected[-1]) > 100 * TOLERANCE


def test_images_of_another_size_are_resized(pipelines, plain):
    arguments = dict(plain[0])
    for name in ("image", "mask_image"):
        arguments[name] = [one.resize((WIDTH + 9, HEIGHT - 5), Image.Resampling.NEAREST) for one in arguments[name]]
    assert_same(pipelines, arguments)
    with pytest.warns(UserWarning, match="no multiple of 4"):
        assert_same(pipelines, arguments | {"height": HEIGHT + 1, "width": WIDTH + 3})


def test_encoded_prompts_and_masked_images(pipelines, plain, expected):
    """diffusers' `masked_image_latents` hold the packed mask (it refuses them beside an image, and fails without)."""
    ours, theirs = pipelines
    images, masks, _ = tiny_fill.fill_request()
    with torch.no_grad():
        states, pooled, _ = theirs.encode_prompt(PROMPTS, max_sequence_length=LENGTH)
        pixels = torch.from_numpy(images / np.float32(127.5) - 1).permute(0, 3, 1, 2)
        hole = torch.from_numpy(masks / np.float32(255))[:, None]
        mean = theirs.vae.encode(pixels * (1 - hole)).latent_dist.mode()
        latents = (mean - theirs.vae.config.shift_factor) * theirs.vae.config.scaling_factor
        latents = packed(latents.permute(0, 2, 3, 1).numpy())
        mask, _ = theirs.prepare_mask_latents(
            hole, pixels, 2, 4, 1, HEIGHT, WIDTH, torch.float32, torch.device("cpu"), torch.Generator()
        )
    encoded = {"prompt": None, "prompt_embeds": states.numpy(), "pooled_prompt_embeds": pooled.numpy()}
    made = assert_same(pipelines, plain[0] | encoded)
    assert parity.relative_error(made, expected) < TOLERANCE
    for given in ({"mask_image": plain[0]["mask_image"]}, {"mask_image": None}):
        both = latents if given["mask_image"] else np.concatenate([latents, mask.numpy()], axis=-1)
        made = ours(**plain[0] | given | {"image": None, "masked_image_latents": both}).images
        assert parity.relative_error(made, expected) < TOLERANCE


def test_true_guidance_by_two_negative_prompts(pipelines, plain):
    """As texts and encoded; diffusers' FluxFillPipeline has none, see test_fill."""
    ours, theirs = pipelines
    negative = {"negative_prompt": NEGATIVE, "negative_prompt_2": PROMPTS[0], "true_cfg_scale": 3.0}
    made = assert_same(pipelines, plain[0], context=guided(theirs, 3.0, [], negative_2=PROMPTS[0]), **negative)
    with torch.no_grad():
        states, pooled, _ = theirs.encode_prompt([NEGATIVE] * 2, [PROMPTS[0]] * 2, max_sequence_length=LENGTH)
    encoded = {"negative_prompt_embeds": states.numpy(), "negative_pooled_prompt_embeds": pooled.numpy()}
    again = ours(**plain[0], **encoded, true_cfg_scale=3.0, posterior="mode").images
    assert parity.relative_error(again, made) < TOLERANCE


def test_a_callback_and_latents(pipelines, plain):
    """Every step is theirs, also after a step that changes latents and prompts; the second but last ends it."""

    def call(seen):
        def change(pipeline, step, timestep, tensors):
            seen.append((step, float(timestep), np.asarray(tensors["latents"])))
            pipeline._interrupt = step == 2
            return {name: 0.9 * tensor for name, tensor in tensors.items()} if step == 0 else tensors

        return change

    ours, theirs = pipelines
    names = ["latents", "prompt_embeds"]
    arguments = plain[0] | {"num_inference_steps": 4, "output_type": "latent"}
    arguments["callback_on_step_end_tensor_inputs"] = names
    seen = [], []
    expected = made_by_theirs(theirs, arguments | {"callback_on_step_end": call(seen[0])})
    made = ours(**arguments, callback_on_step_end=call(seen[1]), posterior="mode").images
    assert parity.relative_error(made, expected) < TOLERANCE
    assert len(seen[0]) == len(seen[1]) == 3
    for (step, timestep, latents), (their_step, their_timestep, their_latents) in zip(*seen[::-1], strict=True):
        assert (step, timestep) == (their_step, pytest.approx(their_timestep, rel=1e-6))
        assert parity.relative_error(latents, their_latents) < TOLERANCE
    assert_same(pipelines, plain[0] | {"output_type": "latent", "num_inference_steps": 1})


def test_arguments_stand_in_diffusers_order():
    theirs = list(inspect.signature(diffusers.FluxFillPipeline.__call__).parameters.values())
    ours = list(inspect.signature(FillPipeline.__call__).parameters.values())[: len(theirs)]
    assert [argument.name for argument in ours] == [argument.name for argument in theirs]
    tuples = lambda default: tuple(default) if isinstance(default, list) else default
    assert [argument.default for argument in ours] == [tuples(argument.default) for argument in theirs]
