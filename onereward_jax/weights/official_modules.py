"""Configurations of the published models: full-size modules and shapes without any of their files."""

from collections.abc import Mapping
from typing import Any

from onereward_jax.config.find import find_model
from onereward_jax.errors import UserError
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.load import module_from_directory

# The fields of config.json that define a module.
_FLUX_FILL: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 384,
    "out_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
_FLUX_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_QWEN_7B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": (16, 24, 24)},
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
}
_QWEN_3B: dict[str, Any] = {
    "text_config": _QWEN_7B["text_config"]
    | {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "vision_config": _QWEN_7B["vision_config"] | {"out_hidden_size": 2048},
}
# Hub repository -> kind of component -> configuration.
OFFICIAL: dict[str, dict[str, dict[str, Any]]] = {
    "black-forest-labs/FLUX.1-Fill-dev": {"transformer": _FLUX_FILL, "vae": _FLUX_VAE},
    "Qwen/Qwen2.5-VL-7B-Instruct": {"judge": _QWEN_7B},
    "Qwen/Qwen2.5-VL-3B-Instruct": {"judge": _QWEN_3B},
}


def official_module(model: str, kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Build the module of a component of a published model or a local one, without weights or network access.

    Args:
      model: a hub repository in `OFFICIAL`, or a directory in the official layout.
      kind: "transformer", "vae" or "judge".
      fields: module fields that are not in config.json: the compute `dtype`, `remat`, ...

    Raises:
      UserError: the model is neither.
      FileNotFoundError, UserError: see `load.module_from_directory`.
    """
    if kind in OFFICIAL.get(model, {}):
        return kind_of(kind).module().module_from_config(OFFICIAL[model][kind], **(fields or {}))
    directory = find_model(model)
    if not directory.is_dir():
        known = [name for name, parts in OFFICIAL.items() if kind in parts]
        raise UserError(
            f"the configuration of {model} is not built in: give a directory that holds it, or {' or '.join(known)}"
        )
    return module_from_directory(directory if kind == "judge" else directory / kind, kind, fields)
