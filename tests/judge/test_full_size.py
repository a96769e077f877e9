"""configs/judge_7b.py describes the released models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs.judge_7b import VARIANTS
from onereward_jax import questions, tree
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import JudgeTraining
from onereward_jax.runs.judge import model_config
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state
from onereward_jax.weights.names import qwen2_5_vl as weights
from onereward_jax.weights.names.name_rules import official_shapes

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "qwen2.5-vl-7b-instruct.json"
# huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct, model.safetensors.index.json: total_size, 2 bytes a parameter
PARAMETERS_3B = 7_509_245_952 // 2


def shapes_of(variant):
    config = load_config(f"{ROOT / 'configs' / 'judge_7b.py'}:{variant}", recipes=[JudgeTraining])
    module = weights.module_from_config(model_config(config.judge, 0), dtype=jnp.dtype(config.judge.dtype))
    init = lambda: module.init(jax.random.key(0), *weights.example_inputs(module))["params"]
    return config, module, jax.eval_shape(init)


def test_7b_is_the_release():
    config, module, shapes = shapes_of("7b")
    golden = json.loads(GOLDEN.read_text())
    assert official_shapes(weights.TABLE, shapes) == {name: tuple(shape) for name, shape in golden["tensors"].items()}
    assert module == weights.module_from_config(golden["config"], dtype=jnp.bfloat16)
    assert (config.judge.template, config.judge.template_with_prompt) == (
        questions.QUESTION_TEMPLATE,
        questions.QUESTION_WITH_PROMPT_TEMPLATE,
    )


def test_3b_has_the_releases_parameters():
    _, module, shapes = shapes_of("3b")
    assert tree.count(shapes) == PARAMETERS_3B
    assert module.tie_word_embeddings


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_takes_what_the_docstring_says(variant):
    config, _, shapes = shapes_of(variant)
    state = jax.eval_shape(lambda params: create_state(params, make_optimizer(**config.optimizer), 0), shapes)
    parts = [leaf for part in (state.params, state.ema, state.opt_state) for leaf in jax.tree.leaves(part)]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in parts) / 2**30
    gradient = 4 * tree.count(shapes) / 2**30
    assert held + gradient == pytest.approx({"7b": 155, "3b": 70}[variant], abs=1)
