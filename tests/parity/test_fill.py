"""FillPipeline equals diffusers' FluxFillPipeline, whole: prompts and pictures in, pictures out, from one directory.

diffusers' pipeline has no true guidance; OneReward's, whose semantics these are, calls the transformer for both prompts
with one embedded guidance and steps by `v_neg + s·(v_pos − v_neg)`: so does `guided` here, around diffusers' own call.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from onereward_jax import FillPipeline  # noqa: E402
from onereward_jax.flow import conditioning, sampler  # noqa: E402
from onereward_jax.flow.conditioning import latent_shape  # noqa: E402
from onereward_jax.models import lora  # noqa: E402
from onereward_jax.weights.peft_adapters import save_adapter  # noqa: E402
from tests.support import parity, tiny_fill  # noqa: E402
from tests.support.official_fill import guided, opened  # noqa: E402

HEIGHT, WIDTH, STEPS, LENGTH = tiny_fill.FILL_HEIGHT, tiny_fill.FILL_WIDTH, tiny_fill.FILL_STEPS, tiny_fill.T5_LENGTH
PROMPTS, NEGATIVE = tiny_fill.FILL_PROMPTS, tiny_fill.FILL_NEGATIVE
SETTINGS = {"num_inference_steps": STEPS, "max_sequence_length": LENGTH}
IMAGE_TOLERANCE, VELOCITY_TOLERANCE = 1e-4, 1e-5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model as diffusers and transformers write it."""
    path = tmp_path_factory.mktemp("model")
    tokenizer, tokenizer_2, _, t5, *_ = tiny_fill.text_encoders(tmp_path_factory.mktemp("tokenizers"), layers=2)
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tiny_fill.CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text_config_2 = {name: getattr(t5, name) for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")}
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_config))
    text_encoder_2 = transformers.T5EncoderModel(
        transformers.T5Config(**text_config_2, num_layers=2, feed_forward_proj="gated-gelu")
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16 + 16 + 16,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=t5.d_model,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "vae": vae, "transformer": transformer}
    for seed, module in enumerate(parts.values()):
        parity.randomize(module, seed, noise=0.05)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_image_seq_len=16)
    diffusers.FluxFillPipeline(scheduler, tokenizer=tokenizer, tokenizer_2=tokenizer_2, **parts).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def request_():
    return tiny_fill.fill_request()


