"""CLIP with its vision encoder: official names and configuration."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from onereward_jax.errors import UserError
from onereward_jax.models.clip import CLIP, CLIPVisionEncoder
from onereward_jax.models.fields import Width, check_value, from_config
from onereward_jax.weights.names import clip
from onereward_jax.weights.names.name_rules import Rule, Table

_VISION: Table = (
    Rule(r"vision_model/patch_embedding/kernel", r"vision_model.embeddings.patch_embedding.weight", "conv"),
    Rule(r"vision_model/class_embedding", r"vision_model.embeddings.class_embedding"),
    Rule(r"vision_model/position_embedding/embedding", r"vision_model.embeddings.position_embedding.weight"),
    Rule(r"vision_model/layers/(\w+)/(\w+)/kernel", r"vision_model.encoder.layers.{layer}.\1.\2.weight", "linear"),
    Rule(r"vision_model/layers/(\w+)/(\w+)/bias", r"vision_model.encoder.layers.{layer}.\1.\2.bias"),
    Rule(r"vision_model/layers/(\w+)/scale", r"vision_model.encoder.layers.{layer}.\1.weight"),
    Rule(r"vision_model/layers/(\w+)/bias", r"vision_model.encoder.layers.{layer}.\1.bias"),
    Rule(r"vision_model/(\w+)/scale", r"vision_model.\1.weight"),
    Rule(r"vision_model/(\w+)/bias", r"vision_model.\1.bias"),
    Rule(r"(text|visual)_projection/kernel", r"\1_projection.weight", "linear"),
)
TABLE: Table = (*(rule._replace(path=f"text_model/{rule.path}") for rule in clip.TABLE), *_VISION)

# The temperature scales all cosines alike; files from older transformers versions hold position indices.
IGNORED = ("logit_scale", *clip.IGNORED, "vision_model.embeddings.position_ids")

_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
# transformers' defaults, which the configurations of the first releases leave out.
_TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048}
_TEXT |= {"num_hidden_layers": 12, "num_attention_heads": 8}
_IMAGES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def module_from_config(config: dict[str, Any], **overrides: Any) -> CLIP:
    """Build the module that an official `config.json` describes.

    Args:
      config: the file's content.
      overrides: fields of both encoders, e.g. `dtype`.

    Raises:
      UserError: a field is missing or has no possible value.
    """
    given = {name: config.get(name) or {} for name in ("text_config", "vision_config")}
    if wrong := [name for name, value in given.items() if not isinstance(value, Mapping)]:
        raise UserError(f"{wrong[0]} is no JSON object: use the file of the release")
    images = {name: value for name, value in (_IMAGES | dict(given["vision_config"])).items() if name in _FIELDS}
    return CLIP(
        clip.module_from_config(_TEXT | dict(given["text_config"]), **overrides),
        from_config(CLIPVisionEncoder, images, overrides, "the configuration of CLIP's vision encoder"),
        check_value(config.get("projection_dim", 512), Width, "projection_dim"),
    )


def config_of(module: CLIP) -> dict[str, Any]:
    """Make the `config.json` with which transformers opens the exported weights."""
    vision = {name: getattr(module.vision_model, name) for name in _FIELDS}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": module.projection_dim,
        "text_config": clip.config_of(module.text_model) | {"projection_dim": module.projection_dim},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": module.projection_dim, **vision},
    }


def example_inputs(module: CLIP) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Make arguments for `init` and `eval_shape`: a text of two tokens and an image."""
    side = module.vision_model.image_size
    return jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, side, side, 3))
