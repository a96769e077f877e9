"""P(Yes) on a shared prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.judge import answer_probabilities
from onereward_jax.judge.conversation import Prefix
from tests.support import tiny_judge

# The second needs resizing: 20 x 30 pixels are not whole tokens.
SIZES = ((16, 24), (20, 30))


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    ids, lengths = tiny_judge.judge().encode_questions([*tiny_judge.QUESTIONS, None], length=48)
    assert len(set(lengths)) > 2  # questions of different lengths, one padding
    first, second = (jnp.asarray(generator.random((2, *size, 3)), jnp.float32) for size in SIZES)
    return {
        "first": first,
        "second": second,
        "question_ids": np.tile(ids, (2, 1, 1)),
        "question_lengths": np.tile(lengths, (2, 1)),
    }


def test_packed_equals_one_at_a_time_in_values_and_gradients(batch):
    judge = tiny_judge.judge()
    weight = np.random.default_rng(3).standard_normal((2, 3, 2)).astype(np.float32)

    @jax.jit
    def answers_and_gradient(first, second, questions, weight):
        def functional(first, second):
            log_p = judge.apply(judge.params, questions | {"first": first, "second": second})
            return (log_p * weight).sum(), log_p

        (_, log_p), gradient = jax.value_and_grad(functional, argnums=(0, 1), has_aux=True)(first, second)
        return log_p, gradient

    images = batch["first"], batch["second"]
    packed, gradient = answers_and_gradient(*images, _questions(batch, slice(0, 3)), weight)
    alone = [answers_and_gradient(*images, _questions(batch, slice(d, d + 1)), weight[:, d : d + 1]) for d in range(3)]
    assert _error(packed, np.concatenate([log_p for log_p, _ in alone], axis=1)) < 1e-5
    for image in (0, 1):
        assert _error(gradient[image], sum(gradients[image] for _, gradients in alone)) < 1e-5


def test_padding_does_not_matter(batch):
    judge = tiny_judge.judge()
    apply = judge._answer
    expected = apply(judge.params, batch)
    assert np.isfinite(expected).all()  # even where nothing is asked
    longer = {"question_ids": np.pad(batch["question_ids"], ((0, 0), (0, 0), (0, 7)), constant_values=5)}
    assert _error(apply(judge.params, batch | longer)[:, :3], expected[:, :3]) < 1e-5


def test_both_orders_equal_two_calls(batch):
    judge = tiny_judge.judge()
    swapped = batch | {"first": batch["second"], "second": batch["first"]}
    for given, other in (
        (batch, swapped),  # of two sizes
        (batch | {"second": batch["first"][::-1]}, batch | {"first": batch["first"][::-1], "second": batch["first"]}),
    ):
        both = jax.jit(lambda p, b: judge.apply(p, b, both_orders=True))(judge.params, given)
        expected = [judge._answer(judge.params, part) for part in (given, other)]
        assert both.shape == (2, 2, 4, 2)
        assert _error(both, np.stack(expected)) < 1e-5
        assert _error(both[0], both[1]) > 1e-3


def test_encoded_images_give_the_same_answers_and_no_gradient_is_lost(batch):
    judge = tiny_judge.judge()
    tokens = judge._encode_pixels(judge.params, batch["second"])
    assert (tokens.features.shape, tokens.grid) == ((2, 2 * 4, 48), (2, 4))

    def p_yes(first, second):
        return judge.apply(judge.params, batch | {"first": first, "second": second})[..., 0].sum()

    value, gradient = jax.jit(jax.value_and_grad(p_yes))(batch["first"], batch["second"])
    kept, kept_gradient = jax.jit(jax.value_and_grad(p_yes))(batch["first"], tokens)
    assert float(kept) == pytest.approx(float(value), rel=1e-5)
    assert _error(kept_gradient, gradient) < 1e-5


def test_gradient_equals_finite_differences_through_the_resize(batch):
    judge = tiny_judge.judge()
    log_p = lambda image: judge.apply(judge.params, batch | {"second": image})[0, 0, 0]
    image = batch["second"] * 0.8 + 0.1
    gradient = jax.jit(jax.grad(log_p))(image)
    log_p = lambda image: judge._answer(judge.params, batch | {"second": image})[0, 0, 0]
    direction = gradient / jnp.linalg.norm(gradient)
    step = 0.05
    numeric = (log_p(image + step * direction) - log_p(image - step * direction)) / (2 * step)
    assert float(numeric) == pytest.approx(float(jnp.linalg.norm(gradient)), rel=2e-2)


def test_positions_of_images_and_text():
    positions = answer_probabilities.prefix_positions(Prefix((7, 7), (7,), (7,)), (2, 3), (1, 2))
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8, 9])
    np.testing.assert_array_equal(positions[1], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 8, 9])
    np.testing.assert_array_equal(positions[2], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9])


def test_mask_of_two_questions():
    mask = answer_probabilities.packed_mask(2, 2, 2).astype(int)
    np.testing.assert_array_equal(
        mask,
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 1, 1],
        ],
    )


def _questions(batch, which):
    return {name: batch[name][:, which] for name in ("question_ids", "question_lengths")}


def _error(ours, expected):
    return float(np.linalg.norm(np.asarray(ours) - expected) / np.linalg.norm(expected))
