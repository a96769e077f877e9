"""A judge of random weights, small enough for tests."""

import atexit
import functools
import pathlib
import shutil
import tempfile
from typing import Any

from onereward_jax import questions
from onereward_jax.judge.conversation import IMAGE_TOKEN
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.vision import ImageSettings
from onereward_jax.proving_ground.tokenizers import write_qwen2_tokenizer
from onereward_jax.weights.names import qwen2_5_vl
from tests.support.random_params import random_params

QUESTIONS = (
    questions.question("image_fill", "structure"),
    questions.question("image_fill", "text_alignment", "a red circle on the left"),
    questions.question("object_removal", "removal_quality"),
)
SETTINGS = ImageSettings(patch_size=4, min_pixels=16 * 16, max_pixels=64 * 64)


def config(vocab_size: int, **changes: Any) -> dict[str, Any]:
    """Three vision layers, the second over the whole image; windows of 2 x 2 tokens; two decoder layers."""
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2, 2, 2]},
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 28,
        "num_heads": 2,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
        "window_size": 16,
        "patch_size": 4,
    }
    for part in (text, vision):
        part |= {name: value for name, value in changes.items() if name in part}
    return {
        "model_type": "qwen2_5_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": changes.get("tie_word_embeddings", False),
    }


_DIRECTORY = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _DIRECTORY, ignore_errors=True)


@functools.cache
def tokenizer() -> Any:
    return write_qwen2_tokenizer(tokenizer_directory(), QUESTIONS)


def tokenizer_directory() -> pathlib.Path:
    return pathlib.Path(_DIRECTORY)


@functools.cache
def judge(**changes: Any) -> Judge:
    image_token = {"image_token_id": tokenizer().convert_tokens_to_ids(IMAGE_TOKEN)}
    model = qwen2_5_vl.module_from_config(config(len(tokenizer()) + 3, **changes) | image_token)
    return Judge(model, random_params(model, qwen2_5_vl, deviation=0.1), tokenizer(), SETTINGS)
