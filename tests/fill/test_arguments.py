"""What a call of FillPipeline takes beside an image, a mask and a prompt; tests/parity compares it with diffusers."""

import jax
import numpy as np
import pytest
from PIL import Image

from onereward_jax.errors import UserError
from onereward_jax.fill import denoising
from onereward_jax.fill.pipeline import sample_noise
from onereward_jax.flow import conditioning
from tests.support import tiny_fill

HEIGHT, WIDTH, STEPS = 16, 24, 3
SIZE = (HEIGHT, WIDTH)
PROMPT, OTHER = tiny_fill.PROMPTS[:2]
SETTINGS = {
    "num_inference_steps": STEPS,
    "guidance_scale": 2.0,
    "max_sequence_length": tiny_fill.T5_LENGTH,
    "output_type": "np",
}
TOKENS = (HEIGHT // 4 * WIDTH // 4, 16)  # of an image


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_fill.pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def given():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[4:12, 6:20] = 255
    return {"image": image, "mask_image": mask}


@pytest.fixture(scope="module")
def fill(pipeline, given):
    return lambda prompt=PROMPT, **changes: pipeline(prompt, **(SETTINGS | given | changes)).images


@pytest.fixture(scope="module")
def one(fill):
    return fill()


@pytest.fixture(scope="module")
def two(fill):
    return fill([PROMPT, OTHER])


def packed_noise(seed, count=1):
    key = jax.random.split(jax.random.key(seed))[0]
    return np.asarray(conditioning.pack(sample_noise(key, range(count), (HEIGHT // 2, WIDTH // 2, 4))))


def test_an_output_is_a_tuple_with_a_name(pipeline, fill, given, one):
    output = pipeline(PROMPT, **SETTINGS, **given, return_dict=False, joint_attention_kwargs=None)
    np.testing.assert_array_equal(output[0], one)
    assert output[0] is output.images


def test_two_prompts_two_encoders(fill, one):
    np.testing.assert_array_equal(fill(prompt_2=PROMPT), one)
    assert np.abs(fill(prompt_2=OTHER) - one).max() > 1e-5
    assert np.abs(fill(prompt_2=OTHER) - fill(OTHER)).max() > 1e-5


def test_encoded_prompts(pipeline, fill, two):
    texts = [PROMPT, OTHER]
    states, pooled = map(np.asarray, pipeline.prompts.encode(texts, tiny_fill.T5_LENGTH))
    np.testing.assert_array_equal(fill(None, prompt_embeds=states, pooled_prompt_embeds=pooled), two)
    guided = {"true_cfg_scale": 3.0}
    expected = fill(texts, negative_prompt=texts[::-1], negative_prompt_2=OTHER, **guided)
    negative_states, negative_pooled = map(
        np.asarray, pipeline.prompts.encode(texts[::-1], tiny_fill.T5_LENGTH, [OTHER] * 2)
    )
    made = fill(texts, negative_prompt_embeds=negative_states, negative_pooled_prompt_embeds=negative_pooled, **guided)
    np.testing.assert_array_equal(made, expected)


def test_seeds(fill, one, two):
    """Each image of a list of seeds is what it is alone."""
    np.testing.assert_array_equal(fill(generator=0), one)
    of_seeds = fill([PROMPT, OTHER], generator=[5, 0])
    np.testing.assert_allclose(of_seeds[:1], fill(seed=5), atol=1e-6)
    np.testing.assert_allclose(of_seeds[1:], fill(OTHER), atol=1e-6)
    assert np.abs(of_seeds - two).max() > 1e-3


def test_images_per_prompt_come_one_after_the_other(given, fill, two):
    np.testing.assert_array_equal(fill(num_images_per_prompt=2), fill([PROMPT, PROMPT]))
    image = given["image"][::-1]
    pair = fill(image=np.stack([given["image"], image]), generator=[1, 2])
    alone = fill(image=image, num_images_per_prompt=2, generator=[1, 2])
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_array_equal(alone[1], pair[1])


def test_latents_are_the_noise_packed(fill, one):
    np.testing.assert_array_equal(fill(latents=packed_noise(0)), one)
    assert np.abs(fill(latents=packed_noise(3)) - one).max() > 1e-3


def test_a_size_is_that_of_resized_images(fill, given, one):
    large = {
        "image": np.asarray(Image.fromarray(given["image"]).resize((2 * WIDTH, 3 * HEIGHT), Image.Resampling.BOX)),
        "mask_image": given["mask_image"].repeat(3, axis=0).repeat(2, axis=1),
    }
    small = {
        "image": Image.fromarray(large["image"]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS),
        "mask_image": Image.fromarray(large["mask_image"]).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS),
    }
    np.testing.assert_array_equal(fill(**large, height=HEIGHT, width=WIDTH), fill(**small))
    with pytest.warns(UserWarning, match="height 19 is no multiple of 4: the images get 16"):
        np.testing.assert_array_equal(fill(height=HEIGHT + 3, width=WIDTH), one)


def test_a_schedule_of_ones_own(fill, one):
    np.testing.assert_array_equal(fill(sigmas=np.linspace(1, 1 / STEPS, STEPS), num_inference_steps=50), one)
    assert np.abs(fill(sigmas=[1.0, 0.5]) - one).max() > 1e-4


def test_strength_starts_from_the_image(pipeline, given, fill):
    """Two steps of three, from σ·ε + (1 − σ)·x."""
    sigma = pipeline.family.schedule(STEPS, *SIZE)[1]
    pixels = conditioning.to_model_range(given["image"][None])
    data = np.asarray(conditioning.pack(conditioning.encode_image(pipeline.vae, pipeline.params["vae"], pixels)))
    start = sigma * packed_noise(0) + (1 - sigma) * data
    made = fill(strength=0.5, posterior="mode")
    np.testing.assert_allclose(made, fill(strength=0.5, posterior="mode", latents=start), atol=1e-5)
    assert np.abs(made - fill(strength=0.5, posterior="mode", latents=packed_noise(0))).max() > 1e-3


def test_latents_out_and_latents_of_the_masked_image_in(pipeline, given, fill, one):
    latents = fill(output_type="latent")
    assert latents.shape == (1, *TOKENS)
    made = conditioning.to_unit_range(
        conditioning.decode_latents(
            pipeline.vae, pipeline.params["vae"], conditioning.unpack(latents, HEIGHT // 2, WIDTH // 2)
        )
    )
    np.testing.assert_allclose(np.clip(made, 0, 1), one, atol=1e-5)
    masks = (given["mask_image"][None] > 0).astype(np.uint8)
    encoded, packed = conditioning.encode_masked_image(
        pipeline.vae, pipeline.params["vae"], given["image"][None], masks
    )
    expected, without = fill(posterior="mode"), {"image": None, "masked_image_latents": np.asarray(encoded)}
    np.testing.assert_allclose(fill(**without), expected, atol=1e-5)
    both = {"masked_image_latents": np.concatenate([encoded, packed], axis=-1), "mask_image": None}
    np.testing.assert_allclose(fill(**without | both, height=HEIGHT, width=WIDTH), expected, atol=1e-5)


def test_a_callback_sees_every_step_and_changes_what_it_likes(pipeline, fill, one):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((pipe.num_timesteps, pipe.guidance_scale, step, float(timestep), tensors["latents"].shape))
        assert list(tensors) == ["latents"]
        return tensors

    programs = denoising.fill._cache_size()
    np.testing.assert_allclose(fill(callback_on_step_end=look), one, atol=1e-6)
    assert denoising.fill._cache_size() == programs  # the whole fill is no program of a callback's
    timesteps = 1000 * pipeline.family.schedule(STEPS, *SIZE)[:STEPS]
    assert seen == [(STEPS, 2.0, step, float(at), (1, *TOKENS)) for step, at in enumerate(timesteps)]

    def change(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {"latents": np.zeros_like(tensors["latents"])} if step == 1 else {}

    programs = denoising.step._cache_size()
    latents = fill(
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        output_type="latent",
        num_inference_steps=7,
    )
    assert not latents.any()
    assert denoising.step._cache_size() == programs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": None}, "there is no prompt: give one, or prompt_embeds"),
        ({"prompt": 3}, "prompt is 3: give a text"),
        ({"prompt": []}, "prompt is []"),
        ({"prompt_2": ["a", "b", "c"], "prompt": ["a", "b"]}, "differ in number"),
        ({"prompt_embeds": np.zeros((1, 9, 24), np.float32)}, "go together"),
        (
            {"prompt_embeds": np.zeros((1, 9, 24), np.float32), "pooled_prompt_embeds": np.zeros((1, 16), np.float32)},
            "not both",
        ),
        (
            {
                "prompt": None,
                "prompt_embeds": np.zeros((1, 9, 23), np.float32),
                "pooled_prompt_embeds": np.zeros((1, 16), np.float32),
            },
            "prompt_embeds has the shape (1, 9, 23): here it needs (any, any, 24)",
        ),
        (
            {
                "true_cfg_scale": 2.0,
                "negative_prompt_embeds": np.zeros((1, 4, 24), np.float32),
                "negative_pooled_prompt_embeds": np.zeros((1, 16), np.float32),
            },
            "the prompts have 9 tokens, the negative ones 4",
        ),
        ({"true_cfg_scale": 2.0, "negative_prompt": None, "negative_prompt_2": "a"}, "there is no negative_prompt"),
        ({"image": None}, "there is no image"),
        ({"mask_image": None}, "there is no mask_image"),
        ({"masked_image_latents": np.zeros((1, *TOKENS), np.float32)}, "not both"),
        (
            {"image": None, "mask_image": None, "masked_image_latents": np.zeros((1, 24, 32), np.float32)},
            "give height and width",
        ),
        ({"image": None, "masked_image_latents": np.zeros((1, 24, 32), np.float32)}, "(any, 24, 16)"),
        (
            {"image": None, "masked_image_latents": np.zeros((1, *TOKENS), np.float32), "strength": 0.5},
            "starts from the image",
        ),
        ({"height": 0}, "height must be"),
        ({"height": 3}, "height is 3"),
        ({"width": "12"}, "width must be"),
        ({"height": 2**20, "width": 2**20}, "too large"),
        ({"strength": 1.5}, "strength must be"),
        ({"strength": 0.0}, "no step is left of 3"),
        ({"sigmas": [0.5, 1.0]}, "numbers that fall"),
        ({"sigmas": []}, "numbers that fall"),
        ({"sigmas": ["a"]}, "numbers that fall"),
        ({"sigmas": [1.0, 0.0]}, "above 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"generator": [1, 2]}, "2 seeds, but there are 1 images"),
        ({"generator": "a"}, "generator must be"),
        ({"generator": -1}, "generator must be"),
        ({"latents": np.zeros((1, 24, 4), np.float32)}, "latents has the shape"),
        ({"latents": np.full((1, *TOKENS), np.nan, np.float32)}, "NaN"),
        ({"latents": "noise"}, "latents is an array of"),
        ({"output_type": "pt"}, "choose one of pil, array, np, latent"),
        ({"posterior": np.zeros(3, np.float32)}, "posterior has the shape"),
        ({"joint_attention_kwargs": {"scale": 0.5}}, "from_pretrained(lora=)"),
        ({"callback_on_step_end": 3}, "give a function"),
        ({"callback_on_step_end": lambda *args: None}, "return its last argument"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "choose one of latents, prompt_embeds"),
        ({"ip_adapter_image": 1}, "a fill has no argument ip_adapter_image"),
        ({"guidence_scale": 1}, "did you mean guidance_scale?"),
    ],
)
def test_what_does_not_fit_is_one_sentence(fill, changes, said):
    with pytest.raises(UserError) as caught:
        fill(**changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_generator_of_torch_is_told_what_to_give(fill):
    class Generator:
        def initial_seed(self):
            return 0

    for generator in (Generator(), [Generator()]):
        with pytest.raises(UserError, match="generator is of torch, whose numbers JAX can't draw: give a seed"):
            fill(generator=generator)
