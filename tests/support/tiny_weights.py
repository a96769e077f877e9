"""A tiny module of every kind that is read and written, and random parameters of it."""

import jax
import numpy as np

from onereward_jax.weights import load
from onereward_jax.weights.names import clip, clip_with_images, flux, qwen2_5_vl, t5, vae

FLUX = flux.module_from_config(
    {
        "in_channels": 12,
        "out_channels": 4,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 6,
        "pooled_projection_dim": 5,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 2, 2),
    }
)
VAE = vae.module_from_config(
    {
        "block_out_channels": [4, 8],
        "layers_per_block": 1,
        "latent_channels": 6,
        "norm_num_groups": 2,
        "scaling_factor": 0.4,
        "shift_factor": 0.1,
    }
)
CLIP = clip.module_from_config(
    {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 7,
    }
)
T5 = t5.module_from_config(
    {
        "vocab_size": 20,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    }
)
QWEN_CONFIG = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "image_token_id": 9,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vision_config": {
        "depth": 2,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
        "window_size": 8,
        "patch_size": 2,
    },
}
QWEN = qwen2_5_vl.module_from_config(QWEN_CONFIG)
_WIDTHS = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
CLIP_WITH_IMAGES = clip_with_images.module_from_config(
    {"text_config": _WIDTHS, "vision_config": _WIDTHS | {"image_size": 16, "patch_size": 8}, "projection_dim": 4}
)
MODULES = {
    "transformer": FLUX,
    "vae": VAE,
    "text_encoder": CLIP,
    "text_encoder_2": T5,
    "judge": QWEN,
    "clip": CLIP_WITH_IMAGES,
}


def random_params(kind, module=None, dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed)
    shapes = load.param_shapes(module or MODULES[kind], kind)
    return jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape).astype(dtype), shapes)
