"""Numbers in a model's config.json are checked before anything is made of them."""

import dataclasses
import math
import re
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereward_jax.errors import UserError
from onereward_jax.judge.vision import ImageSettings
from onereward_jax.models import fields
from onereward_jax.models.fields import Range, check_value, from_config
from onereward_jax.weights.names import clip, flux, qwen2_5_vl, t5, vae
from onereward_jax.weights.official_modules import OFFICIAL
from tests.support import tiny_judge
from tests.support.tiny_weights import CLIP, FLUX, QWEN, T5, VAE

JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})
MODULES = [(flux, FLUX), (vae, VAE), (clip, CLIP), (t5, T5), (qwen2_5_vl, QWEN)]
# Every number of every module's configuration: (module's file, configuration, path of the field).
NUMBERS = [
    pytest.param(names, module, path, id=f"{names.__name__.rpartition('.')[2]}-{'.'.join(path)}")
    for names, module in MODULES
    for path in (
        [
            (name,)
            for name, value in names.config_of(module).items()
            if name in {f.name for f in dataclasses.fields(module)}
        ]
        if names is not qwen2_5_vl
        else [
            (part, name)
            for part, made in (("text_config", QWEN.model), ("vision_config", QWEN.visual))
            for name in names.config_of(QWEN)[part]
            if name in {f.name for f in dataclasses.fields(made)}
        ]
    )
]


def changed(config, path, value):
    if not path[1:]:
        return config | {path[0]: value}
    return config | {path[0]: changed(config[path[0]], path[1:], value)}


WRONG = [0, -1, 10**9, 10**400, True, "1", math.nan, math.inf, 1.5, [], {}, [0], [True], [10**9]]


@pytest.mark.parametrize(("names", "module", "path"), NUMBERS)
def test_an_impossible_value_of_any_field_is_one_sentence(names, module, path):
    for value in WRONG:
        try:
            made = names.module_from_config(changed(names.config_of(module), path, value))
        except UserError as error:
            made, said = None, str(error)
        if made is None:
            assert len(said) < 300
            assert "\n" not in said
        else:  # 0 is a possible index, shift or epsilon
            part = {"text_config": made.model, "vision_config": made.visual}[path[0]] if path[1:] else made
            held = getattr(part, path[-1])
            assert held == value or list(held) == list(value)


@pytest.mark.parametrize(
    ("names", "module", "change", "said"),
    [
        (flux, FLUX, {"num_layers": 0}, "num_layers is 0, but it has to be a whole number from 1 to 10,000"),
        (flux, FLUX, {"num_layers": True}, "num_layers is True"),
        (flux, FLUX, {"num_layers": "2"}, "num_layers is '2'"),
        (flux, FLUX, {"axes_dims_rope": 8}, "axes_dims_rope is 8, but it has to be a list"),
        (flux, FLUX, {"guidance_embeds": 1}, "guidance_embeds is 1, but it has to be true or false"),
        (vae, VAE, {"layers_per_block": int(1e9)}, "layers_per_block is 1000000000"),
        (vae, VAE, {"block_out_channels": [4] * 99}, "block_out_channels is"),
        (vae, VAE, {"norm_num_groups": 3}, "no multiple of norm_num_groups 3"),
        (vae, VAE, {"scaling_factor": math.nan}, "scaling_factor is nan"),
        (vae, VAE, {"down_block_types": [["DownEncoderBlock2D"]]}, "down_block_types"),
        (vae, VAE, {"down_block_types": 3}, "down_block_types"),
        (clip, CLIP, {"hidden_act": "tanh"}, "one of quick_gelu, gelu"),
        (clip, CLIP, {"num_attention_heads": 3}, "hidden_size 8 is no multiple of num_attention_heads 3"),
        (t5, T5, {"relative_attention_num_buckets": 1}, "relative_attention_num_buckets is 1"),
        (t5, T5, {"relative_attention_max_distance": 4}, "too short"),
        (qwen2_5_vl, QWEN, {"vision_config": 3}, "vision_config is 3, but it has to be an object"),
        (qwen2_5_vl, QWEN, {"text_config": [1]}, r"text_config is \[1\]"),
        (qwen2_5_vl, QWEN, {"image_token_id": -1}, "image_token_id"),
    ],
)
def test_the_sentence_names_the_field_and_its_range(names, module, change, said):
    with pytest.raises(UserError, match=said):
        names.module_from_config(names.config_of(module) | change)


def test_what_is_missing_and_what_is_unknown_is_named():
    with pytest.raises(UserError, match="no vocab_size, intermediate_size: use"):
        from_config(type(CLIP), {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}, {}, "it")
    with pytest.raises(UserError, match="no field remate"):
        from_config(type(CLIP), {}, {"remate": "full"}, "it")


def test_published_models_are_within_the_ranges():
    names_of = {"transformer": flux, "vae": vae, "judge": qwen2_5_vl, "text_encoder": clip, "text_encoder_2": t5}
    for parts in OFFICIAL.values():
        for kind, config in parts.items():
            names_of[kind].module_from_config(config)


@given(JSON)
def test_a_checked_number_is_one(value):
    for annotation, kind in ((fields.Layers, int), (fields.Epsilon, float), (Annotated[float, Range(-5, 5)], float)):
        try:
            held = check_value(value, annotation, "x")
        except UserError:
            continue
        assert type(held) is kind
        assert math.isfinite(held)
        assert held == value


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": 0},
        {"patch_size": 10**9},
        {"merge_size": 1.5},
        {"size": [3]},
        {"size": {"shortest_edge": -4}},
        {"size": {"shortest_edge": 100, "longest_edge": 10}},
        {"image_mean": 0.5},
        {"image_mean": [0.5]},
        {"image_std": [1, 1, 0]},
        {"image_std": [1, 1, "1"]},
    ],
)
def test_image_settings_are_checked(change):
    (name,) = change
    with pytest.raises(UserError, match=re.escape(name) if name != "size" else "size|min_pixels"):
        ImageSettings.from_config(tiny_judge.SETTINGS.to_config() | change)
    assert ImageSettings.from_config(tiny_judge.SETTINGS.to_config()) == tiny_judge.SETTINGS
