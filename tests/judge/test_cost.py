"""Cost of a pass in operations of its matrix products, as counted by benchmarks/judge_cost.py."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import judge_cost
from benchmarks.judge_cost import matrix_operations
from onereward_jax.judge import answer_probabilities
from tests.support import tiny_judge


def test_loops_and_branches_count_as_often_as_they_run():
    def function(x, layers):
        def body(x, layer):
            double, single = (lambda x: layer @ (layer @ x)), (lambda x: layer @ x)
            return jax.lax.cond(x[0, 0] > 0, double, single, x), None

        return jax.jit(lambda x: jax.lax.scan(jax.checkpoint(body), x, layers)[0])(x)

    shapes = jax.ShapeDtypeStruct((5, 3), jnp.float32), jax.ShapeDtypeStruct((4, 5, 5), jnp.float32)
    # Branch 0 is that of False.
    assert matrix_operations(function, *shapes, taken=(0.75, 0.25)) == 4 * 1.25 * (2 * 5 * 5 * 3)


def test_full_size_cost_follows_from_its_sizes():
    judge, shapes = judge_cost.official_judge(tiny_judge.tokenizer())
    images = [jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)] * 2
    counted = {}
    for texts in (judge_cost.QUESTIONS[:1], judge_cost.QUESTIONS):
        longest = int(max(judge.encode_questions(texts)[1]))
        padded = -(-longest // 16) * 16
        counted[len(texts)] = judge_cost.answering_operations(judge, shapes, images, texts)
        length = 2 * 37**2 + sum(map(len, (judge.prefix.begin, judge.prefix.middle, judge.prefix.end)))
        length += len(texts) * padded
        assert counted[len(texts)] == pytest.approx(_expected(shapes, length, len(texts)), rel=1e-9)
    assert 1 < counted[4] / counted[1] < judge_cost.LIMIT


def _expected(shapes, length, questions):
    """Of Qwen2.5-VL-7B on two images of 1024 x 1024, seen at 1036 x 1036: 74 x 74 patches, 37 x 37 tokens."""
    patches, tokens = 74**2, 37**2
    kernels = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.ndim > 2)  # stacked layers
    text = 2 * kernels(shapes["model"]["layers"]) * length + 28 * 4 * length**2 * 3584
    text += 2 * shapes["lm_head"]["kernel"].size * questions
    visual = shapes["visual"]
    image = 2 * 2 * 3 * 1036 * 1024 * (1024 + 1036)  # the resize: two passes, of what lies in [0, 1] and of the rest
    image += 2 * visual["patch_embed"]["proj"]["kernel"].size * patches
    image += 2 * kernels(visual["blocks"]) * patches
    windows, in_window = 10**2, 8**2  # 37 tokens are ten windows of four, the last one padded
    image += (4 * 4 * patches**2 + 28 * 4 * windows * in_window**2) * 1280
    merger = visual["merger"]
    image += 2 * (merger["mlp_0"]["kernel"].size + merger["mlp_2"]["kernel"].size) * tokens
    return text + 2 * image


def test_the_reference_image_has_no_backward_pass_through_the_vision_tower():
    judge = tiny_judge.judge()
    first, second = (jax.ShapeDtypeStruct((1, *size, 3), jnp.float32) for size in ((16, 24), (32, 24)))
    encode = lambda image: answer_probabilities.encode_image(judge.model, judge.params, image, judge.settings)
    kept = jax.eval_shape(encode, second)
    ids, lengths = judge.encode_questions(tiny_judge.QUESTIONS)

    def p_yes(first, second):
        asked = {"question_ids": ids[None], "question_lengths": lengths[None]}
        return judge.apply(judge.params, asked | {"first": first, "second": second})[..., 0].sum()

    count = lambda function, *inputs: matrix_operations(function, *inputs, taken=(2 / 3, 1 / 3))
    with_pixels, with_kept = (count(jax.grad(p_yes), first, reference) for reference in (second, kept))
    assert with_pixels - with_kept == pytest.approx(count(encode, second))
    both = count(jax.grad(p_yes, argnums=(0, 1)), first, second)
    assert both - with_pixels > count(encode, second)  # a backward pass costs more than a forward one
