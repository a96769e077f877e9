"""Flow matching: its minimum, and prompt dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.flow import losses
from tests.support import tiny_fill

WIDTH, TOKENS = 8, 6  # of a packed latent: channels of a token, tokens of 4×6 latents


class Exact:
    """A field that knows the answer: the condition's masked image is the data itself, so v = (x_σ − x)/σ = ε − x.
    To that it adds the prompt's first number and the pooled state's, and a constant."""

    def __init__(self, constant: float = 0.0):
        self.constant = constant

    def apply(self, variables, hidden, prompt_embeds, pooled, sigma, img_ids, txt_ids, guidance):
        noisy, data = hidden[..., :WIDTH], hidden[..., WIDTH : 2 * WIDTH]
        shown = prompt_embeds[:, :1, :1] + pooled[:, None, :1]
        return (noisy - data) / sigma[:, None, None] + shown + self.constant


def batch(size, prompt=0.0, negative=0.0):
    """The masked image is the data; prompts and pooled states hold one number each."""
    generator = np.random.default_rng(0)
    data = generator.normal(size=(size, TOKENS, WIDTH)).astype(np.float32)
    full = lambda *shape: np.full((size, *shape), 1.0, np.float32)
    return {
        "index": np.arange(size, dtype=np.int32),
        "data": data,
        "masked_image": data,
        "mask": generator.integers(0, 2, (size, TOKENS, 16)).astype(np.float32),
        "prompt_embeds": prompt * full(3, 5),
        "pooled": prompt * full(4),
        "negative_prompt_embeds": negative * full(3, 5),
        "negative_pooled": negative * full(4),
    }


def loss_of(transformer, samples, **fields):
    loss = losses.flow_matching_loss(transformer, (4, 6), **fields)
    value, metrics = jax.jit(lambda: loss({"transformer": {}}, None, samples, jax.random.key(0)))()
    return float(value), {name: float(metric) for name, metric in metrics.items()}


def test_the_minimum_is_the_velocity_from_data_to_noise():
    value, metrics = loss_of(Exact(), batch(64))
    assert value < 1e-8
    assert metrics["learning/error_in_hole"] < 1e-8
    value, metrics = loss_of(Exact(constant=0.5), batch(64))
    assert value == pytest.approx(0.25, rel=1e-4)
    assert metrics["learning/error_in_hole"] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.25, 1.0])
def test_prompt_dropout_gives_its_share_of_samples_the_empty_prompt(dropout):
    """Prompt and pooled state of 0.5 add 1 to the velocity, the empty prompt nothing: the loss is the share shown."""
    value, _ = loss_of(Exact(), batch(512, prompt=0.5), prompt_dropout=dropout)
    exact = dropout in (0.0, 1.0)
    assert value == pytest.approx(1 - dropout, abs=1e-4 if exact else 0.06)
    # Both parts go together: with the negative's −0.5 every error is 1, and none would be if one stayed behind.
    value, _ = loss_of(Exact(), batch(512, prompt=0.5, negative=-0.5), prompt_dropout=dropout)
    assert value == pytest.approx(1.0, rel=1e-4)


def test_a_samples_loss_depends_on_its_index_only():
    samples = batch(4)
    order = np.array([2, 0, 3, 1])
    field = Exact(constant=1.0)
    field.apply = lambda variables, hidden, *_: hidden[..., :WIDTH]  # far from the answer, so that noise matters
    straight, _ = loss_of(field, samples)
    shuffled, _ = loss_of(field, {name: array[order] for name, array in samples.items()})
    assert shuffled == pytest.approx(straight, rel=1e-5)
    others, _ = loss_of(field, samples | {"index": samples["index"] + 4})
    assert others != pytest.approx(straight, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_learning_text_encoders_read_the_prompt_that_is_shown(tmp_path, dropout):
    """Of the two prompts of a sample, only the one that is shown changes the loss."""
    made = tiny_fill.pipeline(tmp_path)
    prompts = made.prompts
    params = {
        "transformer": made.params["transformer"],
        "text_encoder": prompts.text_encoder_params,
        "text_encoder_2": prompts.text_encoder_2_params,
    }
    loss = losses.flow_matching_loss(
        made.transformer, (4, 6), prompts.text_encoder, prompts.text_encoder_2, prompt_dropout=dropout
    )
    generator = np.random.default_rng(0)
    images = {
        name: generator.normal(size=(2, TOKENS, 16)).astype(np.float32) for name in ("data", "masked_image", "mask")
    }

    @jax.jit
    def value_of(clip_ids, t5_ids, empty_clip_ids, empty_t5_ids):
        texts = {"clip_ids": clip_ids, "t5_ids": t5_ids}
        empty = {"empty_clip_ids": empty_clip_ids, "empty_t5_ids": empty_t5_ids}
        samples = images | texts | empty | {"index": jnp.arange(2)}
        return loss(params, None, samples, jax.random.key(0))[0]

    tokens = [prompts.tokenize([prompt] * 2, tiny_fill.T5_LENGTH) for prompt in ("a small red circle", "remove", "")]
    written, other, empty = tokens
    value = float(value_of(*written, *empty))
    changed_prompt, changed_empty = float(value_of(*other, *empty)), float(value_of(*written, *other))
    shown, hidden = (changed_empty, changed_prompt) if dropout else (changed_prompt, changed_empty)
    assert hidden == value
    assert abs(shown - value) > 1e-5 * value
