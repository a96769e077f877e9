"""Configurations of the published models: full-size modules and shapes without any of their files."""

from collections.abc import Mapping
from typing import Any

from onereward_jax.config.find import find_model
from onereward_jax.errors import UserError
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.load import StoredParams, module_from_directory, param_shapes

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
_FLUX_CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 2,
}
_FLUX_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
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
    "black-forest-labs/FLUX.1-Fill-dev": {
        "transformer": _FLUX_FILL,
        "vae": _FLUX_VAE,
        "text_encoder": _FLUX_CLIP,
        "text_encoder_2": _FLUX_T5,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {"judge": _QWEN_7B},
    "Qwen/Qwen2.5-VL-3B-Instruct": {"judge": _QWEN_3B},
}


def official_module(model: str, kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Build the module of a component of a published model or a local one, without weights or network access.

    Args:
      model: a hub repository in `OFFICIAL`, or a directory in the official layout.
      kind: "transformer", "vae", "text_encoder", "text_encoder_2" or "judge".
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


def unread_component(model: str, kind: str, fields: Mapping[str, Any] | None = None) -> tuple[Any, StoredParams]:
    """Build a component as `load.open_component` does, of a model whose files need not be here.

    Returns:
      (module, its parameters, which have shapes and can't be read).

    Raises:
      see `official_module`.
    """
    module = official_module(model, kind, fields)

    def read(name: str) -> Any:
        raise AssertionError(f"{name} is of a model without files")

    return module, StoredParams(param_shapes(module, kind), "bfloat16", kind_of(kind).module().TABLE, read)
