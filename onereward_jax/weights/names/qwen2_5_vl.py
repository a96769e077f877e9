"""Qwen2.5-VL: official names and configuration."""

from typing import Any

import jax.numpy as jnp

from onereward_jax.errors import UserError
from onereward_jax.models.fields import from_config, object_of
from onereward_jax.models.qwen2_5_vl import Qwen2_5_VL, TextModel, VisionTransformer
from onereward_jax.weights.names.name_rules import Rule, Table

TABLE: Table = (
    Rule(r"visual/patch_embed/proj/kernel", r"visual.patch_embed.proj.weight", "linear"),
    Rule(r"visual/blocks/(norm[12])/weight", r"visual.blocks.{layer}.\1.weight"),
    Rule(r"visual/blocks/(attn|mlp)/(\w+)/kernel", r"visual.blocks.{layer}.\1.\2.weight", "linear"),
    Rule(r"visual/blocks/(attn|mlp)/(\w+)/bias", r"visual.blocks.{layer}.\1.\2.bias"),
    Rule(r"visual/merger/ln_q/weight", r"visual.merger.ln_q.weight"),
    Rule(r"visual/merger/mlp_(\d)/kernel", r"visual.merger.mlp.\1.weight", "linear"),
    Rule(r"visual/merger/mlp_(\d)/bias", r"visual.merger.mlp.\1.bias"),
    Rule(r"model/embed_tokens/embedding", r"model.embed_tokens.weight"),
    Rule(r"model/layers/(self_attn|mlp)/(\w+)/kernel", r"model.layers.{layer}.\1.\2.weight", "linear"),
    Rule(r"model/layers/self_attn/(\w+)/bias", r"model.layers.{layer}.self_attn.\1.bias"),
    Rule(r"model/layers/(\w+_layernorm)/weight", r"model.layers.{layer}.\1.weight"),
    Rule(r"model/norm/weight", r"model.norm.weight"),
    Rule(r"lm_head/kernel", r"lm_head.weight", "linear"),
)

# With tied embeddings, files may also hold the output matrix: one tensor under two names.
TIED_ALIASES = {"model.embed_tokens.weight": "lm_head.weight"}

_VISION_FIELDS = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "fullatt_block_indexes",
    "window_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "in_channels",
)
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
# Defaults of transformers' Qwen2_5_VLVisionConfig; the file in the hub release leaves most of them out.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "window_size": 112,
    "patch_size": 14,
}


def official_name(name: str) -> str:
    """Convert a tensor's name in a file to the table's: some transformers versions nest the two parts."""
    for nested, flat in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(nested):
            return flat + name.removeprefix(nested)
    return name


def nested_name(name: str) -> str:
    """Invert `official_name`: return the name in current transformers."""
    for nested, flat in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(flat):
            return nested + name.removeprefix(flat)
    return name


def module_from_config(config: dict[str, Any], **overrides: Any) -> Qwen2_5_VL:
    """Build the module that an official `config.json` describes.

    Args:
      config: the file's content: flat, as in the hub release, or with a `text_config`, as transformers now writes it.
      overrides: `dtype`, `remat` and `attention_implementation` of both parts.

    Raises:
      UserError: another architecture, a feature this model lacks, or a missing field.
    """
    kind = config.get("model_type", "qwen2_5_vl")
    if kind != "qwen2_5_vl":
        raise UserError(f"the checkpoint has model_type {kind!r}: the judge needs a Qwen2.5-VL ('qwen2_5_vl')")
    text = object_of(config, "text_config") or config
    vision: dict[str, Any] = _VISION_DEFAULTS | dict(object_of(config, "vision_config"))
    if text.get("use_sliding_window"):
        raise UserError("use_sliding_window is on in the configuration: only full attention is supported, turn it off")
    for part, where in ((text, "text"), (vision, "vision")):
        if part.get("hidden_act", "silu") != "silu":
            raise UserError(f"hidden_act of the {where} part is {part['hidden_act']!r}: only 'silu' is supported")
    rope = object_of(text, "rope_parameters") or object_of(text, "rope_scaling")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        raise UserError(f"rope type {rope_type!r} is not supported: use the configuration of the release ('mrope')")

    tied = bool(config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False))
    missing = [name for name in _TEXT_FIELDS[:5] if name not in text]
    if missing:
        raise UserError(f"the configuration of Qwen2.5-VL has no {', '.join(missing)}: complete config.json")
    text_fields: dict[str, Any] = {name: text[name] for name in _TEXT_FIELDS if text.get(name) is not None}
    text_fields.setdefault("num_key_value_heads", text["num_attention_heads"])
    text_fields.setdefault("rms_norm_eps", 1e-5)  # transformers' default; the releases say 1e-6
    text_fields |= {
        "rope_theta": rope.get("rope_theta", text.get("rope_theta", 1_000_000.0)),
        "mrope_section": rope.get("mrope_section", (16, 24, 24)),
    }
    vision_fields: dict[str, Any] = {name: vision[name] for name in _VISION_FIELDS if name in vision}
    if "in_chans" in vision:  # the name in the hub release
        vision_fields["in_channels"] = vision["in_chans"]
    model = from_config(TextModel, text_fields, overrides, "the configuration of Qwen2.5-VL's language model")
    if tied:  # the table is also the output matrix, whose logits should start near 1
        model = model.clone(embedding_stddev=model.hidden_size**-0.5)
    visual = from_config(VisionTransformer, vision_fields, overrides, "the configuration of Qwen2.5-VL's vision tower")
    fields = {"image_token_id": config.get("image_token_id", 151655)}
    parts = {"visual": visual, "model": model, "tie_word_embeddings": tied}
    return from_config(Qwen2_5_VL, fields, parts, "the configuration of Qwen2.5-VL")


_OFFICIAL_END_OF_TURN = 151645


def config_of(module: Qwen2_5_VL) -> dict[str, Any]:
    """Make the `config.json` with which transformers opens the exported weights."""
    text, vision = module.model, module.visual
    # transformers assumes the official vocabulary's end tokens, and warns if a smaller vocabulary lacks them.
    ends = {} if text.vocab_size > _OFFICIAL_END_OF_TURN else {"bos_token_id": None, "eos_token_id": None}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "image_token_id": module.image_token_id,
        "tie_word_embeddings": module.tie_word_embeddings,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            **{name: getattr(text, name) for name in _TEXT_FIELDS},
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.mrope_section),
            },
            "hidden_act": "silu",
            "use_sliding_window": False,
            "tie_word_embeddings": module.tie_word_embeddings,
            **ends,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            **{name: getattr(vision, name) for name in _VISION_FIELDS},
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "hidden_act": "silu",
        },
    }


def example_inputs(module: Qwen2_5_VL) -> tuple:
    """Make arguments for `init` and `eval_shape`: an image of one token, in a text of two."""
    visual = module.visual
    merge = visual.spatial_merge_size
    patch = visual.in_channels * visual.temporal_patch_size * visual.patch_size**2
    return (
        jnp.asarray([[module.image_token_id, 0]], jnp.int32),
        (jnp.zeros((1, merge**2, patch)),),
        ((merge, merge),),
        jnp.zeros((3, 1, 2), jnp.int32),
        jnp.ones((1, 2, 2), bool),
    )
