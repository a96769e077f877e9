"""Questions of many samples in one batch."""

import numpy as np
import pytest

from onereward_jax.judge.preference_loss import preference_loss
from onereward_jax.judge.question_batches import MAX_DIMENSIONS, ask_only, question_batch
from onereward_jax.runs.judge import asked_first
from onereward_jax.tasks import CELLS, dimensions_of
from tests.support import tiny_judge

TASKS, PROMPTS = ["image_fill", "object_removal"], ["a red circle on the left", "remove"]
LENGTH = 96


def test_questions_follow_the_order_of_the_tasks_dimensions():
    batch = question_batch(tiny_judge.judge(), TASKS, PROMPTS, LENGTH)
    for row, (task, prompt) in enumerate(zip(TASKS, PROMPTS, strict=True)):
        dimensions = dimensions_of(task, prompt)
        assert [CELLS[cell] for cell in batch.cell[row] if cell >= 0] == [(task, d) for d in dimensions]
        for column in range(MAX_DIMENSIONS):
            text = tiny_judge.judge().question(task, dimensions[column], prompt) if column < len(dimensions) else None
            ids, lengths = tiny_judge.judge().encode_questions([text], LENGTH)
            np.testing.assert_array_equal(batch.ids[row, column], ids[0])
            assert batch.lengths[row, column] == lengths[0]


def test_unannotated_dimensions_need_not_be_asked():
    judge, generator = tiny_judge.judge(), np.random.default_rng(0)
    images = {name: generator.random((2, 32, 32, 3), dtype=np.float32) for name in ("first", "second")}
    labels = np.array([[0, 0, -1, 0], [1, 0, 0, 0]], np.int32)
    questions = question_batch(judge, TASKS, PROMPTS, LENGTH).arrays() | {"label": labels}
    asked = np.stack([asked_first(generator, row)[:1] for row in labels])
    few = ask_only(questions, asked)
    assert few["question_ids"].shape == (2, 1, LENGTH)
    loss, metrics = preference_loss(judge.apply, judge.params, images | questions)
    loss_of_few, metrics_of_few = preference_loss(judge.apply, judge.params, images | few)
    assert float(loss_of_few) == pytest.approx(float(loss), rel=1e-5)
    assert metrics_of_few.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_few[name], value, rtol=1e-4, err_msg=name)


def test_annotated_dimensions_come_first_in_random_order():
    labels = np.array([0, 1, 0, -1])
    orders = [asked_first(np.random.default_rng(seed), labels) for seed in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert all(set(order[:2]) == {1, 3} for order in orders)
    assert {int(order[0]) for order in orders} == {1, 3}
    assert {int(asked_first(np.random.default_rng(seed), labels, drawn=3)[0]) for seed in range(20)} == {3}
    # It may have lost its label since.
    assert {int(asked_first(np.random.default_rng(seed), labels, drawn=0)[0]) for seed in range(20)} == {1, 3}
