"""T5 v1.1 encoder: official names and configuration."""

from typing import Any

import jax.numpy as jnp

from onereward_jax.errors import UserError
from onereward_jax.models.fields import from_config
from onereward_jax.models.t5 import T5Encoder
from onereward_jax.weights.names.name_rules import Rule, Table

TABLE: Table = (
    Rule(r"shared/embedding", r"shared.weight"),
    Rule(r"relative_attention_bias/embedding", r"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    Rule(r"block/layer_(\d)/(\w+)/(\w+)/kernel", r"encoder.block.{layer}.layer.\1.\2.\3.weight", "linear"),
    Rule(r"block/layer_(\d)/layer_norm/weight", r"encoder.block.{layer}.layer.\1.layer_norm.weight"),
    Rule(r"final_layer_norm/weight", r"encoder.final_layer_norm.weight"),
)

# One tensor under two names: files hold either or both.
ALIASES = {"shared.weight": "encoder.embed_tokens.weight"}

_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)


def official_name(name: str) -> str:
    """Convert a tensor's name in a file to the table's."""
    return next((official for official, alias in ALIASES.items() if name == alias), name)


def module_from_config(config: dict[str, Any], **overrides: Any) -> T5Encoder:
    """Build the module that an official `config.json` describes.

    Args:
      config: the file's content; fields that do not concern the encoder are ignored.
      overrides: fields of `T5Encoder`, e.g. `dtype`, `remat`.

    Raises:
      UserError: the feed-forward is not T5 v1.1's, or a field is missing or has no possible value.
    """
    feed_forward = config.get("feed_forward_proj", "relu")
    if feed_forward != "gated-gelu":
        raise UserError(f"feed_forward_proj is {feed_forward!r}: only T5 v1.1 encoders ('gated-gelu') can be loaded")
    fields = {name: config[name] for name in _FIELDS if name in config}
    return from_config(T5Encoder, fields, overrides, "the configuration of the T5 encoder")


def config_of(module: T5Encoder) -> dict[str, Any]:
    """Make the `config.json` with which transformers opens the exported weights."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **{name: getattr(module, name) for name in _FIELDS},
        "num_decoder_layers": module.num_layers,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "use_cache": True,
        "tie_word_embeddings": False,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def example_inputs(module: T5Encoder) -> tuple[jnp.ndarray]:
    """Make arguments for `init` and `eval_shape`: (1, 2) tokens."""
    return (jnp.zeros((1, 2), jnp.int32),)
