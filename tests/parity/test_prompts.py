"""PromptEncoder equals diffusers' FluxFillPipeline.encode_prompt, from the same directory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from onereward_jax.fill.prompts import PromptEncoder  # noqa: E402
from onereward_jax.proving_ground import tokenizers  # noqa: E402
from tests.support import parity  # noqa: E402

# One of the prompts is longer than CLIP reads, and than T5 does when it reads 8 tokens.
pytestmark = pytest.mark.filterwarnings("ignore:(CLIP|T5) reads:UserWarning")

PROMPTS = ["a small red circle", 'the word "SUN" on a large blue square', "", "remove"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    tokenizer = tokenizers.write_clip_tokenizer(directory / "tokenizer", PROMPTS, model_max_length=12)
    tokenizer_2 = tokenizers.write_t5_tokenizer(directory / "tokenizer_2", PROMPTS)
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=2,  # the legacy rule, as in FLUX
        )
    )
    text_encoder_2 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer_2),
            d_model=24,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    encoders = {
        "text_encoder": parity.randomize(text_encoder),
        "text_encoder_2": parity.randomize(text_encoder_2, seed=1),
    }
    for name, model in encoders.items():
        model.save_pretrained(directory / name)
    pipeline = diffusers.FluxFillPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        **encoders,
    )
    return PromptEncoder.from_pretrained(directory, batch_size=3), pipeline, directory


@pytest.mark.parametrize("max_sequence_length", [16, 8])
def test_encode_prompt(pair, max_sequence_length):
    encoder, pipeline, _ = pair
    states, pooled = encoder.encode(PROMPTS, max_sequence_length)
    with torch.no_grad(), parity.one_thread():
        expected_states, expected_pooled, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=max_sequence_length)
    assert parity.relative_error(states, expected_states) < parity.TOLERANCE
    assert parity.relative_error(pooled, expected_pooled) < parity.TOLERANCE
    assert np.abs(np.diff(pooled, axis=0)).max(axis=1).min() > 1e-3


def test_bfloat16(pair):
    encoder, _, directory = pair
    half = PromptEncoder.from_pretrained(directory, dtype="bfloat16", batch_size=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.text_encoder_2_params)} == {jnp.dtype("bfloat16")}
    for ours, full in zip(half.encode(PROMPTS[:3], 16), encoder.encode(PROMPTS[:3], 16), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert parity.relative_error(ours.astype(jnp.float32), full) < 0.05
