"""FLUX transformer: official names and configuration."""

from typing import Any

import jax.numpy as jnp

from onereward_jax.errors import UserError
from onereward_jax.models.fields import from_config
from onereward_jax.models.flux import FluxTransformer
from onereward_jax.weights.names.name_rules import Rule, Table


def _linear(path: str, name: str) -> tuple[Rule, Rule]:
    return Rule(f"{path}/kernel", f"{name}.weight", "linear"), Rule(f"{path}/bias", f"{name}.bias")


_BLOCKS = "((?:single_)?transformer_blocks)"

TABLE: Table = (
    *_linear(r"(x_embedder|context_embedder|proj_out)", r"\1"),
    *_linear(r"time_text_embed/(\w+)/(linear_[12])", r"time_text_embed.\1.\2"),
    *_linear(r"norm_out/linear", r"norm_out.linear"),
    *_linear(rf"{_BLOCKS}/(norm|norm1|norm1_context)/linear", r"\1.{layer}.\2.linear"),
    *_linear(rf"{_BLOCKS}/attn/(to_[qkv]|add_[qkv]_proj|to_add_out)", r"\1.{layer}.attn.\2"),
    *_linear(rf"{_BLOCKS}/attn/to_out_0", r"\1.{layer}.attn.to_out.0"),
    Rule(rf"{_BLOCKS}/attn/(norm_\w+)/scale", r"\1.{layer}.attn.\2.weight"),
    *_linear(rf"{_BLOCKS}/(ff|ff_context)/net_0_proj", r"\1.{layer}.\2.net.0.proj"),
    *_linear(rf"{_BLOCKS}/(ff|ff_context)/net_2", r"\1.{layer}.\2.net.2"),
    *_linear(rf"{_BLOCKS}/(proj_mlp|proj_out)", r"\1.{layer}.\2"),
)

_FIELDS = (
    "in_channels",
    "out_channels",
    "num_layers",
    "num_single_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "pooled_projection_dim",
    "guidance_embeds",
    "axes_dims_rope",
)


def module_from_config(config: dict[str, Any], **overrides: Any) -> FluxTransformer:
    """Build the module that a `FluxTransformer2DModel` configuration describes.

    Args:
      config: content of the official `config.json`.
      overrides: fields of `FluxTransformer`, e.g. `dtype`, `remat`.

    Raises:
      UserError: a field is missing, has no possible value, or is not supported.
    """
    if config.get("patch_size", 1) != 1:
        raise UserError(f"patch_size is {config['patch_size']}: only FLUX models with patch_size 1 can be loaded")
    fields = {name: config[name] for name in _FIELDS if name in config}
    if fields.get("out_channels") is None and "in_channels" in fields:
        fields["out_channels"] = fields["in_channels"]  # the official default
    return from_config(FluxTransformer, fields, overrides, "the FLUX configuration")


def config_of(module: FluxTransformer) -> dict[str, Any]:
    """Make the `config.json` with which diffusers opens the exported weights."""
    config = {name: getattr(module, name) for name in _FIELDS}
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        **config,
        "axes_dims_rope": list(module.axes_dims_rope),
    }


def example_inputs(module: FluxTransformer) -> tuple:
    """Make arguments for `init` and `eval_shape`: one sample of 2 image and 2 text tokens."""
    ids = jnp.zeros((2, len(module.axes_dims_rope)))
    return (
        jnp.zeros((1, 2, module.in_channels)),
        jnp.zeros((1, 2, module.joint_attention_dim)),
        jnp.zeros((1, module.pooled_projection_dim)),
        jnp.ones((1,)),
        ids,
        ids,
        jnp.ones((1,)) if module.guidance_embeds else None,
    )
