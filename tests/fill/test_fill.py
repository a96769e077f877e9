"""A call of FillPipeline: what it takes, what it gives, what it refuses."""

import dataclasses
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from onereward_jax import FillPipeline
from onereward_jax.errors import UserError, in_memory
from onereward_jax.fill import denoising
from onereward_jax.flow import conditioning
from onereward_jax.models import lora
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.weights.load import load_component
from onereward_jax.weights.peft_adapters import load_adapters, save_adapter, with_adapters
from tests.support import tiny_fill

HEIGHT, WIDTH = 16, 24
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 2.0, "max_sequence_length": tiny_fill.T5_LENGTH}
PROMPT = tiny_fill.PROMPTS[0]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_fill.pipeline(tmp_path_factory.mktemp("tokenizers")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(directory):
    return FillPipeline.from_pretrained(directory, dtype="float32")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 6:20] = 255
    return mask


def call(pipeline, image, mask, prompt=PROMPT, **settings):
    options = SETTINGS | {"output_type": "array"} | settings
    return pipeline(prompt=prompt, image=image, mask_image=mask, **options).images


def test_pictures_come_in_every_form_and_go_out_in_three(pipeline, image, mask, tmp_path):
    expected = call(pipeline, image, mask)
    assert expected.shape == (1, HEIGHT, WIDTH, 3)
    assert expected.dtype == np.float32
    assert expected.min() >= 0
    assert expected.max() <= 1
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for images, masks in (
        (Image.fromarray(image), Image.fromarray(mask)),
        (tmp_path / "image.png", str(tmp_path / "mask.png")),
        ([image], mask[None]),
        (image[None], mask > 0),
    ):
        np.testing.assert_array_equal(call(pipeline, images, masks), expected)
    np.testing.assert_array_equal(call(pipeline, image, mask, output_type="np"), expected)
    (picture,) = call(pipeline, image, mask, output_type="pil")
    np.testing.assert_array_equal(np.asarray(picture), np.round(expected[0] * 255))


