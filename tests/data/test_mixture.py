"""The mixture: one sequence of samples, whatever the batch size, the processes and the threads; resumable."""

import json

import numpy as np
import pytest

from onereward_jax.data.mixture import SamplesOf, mixture
from onereward_jax.errors import UserError

TASKS = {"image_fill": 0.5, "image_extend": 0.25, "object_removal": 0.25, "text_rendering": 0.0}
NUMBER = {task: number for number, task in enumerate(TASKS)}


def make_example(index: int, task: str) -> dict:
    pixels = np.random.default_rng(index).integers(0, 256, (2, 3), dtype=np.uint8)
    return {"pixels": pixels, "task": NUMBER[task], "prompt": f"{task} number {index}"}


def take(count: int, batch_size: int, **options) -> dict[str, np.ndarray]:
    """The first `count` samples, in order."""
    batches = iter(mixture(TASKS, make_example, seed=options.pop("seed", 3), batch_size=batch_size, **options))
    taken = [next(batches) for _ in range(count // batch_size)]
    return {name: np.concatenate([batch[name] for batch in taken])[:count] for name in taken[0]}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_fields_of_a_batch():
    batch = next(iter(mixture(TASKS, make_example, seed=0, batch_size=4)))
    assert batch["pixels"].shape == (4, 2, 3)
    assert batch["pixels"].dtype == np.uint8
    assert batch["index"].dtype == np.int64
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["prompt"][3].endswith(" number 3")


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 0), (4, 1), (8, 3), (24, 2)])
def test_does_not_depend_on_batch_size_or_threads(batch_size, threads):
    assert_same(take(48, 12, num_threads=0), take(48, batch_size, num_threads=threads))


@pytest.mark.parametrize(("batch_size", "threads"), [(4, 0), (3, 2)])
def test_conditions_come_in_epochs(batch_size, threads):
    """Each once an epoch, in another order; what is made of one is always the same."""
    taken = take(36, batch_size, num_threads=threads, num_conditions=12)
    assert taken["index"].tolist() == list(range(36))
    epochs = taken["condition"].reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for condition in range(12):
        rows = taken["pixels"][taken["condition"] == condition]
        assert (rows == make_example(condition, "image_fill")["pixels"]).all()
        assert len(set(taken["task"][taken["condition"] == condition])) == 1


def test_batches_repeat_their_conditions():
    taken = take(48, 4, repeats=3)
    rows = taken["condition"].reshape(4, 3, 4)
    assert (rows == np.arange(16).reshape(4, 1, 4)).all()
    assert taken["age"].reshape(12, 4).tolist() == [[age] * 4 for age in (0, 1, 2)] * 4
    assert taken["index"].tolist() == list(range(48))
    first = take(16, 4)
    np.testing.assert_array_equal(taken["pixels"].reshape(4, 3, 4, 2, 3)[:, 2].reshape(16, 2, 3), first["pixels"])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 5, 6], [7]])
def test_does_not_depend_on_the_rows_that_are_made(rows):
    whole, part = iter(mixture(TASKS, make_example, 3, 8)), iter(mixture(TASKS, make_example, 3, 8, rows))
    for _ in range(3):
        expected = next(whole)
        assert_same(next(part), {name: array[rows] for name, array in expected.items()})
    assert json.dumps(part.get_state()) == json.dumps(whole.get_state())


def test_tasks_are_drawn_with_their_weights():
    """4,000 draws: the standard deviation of a share is at most 0.008."""
    tasks = take(4000, 400)["task"]
    shares = np.bincount(tasks, minlength=4) / 4000
    np.testing.assert_allclose(shares, list(TASKS.values()), atol=0.03)
    assert shares[3] == 0
    # One draw says nothing about the next.
    fill = tasks == NUMBER["image_fill"]
    assert abs(np.mean(fill[1:] & fill[:-1]) - 0.25) < 0.03


def test_the_seed_changes_the_tasks():
    assert (take(64, 8, seed=1)["task"] != take(64, 8, seed=2)["task"]).any()
    assert_same(take(64, 8, seed=1), take(64, 8, seed=1))


@pytest.mark.parametrize("threads", [0, 2])
def test_goes_on_from_a_state(threads):
    batches = iter(mixture(TASKS, make_example, 3, 4, num_threads=threads))
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(3)]
    again = iter(mixture(TASKS, make_example, 3, 4, num_threads=threads))
    again.set_state(state)
    for batch in expected:
        assert_same(next(again), batch)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": {"image_fill": -1.0}},
        {"tasks": {"image_fill": float("nan")}},
        {"tasks": {"image_fill": 0.0}},
        {"batch_size": 0},
    ],
)
def test_what_can_not_be(change):
    with pytest.raises(UserError):
        mixture(**{"tasks": TASKS, "make_example": make_example, "seed": 0, "batch_size": 4, **change})


def test_an_error_of_a_record_is_raised():
    def broken(index: int, task: str) -> dict:
        if index == 5:
            raise ValueError("photo 5 is damaged: remove it")
        return {"a": index}

    batches = iter(mixture(TASKS, broken, 0, 2))
    with pytest.raises(ValueError, match="photo 5 is damaged"):
        [next(batches) for _ in range(4)]


def test_samples_of_a_task_are_found_as_they_are_asked_for():
    tasks = take(200, 10)["task"]
    for task, number in NUMBER.items():
        expected = np.flatnonzero(tasks == number)
        if TASKS[task]:
            samples = SamplesOf(TASKS, task, 3)
            assert samples[30] == expected[30]
            assert [samples[place] for place in range(len(expected))] == expected.tolist()
        else:
            with pytest.raises(UserError, match="the weight of task text_rendering is 0"):
                SamplesOf(TASKS, task, 3)


def test_batches_of_one_size_stay_together_in_every_epoch_on_every_host():
    """Conditions of a batch differ in nothing that decides their size, which is drawn by index // batch_size."""
    options = {"seed": 1, "batch_size": 4, "num_threads": 0, "num_conditions": 24, "together": True}
    hosts = [iter(mixture(TASKS, lambda index, task: {}, rows=rows, **options)) for rows in ((0, 1), (2, 3))]
    epochs = []
    for _ in range(2):
        batches = [[next(host)["condition"] for host in hosts] for _ in range(6)]
        for parts in batches:
            assert np.concatenate(parts).tolist() == list(range(parts[0][0], parts[0][0] + 4))
            assert parts[0][0] % 4 == 0
        epochs.append([int(parts[0][0]) for parts in batches])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 24, 4))
    assert epochs[0] != epochs[1]
