"""FillPipeline, and the velocity under true guidance."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.fill import denoising
from onereward_jax.fill.diffusers_io import read_shift
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.flow.schedule import Shift, sigmas
from tests.support import tiny_fill

HEIGHT, WIDTH, STEPS = 8, 12, 3
PROMPTS = tiny_fill.PROMPTS[:2]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_fill.pipeline(tmp_path_factory.mktemp("tokenizers"))


def request(pipeline):
    """Images, masks, prompts and noise of two samples."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = generator.integers(0, 2, (2, HEIGHT, WIDTH), dtype=np.uint8)
    noise = sample_noise(jax.random.key(0), [0, 1], latent_shape(pipeline.vae, HEIGHT, WIDTH))
    return images, masks, PROMPTS, noise


def generate(pipeline, **settings):
    settings = {"num_steps": STEPS, "guidance_scale": 2.0, "max_sequence_length": tiny_fill.T5_LENGTH} | settings
    return pipeline.generate(*request(pipeline), **settings)


def condition_of(pipeline, negative_prompt="a large blue square"):
    images, masks, prompts, _ = request(pipeline)
    masked_image, mask = conditioning.encode_masked_image(pipeline.vae, pipeline.params["vae"], images, masks)
    encode = lambda texts: pipeline.prompts.encode(texts, tiny_fill.T5_LENGTH)
    return conditioning.Condition(masked_image, mask, *encode(prompts), *encode([negative_prompt] * 2))


