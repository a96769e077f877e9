"""Random models and batches, small enough to run whole updates in tests."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from onereward_jax.config.schema import RewardLearning
from onereward_jax.flow.conditioning import TextStates
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.judge.scorer import Questions
from onereward_jax.rl.batch import Batch
from onereward_jax.rl.rollout import Frozen
from onereward_jax.rl.step import make_step
from onereward_jax.tasks import TASKS
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state
from onereward_jax.weights.names import flux, vae
from tests.support import tiny_judge as tiny_judge
from tests.support.random_params import random_params

TEXT_WIDTH, POOLED_WIDTH, TEXT_LENGTH, QUESTION_LENGTH = 16, 12, 3, 48
CONFIG = RewardLearning(
    num_steps=3,
    first_index=1,
    last_index=2,
    ema_decay=0.9,
    threshold=1.0,
    rollout_true_cfg_scale=1.0,
)


class Models(NamedTuple):
    transformer: Any
    vae: Any
    judge: Any
    params: Any
    frozen: Frozen


@functools.cache
def models() -> Models:
    transformer = flux.module_from_config(
        {
            "in_channels": 8 + 8 + 16,
            "out_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": POOLED_WIDTH,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        }
    )
    autoencoder = vae.module_from_config(
        {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
    )
    judge = tiny_judge.judge(depth=1, fullatt_block_indexes=(0,), num_hidden_layers=1)
    frozen = Frozen(vae=random_params(autoencoder, vae), judge=judge.params)
    return Models(transformer, autoencoder, judge, random_params(transformer, flux, deviation=0.03), frozen)


def scorer(params: Any, first: Any, second: Any, questions: Questions) -> jax.Array:
    """The judge's answer as of Yes and No alone: over a whole vocabulary, an untrained judge gives each about
    nothing, and the gradient would drown in rounding."""
    return jax.nn.log_softmax(models().judge.scorer(params, first, second, questions))


def batch(size: int, first_index: int = 0) -> Batch:
    """`size` samples of 16×16 pixels, tasks in turn; a sample depends on its global index only."""
    rows = [sample(first_index + row) for row in range(size)]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    tasks = [TASKS[index % len(TASKS)] for index in stacked["index"]]
    return assembled(
        stacked, question_batch(models().judge, tasks, ["a red circle on the left"] * size, QUESTION_LENGTH)
    )


def assembled(arrays: dict[str, Any], questions: Questions) -> Batch:
    """A batch of what `sample` gives, stacked, and of numbers beside it."""
    others = {name: x for name, x in arrays.items() if not name.endswith(("prompt_embeds", "pooled"))}
    return Batch(
        **others,
        text=TextStates(arrays["prompt_embeds"], arrays["pooled"]),
        negative=TextStates(arrays["negative_prompt_embeds"], arrays["negative_pooled"]),
        questions=questions,
    )


def sample(index: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(index)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 1
    return {
        "index": np.int32(index),
        "image": generator.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        "target": generator.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        "mask": mask,
        "prompt_embeds": generator.normal(size=(TEXT_LENGTH, TEXT_WIDTH)).astype(np.float32),
        "pooled": generator.normal(size=POOLED_WIDTH).astype(np.float32),
        "negative_prompt_embeds": np.zeros((TEXT_LENGTH, TEXT_WIDTH), np.float32),
        "negative_pooled": np.zeros(POOLED_WIDTH, np.float32),
    }


def optimizer():
    return make_optimizer(1e-3, clip_norm=1e9)


def state(algorithm: str = "dynamic") -> TrainState:
    return create_state(models().params, optimizer(), seed=0, reference=algorithm == "fixed")


@functools.cache
def step(config: RewardLearning = CONFIG):
    """The jitted update; nothing is donated, so that a test can compare states."""
    made = models()
    return jax.jit(make_step(FluxFill(made.transformer, made.vae), scorer, optimizer(), config))


TOKENS, WIDTH = 16, 8  # packed latents of a tiny sample: 8×8 latents of two channels


class Linear:
    """A transformer of one number: v = w·x_σ + g·p, with p the prompt's first number and g the embedded guidance.
    The tiny batch's negative prompt is 0, so that true guidance makes it w·x_σ + s·g·p."""

    def apply(self, variables, hidden, prompt_embeds, pooled, sigma, img_ids, txt_ids, guidance):
        prompt = guidance[:, None, None] * prompt_embeds[:, :1, :1]
        return variables["params"]["w"] * hidden[..., :WIDTH] + prompt
