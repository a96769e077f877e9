"""A CLIP model of random weights, in the files of a release."""

import json
from pathlib import Path

from onereward_jax.proving_ground.tokenizers import write_clip_tokenizer
from onereward_jax.weights.names import clip_with_images
from onereward_jax.weights.save import save_component
from tests.support.random_params import random_params

SIZE = 16  # pixels of a side of what it sees
LENGTH = 11  # tokens


def write(directory: Path) -> Path:
    """Write it to a new directory, and return that."""
    widths = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    directory.mkdir(parents=True)
    tokens = write_clip_tokenizer(directory.parent / "words", ["a small red circle"], LENGTH)
    text = widths | {"vocab_size": len(tokens), "max_position_embeddings": LENGTH, "eos_token_id": tokens.eos_token_id}
    config = {
        "text_config": text,
        "vision_config": widths | {"image_size": SIZE, "patch_size": 4},
        "projection_dim": 12,
    }
    module = clip_with_images.module_from_config(config)
    save_component(directory, "clip", module, random_params(module, clip_with_images))
    write_clip_tokenizer(directory, ["a small red circle"], LENGTH)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": SIZE, "width": SIZE},
        "size": {"shortest_edge": SIZE},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory
