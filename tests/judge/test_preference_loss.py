"""The judge's loss, Eq. 3."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.judge.preference_loss import make_loss, preference_loss
from onereward_jax.models import lora
from onereward_jax.tasks import CELLS
from onereward_jax.training.state import create_state, supervised_step
from tests.support import tiny_judge


def _answers(p_yes_given, p_yes_swapped, rest=0.1):
    """Make `apply` of a judge with these P(Yes), which leaves 0.1 to the rest of the vocabulary."""
    p = np.stack([np.asarray(p_yes_given), np.asarray(p_yes_swapped)])
    log_p = jnp.log(jnp.stack([p, 1 - rest - p], axis=-1))

    def apply(params, batch, both_orders):
        assert both_orders
        return log_p

    return apply


def test_loss_equals_the_paper():
    apply = _answers([[0.6, 0.3, 0.8]], [[0.2, 0.5, 0.8]])
    loss, metrics = preference_loss(apply, None, {"label": jnp.asarray([[1, -1, 0]])})
    # Dimension 0, the first wins: P(Yes | first, second) = .6, P(No | second, first) = .9 − .2.
    # Dimension 1, the second wins: P(Yes | second, first) = .5, P(No | first, second) = .9 − .3.
    expected = -0.5 * np.mean([np.log(0.6) + np.log(0.7), np.log(0.5) + np.log(0.6)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # P(Yes | second, first) of dimension 1 is exactly ½, which counts half.
    assert float(metrics["judge/accuracy"]) == pytest.approx(3.5 / 4)
    assert float(metrics["judge/p_answers"]) == pytest.approx(0.9, rel=1e-5)


def test_accuracy_of_each_order_and_cell():
    # Yes in either order, a little more when the first image is the better one.
    apply = _answers([[0.7, 0.7]], [[0.6, 0.8]])
    batch = {"label": jnp.asarray([[1, 1]]), "cell": jnp.asarray([[2, 8]])}
    _, metrics = preference_loss(apply, None, batch)
    assert float(metrics["judge/accuracy_as_given"]) == 1.0
    assert float(metrics["judge/accuracy_swapped"]) == 0.0
    assert float(metrics["judge/accuracy"]) == 0.5
    assert float(metrics["judge/accuracy/image_fill/structure"]) == 0.5
    assert float(metrics["judge/accuracy/object_removal/removal_quality"]) == 0.5
    assert np.isnan(metrics["judge/accuracy/image_fill/aesthetics"])
    assert sum(name.startswith("judge/accuracy/") for name in metrics) == len(CELLS)


def test_weights_and_unannotated_batches():
    apply = _answers([[0.6, 0.3]], [[0.2, 0.5]])
    loss, _ = preference_loss(apply, None, {"label": jnp.asarray([[1, 1]]), "weights": jnp.asarray([[1.0, 0.0]])})
    assert float(loss) == pytest.approx(-0.5 * (np.log(0.6) + np.log(0.7)), rel=1e-5)
    loss, _ = preference_loss(apply, None, {"label": jnp.zeros((1, 2))})
    assert float(loss) == 0.0


def test_a_judge_learns_a_preference_in_both_orders():
    """The brighter image is better in one dimension, the redder one in the other."""
    judge = tiny_judge.judge()
    ids, lengths = judge.encode_questions(tiny_judge.QUESTIONS[:2])

    def batch(index):
        generator = np.random.default_rng(index)
        colour = generator.uniform(0.2, 0.8, (2, 16, 1, 1, 3)) + 0.05 * generator.standard_normal((2, 16, 16, 16, 3))
        brightness = colour.mean(axis=(2, 3, 4))
        redness = (colour[..., 0] - colour[..., 2]).mean(axis=(2, 3))
        labels = np.stack([np.sign(brightness[0] - brightness[1]), np.sign(redness[0] - redness[1])], axis=-1)
        return {
            "first": jnp.asarray(colour[0], jnp.float32),
            "second": jnp.asarray(colour[1], jnp.float32),
            "question_ids": np.tile(ids, (16, 1, 1)),
            "question_lengths": np.tile(lengths, (16, 1)),
            "label": labels.astype(np.float32),
        }

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3))
    step = jax.jit(supervised_step(make_loss(judge.apply), optimizer), donate_argnums=0)
    state = create_state(judge.params, optimizer, 0, ema=False)
    history = []
    for index in range(150):
        state, metrics = step(state, {}, batch(index))
        history.append({name: float(value) for name, value in metrics.items()})
    late = {name: np.mean([metrics[name] for metrics in history[-25:]]) for name in history[0]}
    assert late["judge/p_answers"] > 0.95
    assert late["judge/accuracy_as_given"] > 0.75
    assert late["judge/accuracy_swapped"] > 0.75
    assert late["learning/loss"] < history[0]["learning/loss"] / 3


def test_an_adapter_learns_on_a_frozen_judge():
    judge, adapters = tiny_judge.judge(), lora.LoRA(rank=4, alpha=8.0, targets="layers/(self_attn|mlp)/")
    generator = np.random.default_rng(0)
    ids, lengths = judge.encode_questions([tiny_judge.QUESTIONS[0]])
    batch = {
        **{name: generator.random((4, 16, 16, 3), np.float32) for name in ("first", "second")},
        "question_ids": np.tile(ids, (4, 1, 1)),
        "question_lengths": np.tile(lengths, (4, 1)),
        "label": np.array([[1], [-1], [1], [-1]]),
        "index": np.arange(4, dtype=np.int32),
    }
    optimizer = optax.adam(3e-3)
    step = jax.jit(supervised_step(adapters.loss(make_loss(judge.apply)), optimizer, ema_decay=0.9))
    state, losses = create_state(adapters.init(judge.params, jax.random.key(0)), optimizer, seed=0), []
    for _ in range(8):
        state, metrics = step(state, judge.params, batch)
        losses.append(float(metrics["learning/loss"]))
    assert losses[-1] < 0.9 * losses[0]
