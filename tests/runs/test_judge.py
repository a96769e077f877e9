"""What the judge is shown while it trains."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.data.mixture import mixture
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.errors import UserError
from onereward_jax.judge.pairs import read_pairs
from onereward_jax.runs.judge import PairExamples, _Best
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.training.checkpoint import Checkpointer, SaveError
from tests.support import tiny_judge
from tests.support.preference_examples import picture

BATCH, STEPS = 4, 12


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = []
    for number in range(40):
        task = TASKS[number % 4]
        candidates = tuple(Candidate(picture(2 * number + i, 64, 64)) for i in range(2))
        dimension = dimensions_of(task)[number // 4 % len(dimensions_of(task))]
        made.append(Record(str(number), task, "a cat", candidates, pairs=(Preference(dimension, 0, 1),)))
    folder = tmp_path_factory.mktemp("data")
    write_records(folder, iter(made), "folder")
    return read_pairs(folder)


def shown(pairs, variant, steps, **judge):
    overrides = {"train.batch_size": BATCH, "train.num_steps": steps}
    overrides |= {f"judge.{name}": value for name, value in judge.items()}
    config = load_config(f"miniature/{variant}", overrides)
    examples = PairExamples(config, tiny_judge.judge(), pairs)
    batches = iter(mixture(examples.weights, examples, config.seed, BATCH))
    return [sample for _ in range(steps) for sample in _samples(next(batches))]


def _samples(batch):
    names = ("first", "second", "label", "asked", "task", "prompt")
    return [tuple(batch[name][row] for name in names) for row in range(BATCH)]


def test_a_judge_of_one_task_sees_the_pairs_that_the_judge_of_all_sees(pairs):
    """Planted and annotated ones, in the same order, whatever the length of either run."""
    of_all = shown(pairs, "one_judge", STEPS)
    for task in ("image_extend", "object_removal"):
        of_task = [sample for sample in of_all if sample[4] == task]
        alone = shown(pairs, "task_judge", STEPS // 4, task=task)
        assert {str(sample[4]) for sample in alone} == {task}
        compared = min(len(of_task), len(alone))
        assert compared >= BATCH
        for one, other in zip(of_task[:compared], alone[:compared], strict=True):
            for mine, yours in zip(one, other, strict=True):
                np.testing.assert_array_equal(mine, yours)


def test_a_task_of_weight_zero_has_no_judge_of_its_own(pairs):
    config = load_config("miniature/task_judge", {"judge.task": "image_fill", "data.task_weights.image_fill": "0"})
    with pytest.raises(UserError, match="image_fill"):
        PairExamples(config, tiny_judge.judge(), pairs)


# ----------------------------------------------------------------------------------------------------- the best weights


def weights(step):
    return {"w": jnp.full(3, step, jnp.float32)}


def seen(workdir, *steps, **keywords):
    for step, accuracy in steps:
        _Best(workdir).see(step, {"accuracy": accuracy}, weights(step), **keywords)


def best(workdir):
    return float(_Best(workdir).read(weights(0))["w"][0])


def test_the_best_may_be_an_earlier_step_than_the_one_before_it(tmp_path):
    """A run was killed after its best at 750, resumed from 500, and ended at 600."""
    seen(tmp_path, (250, 0.5), (750, 0.6), (600, 0.7), (601, 0.7))
    assert best(tmp_path) == 600
    assert Checkpointer(tmp_path / "best").steps() == [600]


def test_weights_that_best_json_does_not_name_are_not_the_best(tmp_path):
    seen(tmp_path, (2, 0.5))
    shutil.copy(tmp_path / "best.json", tmp_path / "kept.json")
    seen(tmp_path, (4, 0.6))
    shutil.copy(tmp_path / "kept.json", tmp_path / "best.json")  # killed before it wrote that
    with pytest.raises(UserError, match="step 2"):
        best(tmp_path)
    seen(tmp_path, (4, 0.6))
    assert best(tmp_path) == 4
    (tmp_path / "best.json").unlink()
    with pytest.raises(UserError, match=r"best\.json"):
        best(tmp_path)


def test_a_best_step_that_cannot_be_saved_is_left_out_unless_it_is_the_last(tmp_path, monkeypatch):
    def full(*_):
        raise SaveError("no space left")

    seen(tmp_path, (2, 0.5))
    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", full)
        with pytest.warns(RuntimeWarning, match="step 4 could not be saved"):
            seen(tmp_path, (4, 0.7))
        with pytest.raises(SaveError):
            seen(tmp_path, (6, 0.8), last=True)
    assert best(tmp_path) == 2
    seen(tmp_path, (8, 0.6))
    assert best(tmp_path) == 8