def test_samples_of_a_batch_have_settings_of_their_own(pipeline):
    """Each is what it is in a batch of those settings, however many steps its neighbour takes; one program serves all.

    The batch of those settings is given by rows, too, and that by one number for all of them.
    """
    each = [(2, 1.0, 1.5), (5, 3.0, 4.0)]

    def made(rows):
        steps, guidance, true_cfg = zip(*rows, strict=True)
        scales = {"guidance_scale": guidance, "true_cfg_scale": true_cfg}
        return generate(pipeline, num_steps=steps, negative_prompt=["", "a large blue square"], **scales)

    programs = denoising.fill._cache_size()
    mixed = made(each)
    for row, own in enumerate(each):
        np.testing.assert_allclose(mixed[row], made([own] * 2)[row], atol=1e-5)
    assert denoising.fill._cache_size() == programs + 1
    steps, guidance, true_cfg = each[1]
    alike = generate(
        pipeline,
        num_steps=steps,
        negative_prompt="a large blue square",
        guidance_scale=guidance,
        true_cfg_scale=true_cfg,
    )
    np.testing.assert_allclose(mixed[1], alike[1], atol=1e-5)
    assert np.abs(mixed[0] - alike[0]).max() > 1e-3


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_true_guidance_goes_from_the_negative_to_the_positive_velocity(pipeline, scale, traced):
    condition = condition_of(pipeline)
    negative = condition.replace(prompt_embeds=condition.negative_prompt_embeds, pooled=condition.negative_pooled)
    ids = conditioning.image_ids(HEIGHT // 2, WIDTH // 2)
    tokens = conditioning.pack(request(pipeline)[-1])
    sigma = jnp.array([0.8, 0.3])

    def velocity(condition, *scales):
        field = sampler.velocity_of(pipeline.transformer, pipeline.params["transformer"], condition, ids, 2.0, *scales)
        return np.asarray(field(tokens, sigma))

    v_pos, v_neg = velocity(condition), velocity(negative)
    assert np.linalg.norm(v_pos - v_neg) > 1e-3 * np.linalg.norm(v_pos)
    guided = velocity(condition, jnp.float32(scale) if traced else scale)
    np.testing.assert_allclose(guided, v_neg + scale * (v_pos - v_neg), atol=1e-5)
    if scale == 1.0 and not traced:
        np.testing.assert_array_equal(guided, v_pos)


@pytest.mark.parametrize("true_cfg_scale", [1.0, 3.0])
def test_pictures_are_those_of_euler_steps_to_the_end(pipeline, true_cfg_scale):
    """A picture is `denoise` through the whole schedule, decoded; and so is a one-step prediction from the last
    index before σ = 0."""
    guidance = {"true_cfg_scale": true_cfg_scale, "negative_prompt": "a large blue square"}
    pictures = generate(pipeline, **guidance)
    assert pictures.shape == (2, HEIGHT, WIDTH, 3)
    assert ((pictures > 0) & (pictures < 1)).mean() > 0.5  # the clip at the end hides little
    np.testing.assert_array_equal(pictures, generate(pipeline, stop=STEPS - 1, **guidance))
    assert np.abs(pictures - generate(pipeline, stop=STEPS - 2, **guidance)).max() > 1e-4

    ids = conditioning.image_ids(HEIGHT // 2, WIDTH // 2)
    velocity = sampler.velocity_of(
        pipeline.transformer, pipeline.params["transformer"], condition_of(pipeline), ids, 2.0, true_cfg_scale
    )
    noise = conditioning.pack(request(pipeline)[-1])
    tokens = sampler.denoise(velocity, noise, sigmas(STEPS, len(ids), pipeline.shift), STEPS)
    latents = conditioning.unpack(tokens, HEIGHT // 2, WIDTH // 2)
    expected = conditioning.to_unit_range(conditioning.decode_latents(pipeline.vae, pipeline.params["vae"], latents))
    np.testing.assert_allclose(pictures, np.clip(expected, 0, 1), atol=1e-5)


def test_one_step_prediction_equals_the_policys(pipeline):
    """`stop` = t is what reward feedback learning does: Euler steps to t, then x − σ·v."""
    ids = conditioning.image_ids(HEIGHT // 2, WIDTH // 2)
    velocity = sampler.velocity_of(
        pipeline.transformer, pipeline.params["transformer"], condition_of(pipeline), ids, 2.0
    )
    schedule = jnp.asarray(sigmas(STEPS, len(ids), pipeline.shift))
    tokens = sampler.denoise(velocity, conditioning.pack(request(pipeline)[-1]), schedule, 1)
    tokens = sampler.predict_data(velocity, tokens, jnp.full(2, schedule[1]))
    latents = conditioning.unpack(tokens, HEIGHT // 2, WIDTH // 2)
    expected = conditioning.to_unit_range(conditioning.decode_latents(pipeline.vae, pipeline.params["vae"], latents))
    np.testing.assert_allclose(generate(pipeline, stop=1), np.clip(expected, 0, 1), atol=1e-5)


def test_another_parameter_set_makes_other_pictures(pipeline):
    other = jax.tree.map(lambda x: x + 0.05, pipeline.params["transformer"])
    assert np.abs(generate(pipeline) - generate(pipeline, transformer_params=other)).max() > 1e-3


def test_a_saved_pipeline_makes_the_same_pictures(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    opened = FillPipeline.from_pretrained(tmp_path, dtype="float32")
    assert opened.shift == pipeline.shift
    assert (opened.transformer, opened.vae) == (pipeline.transformer, pipeline.vae)
    settings = {"true_cfg_scale": 3.0, "negative_prompt": "a large blue square"}
    np.testing.assert_array_equal(generate(opened, **settings), generate(pipeline, **settings))


def test_a_size_that_does_not_divide_is_refused(pipeline):
    with pytest.raises(UserError):
        latent_shape(pipeline.vae, 8, 10)


def test_without_a_negative_prompt_there_is_no_true_guidance(pipeline):
    """As diffusers' FluxPipeline, whose default None is."""
    images, masks, prompts, noise = request(pipeline)
    call = lambda **settings: (
        pipeline(
            prompts,
            image=images,
            mask_image=masks * 255,
            noise=noise,
            num_inference_steps=STEPS,
            guidance_scale=2.0,
            max_sequence_length=tiny_fill.T5_LENGTH,
            posterior="mode",
            output_type="np",
            **settings,
        ).images
    )
    plain = call()
    np.testing.assert_array_equal(call(negative_prompt=None, true_cfg_scale=4.0), plain)
    np.testing.assert_array_equal(call(negative_prompt=None), plain)
    assert not np.array_equal(call(negative_prompt="", true_cfg_scale=4.0), plain)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.5, 255.0])
def test_float_images_outside_the_range_are_refused(pipeline, value):
    images, masks, prompts, _ = request(pipeline)
    floats = images / np.float32(255)
    floats[0, 0, 0, 0] = value
    with pytest.raises(UserError, match="image 0 can't be read: an image of floats"):
        pipeline(prompts, image=floats, mask_image=masks * 255)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas True, but only False"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"num_train_timesteps": 500}, "num_train_timesteps 500"),
        ({"_class_name": "EulerDiscreteScheduler"}, "describes a EulerDiscreteScheduler"),
        ({"_class_name": 3}, "describes a 3"),
        ({"time_shift_type": "cubic"}, "time_shift_type"),
        ({"shift": 0}, "shift is 0"),
        ({"shift": "3"}, "shift is '3'"),
        ({"shift_terminal": 1.0}, "shift_terminal is 1.0"),
        ({"base_shift": True}, "base_shift is True"),
        ({"base_image_seq_len": 4096}, "both 4096"),
        ({"max_image_seq_len": 1.5}, "max_image_seq_len"),
    ],
)
def test_a_schedule_that_is_not_supported_is_one_sentence(tmp_path, change, said):
    (tmp_path / "scheduler").mkdir()
    config = {"use_dynamic_shifting": True, "shift": 3.0} | change
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"scheduler_config\.json.*{said}"):
        read_shift(tmp_path)


def test_a_shift_that_fits_no_such_image_is_one_sentence():
    with pytest.raises(UserError, match="can't be shifted"):
        sigmas(4, 10**6, Shift(max_image_seq_len=257, base_shift=0.0, max_shift=100.0))
    with pytest.raises(UserError, match="can't be shifted"):
        sigmas(4, 1, Shift(time_shift_type="linear", base_shift=-1.0))
    with pytest.raises(UserError, match="needs two steps"):
        sigmas(1, 256, Shift(shift_terminal=0.1))