def theirs(pipeline, request_, scale, guidance, posterior="mode"):
    """Pictures (B, H, W, 3) in [0, 1], and the records of `guided`."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    images, masks, noise = request_
    records = []
    latents = pipeline._pack_latents(torch.from_numpy(noise).permute(0, 3, 1, 2), 2, 4, HEIGHT // 2, WIDTH // 2)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), parity.one_thread(), guided(pipeline, scale, records):
        # The posterior's random numbers are torch's own; its mean is the same for both.
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        pictures = pipeline(
            prompt=PROMPTS,
            image=torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2),
            mask_image=torch.from_numpy(masks / np.float32(255))[:, None],
            height=HEIGHT,
            width=WIDTH,
            guidance_scale=guidance,
            latents=latents,
            output_type="np",
            **SETTINGS,
        ).images
    return pictures, records


def ours(pipeline, request_, scale, guidance):
    images, masks, noise = request_
    return pipeline(
        prompt=PROMPTS,
        image=images,
        mask_image=masks,
        negative_prompt=NEGATIVE,
        guidance_scale=guidance,
        true_cfg_scale=scale,
        noise=noise,
        posterior="mode",
        output_type="array",
        **SETTINGS,
    ).images


def assert_same_velocities(pipeline, request_, records, scale, guidance):
    """Ours are theirs, at the places where theirs went through."""
    images, masks, _ = request_
    encode = lambda texts: pipeline.prompts.encode(texts, LENGTH)
    height, width, _ = latent_shape(pipeline.vae, HEIGHT, WIDTH)

    @jax.jit
    def velocity(params, text, tokens, sigma):
        pictures = conditioning.encode_masked_image(pipeline.vae, params["vae"], images, masks // 255)
        condition = conditioning.Condition(*pictures, *text)
        ids = conditioning.image_ids(height, width)
        field = sampler.velocity_of(pipeline.transformer, params["transformer"], condition, ids, guidance, scale)
        return field(tokens, sigma)

    text = (*encode(PROMPTS), *encode([NEGATIVE] * 2))
    assert len(records) == STEPS
    with jax.default_matmul_precision("highest"):
        found = [velocity(pipeline.params, text, jnp.asarray(x), jnp.asarray(sigma)) for x, sigma, _ in records]
    errors = [parity.relative_error(v, record[2]) for v, record in zip(found, records, strict=True)]
    assert max(errors) < VELOCITY_TOLERANCE, errors


@pytest.mark.parametrize(("scale", "guidance"), [(4.0, 1.0), (1.0, 3.5)])
def test_float32(directory, request_, scale, guidance):
    """With and without true guidance. At an embedded guidance of 30, FLUX.1-Fill's own, one unit in the last place of a
    frequency, in which torch's `exp` differs between machines, is worth up to 3.6e-3 in the angles of its features, see
    `test_flux.test_time_features`; the velocities then agree to 1.1e-5, the pictures as here.
    """
    expected, records = theirs(opened(directory), request_, scale, guidance)
    pipeline = FillPipeline.from_pretrained(directory, dtype="float32")
    made = ours(pipeline, request_, scale, guidance)
    assert ((expected > 0) & (expected < 1)).mean() > 0.5  # the clip at the end hides little
    assert parity.relative_error(made, expected) < IMAGE_TOLERANCE
    assert_same_velocities(pipeline, request_, records, scale, guidance)


def test_bfloat16_is_as_close_to_float32_as_diffusers_own(directory, request_):
    exact, _ = theirs(opened(directory), request_, 4.0, 1.0)
    half, _ = theirs(opened(directory, torch.bfloat16), request_, 4.0, 1.0)
    made = ours(FillPipeline.from_pretrained(directory), request_, 4.0, 1.0)
    assert parity.relative_error(made, exact) < parity.relative_error(half, exact)


def test_a_round_trip_opens_in_diffusers_without_a_warning_and_makes_the_same_pictures(
    directory, request_, tmp_path, caplog
):
    pipeline = FillPipeline.from_pretrained(directory, dtype="float32")
    pipeline.save_pretrained(tmp_path / "exported")
    loggers = [library.utils.logging.get_logger(name) for library, name in _LIBRARIES]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        again = opened(tmp_path / "exported")
        pictures, _ = theirs(again, request_, 4.0, 1.0)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert not caplog.messages
    expected, _ = theirs(opened(directory), request_, 4.0, 1.0)
    assert parity.relative_error(pictures, expected) < IMAGE_TOLERANCE
    assert parity.relative_error(ours(pipeline, request_, 4.0, 1.0), pictures) < IMAGE_TOLERANCE


_LIBRARIES = ((diffusers, "diffusers"), (transformers, "transformers"))


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_tiles_equal_diffusers(directory, way):
    """Where both lay a tile: diffusers adds a last, small one at the end of each side. And outside of the crossings of
    two seams, where its order of blending counts the upper left tile twice."""
    vae = opened(directory).vae
    tile, overlap = 16, 4
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, 2 * tile
    pipeline = FillPipeline.from_pretrained(directory, dtype="float32")
    module, params = pipeline.vae.clone(scaling_factor=1.0, shift_factor=0.0), pipeline.params["vae"]
    functions = {
        "encode": (2, 3, 1, lambda x: vae._tiled_encode(x)[:, :4], conditioning.encode_image),
        "decode": (1, 4, 2, lambda x: vae.tiled_decode(x).sample, conditioning.decode_latents),
    }
    reads, channels, writes, official, own = functions[way]
    array = np.random.default_rng(0).standard_normal((1, 28 * reads, 28 * reads, channels)).astype(np.float32)
    with torch.no_grad(), parity.one_thread():
        expected = official(torch.from_numpy(array).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    made, whole = own(module, params, array, tile=tile), own(module, params, array)
    inside = writes * (28 - overlap)
    seam = slice(writes * (tile - overlap), writes * tile)
    compared = np.ones((inside, inside), bool)
    compared[seam, seam] = False
    pick = lambda images: np.asarray(images)[0, :inside, :inside][compared]
    assert parity.relative_error(pick(made), pick(expected)) < parity.TOLERANCE
    assert parity.relative_error(pick(whole), pick(expected)) > 100 * parity.TOLERANCE  # the tiles are seen


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter(directory, request_, tmp_path):
    """Of every kind of layer, through the whole pipeline: as `load_lora_weights` applies it."""
    pytest.importorskip("peft")
    plain = FillPipeline.from_pretrained(directory, dtype="float32")
    adapter = lora.LoRA(rank=4, alpha=4.0).init(plain.params["transformer"], jax.random.key(0))
    trained = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
    save_adapter(tmp_path, "transformer", trained, 0.7)
    official = opened(directory)
    official.load_lora_weights(tmp_path)
    expected, records = theirs(official, request_, 4.0, 1.0)
    adapted = FillPipeline.from_pretrained(directory, dtype="float32", lora=tmp_path)
    assert parity.relative_error(ours(adapted, request_, 4.0, 1.0), expected) < IMAGE_TOLERANCE
    assert_same_velocities(adapted, request_, records, 4.0, 1.0)
    assert parity.relative_error(ours(plain, request_, 4.0, 1.0), expected) > 100 * IMAGE_TOLERANCE


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_goldens_are_what_diffusers_makes(request_, tmp_path):
    """`python -m tests.parity.test_fill` writes them anew."""
    for file, made in goldens(request_, tmp_path).items():
        assert parity.relative_error(made, np.load(file)) < parity.TOLERANCE, file.name


def goldens(request, directory):
    """{file: pictures}, plain and with an adapter."""
    pipeline = tiny_fill.drawn_pipeline(directory / "tokenizers")
    pipeline.save_pretrained(directory / "model")
    save_adapter(directory / "adapter", "transformer", tiny_fill.drawn_adapter(pipeline.params["transformer"]), 0.7)
    official = opened(directory / "model")
    plain = theirs(official, request, 4.0, 1.0)[0]
    official.load_lora_weights(directory / "adapter")
    return {tiny_fill.GOLDEN: plain, tiny_fill.GOLDEN_ADAPTED: theirs(official, request, 4.0, 1.0)[0]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for file, made in goldens(tiny_fill.fill_request(), Path(scratch)).items():
            np.save(file, made)
