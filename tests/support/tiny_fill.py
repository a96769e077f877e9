"""A whole fill model of random weights, small enough for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax import tree
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.fill.prompts import PromptEncoder
from onereward_jax.flow.schedule import Shift
from onereward_jax.models import lora
from onereward_jax.proving_ground import tokenizers
from onereward_jax.weights.names import clip, flux, t5, vae
from tests.support.random_params import random_params

PROMPTS = ["a small red circle", "remove", 'the word "SUN"', "a large blue square", ""]
CLIP_LENGTH, T5_LENGTH = 11, 9

# The request of the whole pipeline's comparison with diffusers, and what diffusers made of it with `drawn_pipeline`.
FILL_PROMPTS, FILL_NEGATIVE, FILL_STEPS = ["a small red circle", 'the word "SUN"'], "a large blue square", 4
FILL_HEIGHT, FILL_WIDTH = 24, 40
GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "fill.npy"
GOLDEN_ADAPTED = GOLDEN.with_name("fill_adapted.npy")  # with `drawn_adapter`


def text_encoders(directory: Path, layers: int = 1) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Tokenizers (their files go to `directory`), CLIP and T5, and their parameters: the fields of a PromptEncoder."""
    tokenizer = tokenizers.write_clip_tokenizer(directory / "tokenizer", PROMPTS, model_max_length=CLIP_LENGTH)
    tokenizer_2 = tokenizers.write_t5_tokenizer(directory / "tokenizer_2", PROMPTS)
    text_encoder = clip.module_from_config(
        {
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "max_position_embeddings": CLIP_LENGTH,
            "eos_token_id": tokenizer.eos_token_id,
        }
    )
    text_encoder_2 = t5.module_from_config(
        {
            "vocab_size": len(tokenizer_2),
            "d_model": 24,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": layers,
            "num_heads": 2,
            "feed_forward_proj": "gated-gelu",
        }
    )
    params, params_2 = random_params(text_encoder, clip), random_params(text_encoder_2, t5)
    return tokenizer, tokenizer_2, text_encoder, text_encoder_2, params, params_2


TRANSFORMER = {
    "in_channels": 16 + 16 + 16,
    "out_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 16,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def transformer() -> tuple[Any, Any]:
    """The pipeline's transformer and random parameters of it."""
    module = flux.module_from_config(TRANSFORMER)
    return module, random_params(module, flux)


def pipeline(directory: Path) -> FillPipeline:
    """Latents are a quarter of the pixels, with four channels; `directory` gets the tokenizers' files."""
    transformer = flux.module_from_config(TRANSFORMER, attention_implementation="auto")  # as a pipeline is opened
    autoencoder = vae.module_from_config(
        {
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "scaling_factor": 0.5,
            "shift_factor": 0.1,
        }
    )
    return FillPipeline(
        transformer,
        autoencoder,
        {"transformer": random_params(transformer, flux), "vae": random_params(autoencoder, vae)},
        PromptEncoder(*text_encoders(directory)),
        Shift(base_image_seq_len=4, max_image_seq_len=64, base_shift=0.3, max_shift=1.0),
    )


def drawn_pipeline(directory: Path) -> FillPipeline:
    """`pipeline` with parameters that are the same with every version of JAX."""
    drawn = pipeline(directory)
    draw = np.random.default_rng(0)
    redraw = lambda params: tree.map_with_path(
        lambda path, x: np.float32(path.endswith("scale")) + 0.2 * draw.standard_normal(x.shape).astype(np.float32),
        params,
    )
    drawn.params = {name: redraw(drawn.params[name]) for name in ("transformer", "vae")}
    drawn.prompts.text_encoder_params = redraw(drawn.prompts.text_encoder_params)
    drawn.prompts.text_encoder_2_params = redraw(drawn.prompts.text_encoder_2_params)
    return drawn


def drawn_adapter(params: Any) -> Any:
    """Of every layer of a `drawn_pipeline`'s transformer, of rank 2."""
    draw = np.random.default_rng(1)
    normal = lambda *shape: 0.1 * draw.standard_normal(shape).astype(np.float32)
    return lora.from_factors(
        {
            path: (normal(*kernel.shape[:-1], 2), normal(*kernel.shape[:-2], 2, kernel.shape[-1]))
            for path, kernel in sorted(lora.layers(params).items())
        }
    )


def fill_request() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images uint8 (2, H, W, 3), masks (2, H, W) 0 or 255, noise float32 (2, H/2, W/2, 4)."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, FILL_HEIGHT, FILL_WIDTH, 3), np.uint8)
    masks = np.zeros((2, FILL_HEIGHT, FILL_WIDTH), np.uint8)
    masks[0, 5:20, 3:30] = masks[1, :, 20:] = 255
    return images, masks, draw.standard_normal((2, FILL_HEIGHT // 2, FILL_WIDTH // 2, 4)).astype(np.float32)
