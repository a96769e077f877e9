"""AutoencoderKL: official names and configuration."""

from typing import Any

import jax.numpy as jnp

from onereward_jax.errors import UserError
from onereward_jax.models.fields import from_config
from onereward_jax.models.vae import AutoencoderKL
from onereward_jax.weights.names.name_rules import Layout, Rule, Table


def _layer(path: str, name: str, layout: Layout) -> tuple[Rule, Rule]:
    return Rule(f"{path}/kernel", f"{name}.weight", layout), Rule(f"{path}/bias", f"{name}.bias")


def _norm(path: str, name: str) -> tuple[Rule, Rule]:
    return Rule(f"{path}/scale", f"{name}.weight"), Rule(f"{path}/bias", f"{name}.bias")


_CODER = "(encoder|decoder)"

TABLE: Table = (
    *_layer(r"(quant_conv|post_quant_conv)", r"\1", "conv"),
    *_layer(rf"{_CODER}/(conv_in|conv_out)", r"\1.\2", "conv"),
    *_norm(rf"{_CODER}/conv_norm_out", r"\1.conv_norm_out"),
    *_norm(rf"{_CODER}/mid_block/resnets_(\d+)/(norm[12])", r"\1.mid_block.resnets.\2.\3"),
    *_layer(rf"{_CODER}/mid_block/resnets_(\d+)/(conv[12])", r"\1.mid_block.resnets.\2.\3", "conv"),
    *_norm(rf"{_CODER}/mid_block/attentions_0/group_norm", r"\1.mid_block.attentions.0.group_norm"),
    *_layer(rf"{_CODER}/mid_block/attentions_0/(to_[qkv])", r"\1.mid_block.attentions.0.\2", "linear"),
    *_layer(rf"{_CODER}/mid_block/attentions_0/to_out_0", r"\1.mid_block.attentions.0.to_out.0", "linear"),
    *_norm(rf"{_CODER}/(up|down)_blocks_(\d+)/resnets_(\d+)/(norm[12])", r"\1.\2_blocks.\3.resnets.\4.\5"),
    *_layer(rf"{_CODER}/(up|down)_blocks_(\d+)/resnets_(\d+)/(conv\w+)", r"\1.\2_blocks.\3.resnets.\4.\5", "conv"),
    *_layer(rf"{_CODER}/(up|down)_blocks_(\d+)/(\w+samplers)_0/conv", r"\1.\2_blocks.\3.\4.0.conv", "conv"),
)

_FIELDS = (
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "use_quant_conv",
    "use_post_quant_conv",
)

# Defaults of the official class that differ from ours.
_OFFICIAL_DEFAULTS: dict[str, Any] = {
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_ONLY_SUPPORTED = {"act_fn": "silu", "mid_block_add_attention": True}


def module_from_config(config: dict[str, Any], **overrides: Any) -> AutoencoderKL:
    """Build the module that an `AutoencoderKL` configuration describes.

    Args:
      config: content of the official `config.json`.
      overrides: fields of `AutoencoderKL`, e.g. `dtype`, `remat`.

    Raises:
      UserError: a field has no possible value, or one that is not supported.
    """
    for name, value in _ONLY_SUPPORTED.items():
        if config.get(name, value) != value:
            raise UserError(f"{name} is {config[name]!r}: only autoencoders with {value!r} can be loaded")
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = config.get(name, [block])
        if not isinstance(blocks, list | tuple) or not blocks or any(other != block for other in blocks):
            raise UserError(f"{name} is {config[name]}: only autoencoders with {block!r} can be loaded")
    given = _OFFICIAL_DEFAULTS | config
    fields = {name: given[name] for name in _FIELDS if name in given}
    if fields["shift_factor"] is None:
        fields["shift_factor"] = 0.0
    return from_config(AutoencoderKL, fields, overrides, "the configuration of the autoencoder")


def config_of(module: AutoencoderKL) -> dict[str, Any]:
    """Make the `config.json` with which diffusers opens the exported weights."""
    blocks = len(module.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        **{name: getattr(module, name) for name in _FIELDS},
        "act_fn": "silu",
        "block_out_channels": list(module.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "force_upcast": True,
        "mid_block_add_attention": True,
    }


def example_inputs(module: AutoencoderKL) -> tuple[jnp.ndarray]:
    """Make arguments for `init` and `eval_shape`: one image of 2×2 latents."""
    side = 2 ** len(module.block_out_channels)
    return (jnp.zeros((1, side, side, module.in_channels)),)
