"""CLIP text encoder: official names and configuration."""

from typing import Any

import jax.numpy as jnp

from onereward_jax.models.clip import CLIPTextEncoder
from onereward_jax.models.fields import from_config
from onereward_jax.weights.names.name_rules import Rule, Table

TABLE: Table = (
    Rule(r"embeddings/(\w+)/embedding", r"text_model.embeddings.\1.weight"),
    Rule(r"layers/(\w+)/(\w+)/kernel", r"text_model.encoder.layers.{layer}.\1.\2.weight", "linear"),
    Rule(r"layers/(\w+)/(\w+)/bias", r"text_model.encoder.layers.{layer}.\1.\2.bias"),
    Rule(r"layers/(\w+)/scale", r"text_model.encoder.layers.{layer}.\1.weight"),
    Rule(r"layers/(\w+)/bias", r"text_model.encoder.layers.{layer}.\1.bias"),
    Rule(r"final_layer_norm/scale", r"text_model.final_layer_norm.weight"),
    Rule(r"final_layer_norm/bias", r"text_model.final_layer_norm.bias"),
)

# Files from older transformers versions also hold the position indices.
IGNORED = ("text_model.embeddings.position_ids",)

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "eos_token_id",
)


def official_name(name: str) -> str:
    """Convert a tensor's name in a file to the table's: some transformers versions leave out the prefix."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def module_from_config(config: dict[str, Any], **overrides: Any) -> CLIPTextEncoder:
    """Build the module that an official `config.json` describes.

    Args:
      config: the file's content; fields that do not concern the text encoder are ignored.
      overrides: fields of `CLIPTextEncoder`, e.g. `dtype`, `remat`.

    Raises:
      UserError: a field is missing or has no possible value.
    """
    # transformers' default, the end-of-text token of the first vocabulary.
    config = {"eos_token_id": 49407} | config
    fields = {name: config[name] for name in _FIELDS if name in config}
    return from_config(CLIPTextEncoder, fields, overrides, "the configuration of the CLIP encoder")


def config_of(module: CLIPTextEncoder) -> dict[str, Any]:
    """Make the `config.json` with which transformers opens the exported weights."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{name: getattr(module, name) for name in _FIELDS},
        "projection_dim": module.hidden_size,  # irrelevant: the model ends before the projection
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }


def example_inputs(module: CLIPTextEncoder) -> tuple[jnp.ndarray]:
    """Make arguments for `init` and `eval_shape`: (1, 2) tokens."""
    return (jnp.zeros((1, 2), jnp.int32),)