def test_it_is_generate_with_the_seeds_noise(pipeline, image, mask):
    """The one denoising path that training and evaluation use, with the mean of the posterior."""
    draw = np.random.default_rng(1)
    noise = draw.standard_normal((1, HEIGHT // 2, WIDTH // 2, 4)).astype(np.float32)
    made = call(pipeline, image, mask, noise=noise, posterior="mode", true_cfg=3.0, negative_prompt="remove")
    expected = pipeline.generate(
        image[None],
        mask[None] // 255,
        [PROMPT],
        noise,
        num_steps=2,
        guidance_scale=2.0,
        true_cfg_scale=3.0,
        negative_prompt="remove",
        max_sequence_length=tiny_fill.T5_LENGTH,
    )
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(
        made, call(pipeline, image, mask, noise=noise, posterior="mode", true_cfg_scale=3.0, negative_prompt="remove")
    )
    assert np.abs(made - call(pipeline, image, mask, noise=noise, posterior="mode")).max() > 1e-3


def test_the_posterior_is_sampled_around_its_mode(pipeline, image, mask):
    """`encode_image` with noise is the mean plus as many deviations."""
    masked = conditioning.to_model_range(image[None]) * (mask[None, ..., None] == 0)
    params = pipeline.params["vae"]
    mode = conditioning.encode_image(pipeline.vae, params, masked)
    noise = np.full(mode.shape, 2.0, np.float32)
    mean, log_variance = pipeline.vae.apply({"params": params}, masked, method="encode")
    expected = (mean + 2 * np.exp(log_variance / 2) - pipeline.vae.shift_factor) * pipeline.vae.scaling_factor
    np.testing.assert_allclose(conditioning.encode_image(pipeline.vae, params, masked, noise), expected, rtol=1e-5)

    latents = np.zeros((1, HEIGHT // 2, WIDTH // 2, 4), np.float32)
    drawn = [call(pipeline, image, mask, noise=latents, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4
    modes = [call(pipeline, image, mask, noise=latents, seed=seed, posterior="mode") for seed in (0, 1)]
    np.testing.assert_array_equal(*modes)


def test_each_picture_of_a_call_is_its_own(pipeline, image, mask):
    prompts = [PROMPT, "remove"]
    both = call(pipeline, image, mask, prompts)
    assert both.shape[0] == 2
    np.testing.assert_allclose(both[0], call(pipeline, image, mask, PROMPT)[0], atol=1e-5)
    turned = call(pipeline, np.stack([image, image[::-1]]), np.stack([mask, mask[::-1]]), PROMPT)
    assert np.abs(turned[0] - turned[1]).max() > 1e-2
    assert np.abs(call(pipeline, image, mask, seed=1) - both[:1]).max() > 1e-2


def test_one_program_serves_a_size(pipeline, image, mask):
    call(pipeline, image, mask)
    programs = denoising.fill._cache_size()
    changes = {"num_inference_steps": 3, "guidance_scale": 5.0, "seed": 7, "prompt": "remove"}
    call(pipeline, image[:15, :21], 255 - mask[:15, :21], **changes)
    assert denoising.fill._cache_size() == programs


def test_a_size_that_does_not_divide_is_padded_and_given_back(pipeline, image, mask):
    small, hole = image[:13, :21], mask[:13, :21]
    made = call(pipeline, small, hole)
    assert made.shape == (1, 13, 21, 3)
    padded = np.pad(small, ((0, 3), (0, 3), (0, 0)), mode="edge")
    whole = call(pipeline, padded, np.pad(hole, ((0, 3), (0, 3)), mode="edge"))
    np.testing.assert_array_equal(made, whole[:, :13, :21])


def test_bfloat16_is_the_default_and_close(pipeline, directory, image, mask):
    half = FillPipeline.from_pretrained(directory)
    leaves = jax.tree.leaves((half.params, half.prompts.text_encoder_params, half.prompts.text_encoder_2_params))
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    made = call(half, image, mask)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, call(pipeline, image, mask), atol=0.05)


def test_on_a_mesh_every_component_is_spread_and_the_pictures_are_the_same(pipeline, directory, image, mask):
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    spread = FillPipeline.from_pretrained(directory, dtype="float32", mesh=mesh)
    prompts = spread.prompts
    for params in (*spread.params.values(), prompts.text_encoder_params, prompts.text_encoder_2_params):
        sizes = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(params)]
        assert min(sizes) <= 0.5
        assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(call(spread, image, mask), call(pipeline, image, mask), atol=1e-5)
    two = [PROMPT, "remove"]  # shared by the two halves of the mesh
    np.testing.assert_allclose(call(spread, image, mask, two), call(pipeline, image, mask, two), atol=1e-5)


def test_text_encoders_can_go_once_the_prompts_are_encoded(directory, pipeline, image, mask):
    light = FillPipeline.from_pretrained(directory, dtype="float32")
    light.prompts.encode([PROMPT], tiny_fill.T5_LENGTH)
    light.release_text_encoders()
    assert light.prompts.text_encoder_params is light.prompts.text_encoder_2_params is None
    np.testing.assert_array_equal(call(light, image, mask), call(pipeline, image, mask))
    with pytest.raises(UserError, match="'remove'"):
        call(light, image, mask, "remove")


def test_another_transformer(pipeline, directory, image, mask, tmp_path):
    from onereward_jax.weights.save import save_component

    other = jax.tree.map(lambda x: x + 0.05, pipeline.params["transformer"])
    save_component(tmp_path / "policy", "transformer", pipeline.transformer, other)
    opened = FillPipeline.from_pretrained(directory, dtype="float32", transformer=tmp_path / "policy")
    np.testing.assert_array_equal(
        call(opened, image, mask, posterior="mode", seed=3),
        pipeline.generate(
            image[None],
            mask[None] // 255,
            [PROMPT],
            _noise_of(pipeline, 3),
            transformer_params=other,
            num_steps=2,
            guidance_scale=2.0,
            max_sequence_length=tiny_fill.T5_LENGTH,
        ),
    )
    plain = pipeline.transformer.clone(in_channels=16)
    params = jax.tree.map(np.asarray, pipeline.params["transformer"])
    params["x_embedder"]["kernel"] = params["x_embedder"]["kernel"][:16]
    save_component(tmp_path / "text_to_image", "transformer", plain, params)
    with pytest.raises(UserError, match="in_channels 16"):
        FillPipeline.from_pretrained(directory, transformer=tmp_path / "text_to_image")


def _noise_of(pipeline, seed):
    from onereward_jax.fill.pipeline import sample_noise
    from onereward_jax.flow.conditioning import latent_shape

    return sample_noise(jax.random.split(jax.random.key(seed))[0], [0], latent_shape(pipeline.vae, HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def photo():
    """The packaged autoencoder, its parameters, and a photograph (1, 128, 128, 3) in [−1, 1]."""
    vae, params = load_component("miniature/base/vae", "vae")
    image = ProvingGround("test", 128, 0).scene(0, "image_fill").target[None]
    return vae, params, conditioning.to_model_range(jnp.asarray(image))


# Corners of the four tiles of 24 latents that cover 32, a side.
TILES = [(slice(top, top + 24), slice(left, left + 24)) for top, left in itertools.product((0, 8), repeat=2)]


def scaled(tile, factor):
    return tuple(slice(factor * side.start, factor * side.stop) for side in tile)


def jump(difference):
    """The largest mean step between two columns."""
    return np.abs(np.diff(difference, axis=2)).mean(axis=(0, 1, 3)).max()


def test_a_large_picture_is_decoded_in_tiles_without_seams(photo):
    """On a photograph and the packaged autoencoder: tiles change it by less than half of what the autoencoder itself
    does, and their blending takes away most of the jump between them."""
    vae, params, image = photo
    latents = conditioning.encode_image(vae, params, image)
    decode = lambda latents, tile=None: np.asarray(conditioning.decode_latents(vae, params, latents, tile))
    whole, tiled = decode(latents), decode(latents, 24)
    np.testing.assert_array_equal(decode(latents, 32), whole)
    error = lambda images: np.sqrt(np.square(images - whole).mean())
    assert 0 < error(tiled) < error(np.asarray(image)) / 2
    unblended = np.zeros_like(whole)
    for tile in TILES:  # one over the other
        unblended[:, *scaled(tile, 4)] = decode(latents[:, *tile])
    assert jump(tiled - whole) < jump(unblended - whole) / 2


def test_a_large_picture_is_encoded_in_tiles_without_seams(photo):
    """As it is decoded; the posterior's deviation is blended as its mean is."""
    vae, params, image = photo
    encode = lambda image, tile=None, noise=None: np.asarray(conditioning.encode_image(vae, params, image, noise, tile))
    whole, tiled = encode(image), encode(image, 24)
    np.testing.assert_array_equal(encode(image, 32), whole)
    assert 0 < np.sqrt(np.square(tiled - whole).mean()) < 0.1  # of latents whose deviation is 1
    unblended = np.zeros_like(whole)
    for tile in TILES:
        unblended[:, *tile] = encode(image[:, *scaled(tile, 4)])
    assert jump(tiled - whole) < jump(unblended - whole) / 2
    noise = np.ones_like(whole)
    np.testing.assert_allclose(
        encode(image, 24, noise) - tiled, encode(image, None, noise) - whole, atol=0.05 * vae.scaling_factor
    )


def test_goldens(tmp_path):
    """What diffusers made of the same model and request, with and without an adapter that we exported, see
    `tests.parity.test_fill`: for where it is missing."""
    plain = tiny_fill.drawn_pipeline(tmp_path)
    params = plain.params["transformer"]
    save_adapter(tmp_path / "adapter", "transformer", tiny_fill.drawn_adapter(params), 0.7)
    live = with_adapters("transformer", params, [(tmp_path / "adapter", 1.0)])
    merged = lora.merge(params, load_adapters("transformer", params, [(tmp_path / "adapter", 1.0)]))
    goldens = {"plain": np.load(tiny_fill.GOLDEN), "adapted": np.load(tiny_fill.GOLDEN_ADAPTED)}
    error = lambda made, golden: np.linalg.norm(made - golden) / np.linalg.norm(golden)
    assert error(goldens["plain"], goldens["adapted"]) > 0.01
    for transformer, golden in ((params, "plain"), (live, "adapted"), (merged, "adapted")):
        pipeline = dataclasses.replace(plain, params=plain.params | {"transformer": transformer})
        assert error(drawn_request(pipeline), goldens[golden]) < 1e-4


def drawn_request(pipeline):
    images, masks, noise = tiny_fill.fill_request()
    return pipeline(
        prompt=tiny_fill.FILL_PROMPTS,
        image=images,
        mask_image=masks,
        negative_prompt=tiny_fill.FILL_NEGATIVE,
        num_inference_steps=tiny_fill.FILL_STEPS,
        guidance_scale=1.0,
        true_cfg_scale=4.0,
        noise=noise,
        posterior="mode",
        max_sequence_length=tiny_fill.T5_LENGTH,
        output_type="array",
    ).images


@pytest.mark.parametrize(("side", "tile"), [(16, 16), (17, 16), (28, 16), (40, 16), (129, 128)])
def test_tiles_cover_every_pixel_once(side, tile):
    starts, shares = conditioning._tiles(side, tile, 2)
    total = np.zeros(2 * side)
    for start, share in zip(starts, shares, strict=True):
        total[2 * start : 2 * start + len(share)] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_what_a_tokenizer_does_not_know_is_warned_of(pipeline, image, mask):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(pipeline, image, mask, "红色 circle")
    assert [str(w.message) for w in caught] == ["T5 has no token for '红色' in the prompt: use other words"]


@pytest.mark.parametrize(
    "changes",
    [
        {"image": []},
        {"image": np.zeros((8, 8, 4), np.uint8)},
        {"mask_image": np.zeros((HEIGHT, WIDTH), np.uint8)},
        {"mask_image": np.ones((8, 8), bool)},
        {"prompt": ["a", "b"], "image": np.zeros((3, 8, 8, 3), np.uint8)},
        {"noise": np.zeros((1, 2, 2, 4))},
        {"output_type": "pt"},
        {"posterior": "mean"},
        {"num_inference_steps": 0},
        {"true_cfg": np.nan},
        {"max_sequence_length": 513},
    ],
)
def test_what_does_not_fit_is_one_sentence(pipeline, image, mask, changes):
    given = {"prompt": PROMPT, "image": image, "mask_image": mask} | SETTINGS | changes
    with pytest.raises(UserError) as caught:
        pipeline(**given)
    assert "\n" not in str(caught.value)


def test_what_the_model_can_not_make_is_one_sentence(pipeline, image, mask):
    params = pipeline.params | {"transformer": jax.tree.map(lambda x: x * np.nan, pipeline.params["transformer"])}
    with pytest.raises(UserError):
        call(dataclasses.replace(pipeline, params=params), image, mask)
    too_much = pytest.raises(UserError)
    with too_much, in_memory("a picture", "make it smaller"):
        jnp.zeros(2**46).block_until_ready()


def test_images_of_different_sizes_and_adapters_are_refused(pipeline, directory, image, mask):
    with pytest.raises(UserError, match="24x12, 24x16"):
        call(pipeline, [image, image[:12]], [mask, mask[:12]])
    with pytest.raises(FileNotFoundError):
        FillPipeline.from_pretrained(directory, lora="x")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FillPipeline.from_pretrained("nowhere")
