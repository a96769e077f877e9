"""The update of a configuration: at full size without weights, and the same program wherever it is built."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs.flux_fill import VARIANTS
from onereward_jax import tree
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.errors import UserError
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.rl import build_update as updates
from onereward_jax.rl.batch import batch_shapes
from onereward_jax.weights.load import param_shapes
from onereward_jax.weights.names import clip, flux, qwen2_5_vl, t5, vae
from onereward_jax.weights.names.name_rules import official_shapes
from onereward_jax.weights.official_modules import official_module

ROOT = Path(__file__).parents[2]
FLUX_FILL = ROOT / "configs" / "flux_fill.py"


@pytest.mark.parametrize(
    ("model", "kind", "weights", "golden"),
    [
        ("black-forest-labs/FLUX.1-Fill-dev", "transformer", flux, "flux.1-fill-dev.transformer"),
        ("black-forest-labs/FLUX.1-Fill-dev", "vae", vae, "flux.1-fill-dev.vae"),
        ("black-forest-labs/FLUX.1-Fill-dev", "text_encoder", clip, "flux.1-fill-dev.text_encoder"),
        ("black-forest-labs/FLUX.1-Fill-dev", "text_encoder_2", t5, "flux.1-fill-dev.text_encoder_2"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "judge", qwen2_5_vl, "qwen2.5-vl-7b-instruct"),
    ],
)
def test_official_modules_are_the_releases(model, kind, weights, golden):
    released = json.loads((ROOT / "tests" / "goldens" / f"{golden}.json").read_text())
    module = official_module(model, kind)
    assert module == weights.module_from_config(released["config"])
    # Files hold T5's embedding under one name or both.
    aliases = getattr(weights, "ALIASES", {}).values()
    tensors = {name: tuple(shape) for name, shape in released["tensors"].items() if name not in aliases}
    assert official_shapes(weights.TABLE, param_shapes(module, kind)) == tensors


def test_the_smaller_judge_has_its_releases_parameters():
    module = official_module("Qwen/Qwen2.5-VL-3B-Instruct", "judge")
    assert tree.count(param_shapes(module, "judge")) == 7_509_245_952 // 2  # total_size of its index, 2 bytes each


def test_a_directory_is_read_as_well_and_an_unknown_model_is_named():
    found = official_module(str(ROOT / "miniature" / "base"), "transformer", {"remat": "full"})
    assert found.remat == "full"
    assert found.num_layers == 2
    with pytest.raises(UserError, match="some/where"):
        official_module("some/where", "vae")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_papers_run(variant):
    config = load_config(f"{FLUX_FILL}:{variant}", recipes=[RewardFeedback])
    assert (config.train.batch_size, config.optimizer.learning_rate, config.train.num_steps) == (8, 1e-5, 8000)
    assert sum(config.data.task_weights.values()) == pytest.approx(1.0)
    assert (config.rl.num_steps, config.rl.rollout_true_cfg_scale, config.rl.rollout_guidance_scale) == (50, 4.0, 1.0)
    assert config.rl.true_guidance
    assert variant.startswith(config.algorithm)
    assert variant.endswith(str(config.data.resolution))
    assert ("lora" in variant) == bool(updates.adapters_of(config).rank)


@pytest.mark.parametrize("variant", ["dynamic_1024", "fixed_512", "fixed_lora_512"])
def test_the_state_at_full_size(variant):
    """What is trained is float32, what is frozen bfloat16; Algorithm 1 has a reference, empty for an adapter."""
    config = load_config(f"{FLUX_FILL}:{variant}")
    fields = updates.computation(config)
    transformer, autoencoder = (official_module(config.model.base, kind, fields) for kind in ("transformer", "vae"))
    judge = official_module(config.model.judge, "judge", fields)
    update = updates.make_update(config, FluxFill(transformer, autoencoder), lambda params, batch: None)
    shapes = param_shapes(transformer, "transformer"), param_shapes(autoencoder, "vae"), param_shapes(judge, "judge")
    masters, frozen = jax.eval_shape(update.params, shapes[0]), jax.eval_shape(update.frozen, *shapes)
    state = jax.eval_shape(update.create, masters)
    whole = tree.count(param_shapes(transformer, "transformer"))
    dtypes = lambda part: {leaf.dtype for leaf in jax.tree.leaves(part)}
    assert dtypes(state.params) == dtypes(state.ema) == {jnp.dtype("float32")}
    assert dtypes(frozen) == {jnp.dtype("bfloat16")}
    if "lora" in variant:
        assert tree.count(frozen.base) == whole > 20 * tree.count(state.params)
        assert state.reference == {}
    else:
        assert frozen.base is None
        assert tree.count(state.params) == whole
        assert (state.reference is None) == (config.algorithm == "dynamic")


def test_a_batch_at_full_size():
    config = load_config(f"{FLUX_FILL}:dynamic_1024")
    family = FluxFill(*(official_module(config.model.base, kind) for kind in ("transformer", "vae")))
    shapes = batch_shapes(config, family)
    assert shapes.text.prompt_embeds.shape == shapes.negative.prompt_embeds.shape == (8, 512, 4096)
    assert (shapes.image.shape, shapes.questions.ids.shape) == ((8, 1024, 1024, 3), (8, 4, 128))
    assert shapes.target is None
    plain = load_config(f"{FLUX_FILL}:dynamic_1024", {"rl.rollout_true_cfg_scale": 1, "rl.gradient_true_cfg_scale": 1})
    assert batch_shapes(plain, family).negative is None
