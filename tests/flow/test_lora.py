"""Flow matching of an adapter: the loss falls, and the base is not trained."""

import jax
import numpy as np

from onereward_jax.flow import losses
from onereward_jax.models import lora
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state, supervised_step
from tests.support import tiny_fill

ADAPTERS = lora.LoRA(rank=4, alpha=4.0)
SIZE, TOKENS = 4, 4  # tokens of 4×4 latents


def batch():
    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.standard_normal((SIZE, *shape)).astype(np.float32)
    return {
        "index": np.arange(SIZE, dtype=np.int32),
        "data": normal(TOKENS, 16),
        "masked_image": normal(TOKENS, 16),
        "mask": np.ones((SIZE, TOKENS, 16), np.float32),
        "prompt_embeds": normal(3, 24),
        "pooled": normal(16),
        "negative_prompt_embeds": normal(3, 24),
        "negative_pooled": normal(16),
    }


def test_an_adapter_learns_on_a_frozen_base():
    transformer, base = tiny_fill.transformer()
    params, optimizer = {"transformer": base}, make_optimizer(1e-2)
    loss = ADAPTERS.loss(losses.flow_matching_loss(transformer, (4, 4)))
    step = jax.jit(supervised_step(loss, optimizer, ema_decay=0.9))
    state = create_state(ADAPTERS.init(params, jax.random.key(0)), optimizer, seed=0)
    assert set(lora.factors(state.params)) == set(lora.layers(params))
    found = []
    for _ in range(10):
        state, metrics = step(state, params, batch())
        found.append(float(metrics["learning/loss"]))
    assert found[-1] < 0.9 * found[0]
