import copy
import json

import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.evaluation.good_same_bad import shares
from onereward_jax.evaluation.results import read_evaluation, validate_evaluation, write_evaluation


@pytest.fixture
def evaluation():
    return {
        "algorithm": "dynamic",
        "judge_accuracy": {"image_fill": {"structure": 0.8}, "object_removal": {"removal_quality": 0.7}},
        "judge_ceiling": {"image_fill": {"structure": 0.9}},
        "gsb": {"image_fill": shares(50, 30, 20)},
        "seconds": {"train": 12.5, "evaluate": 3.0},
        "peak_memory_gib": 1.5,
    }


def test_written_and_read_back(tmp_path, evaluation):
    path = tmp_path / "runs" / "evaluation.json"
    write_evaluation(path, evaluation | {"extra": np.float32(0.5), "counts": np.arange(3)})
    assert read_evaluation(path) == evaluation | {"extra": 0.5, "counts": [0, 1, 2]}
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_what_was_not_measured_may_be_none(evaluation):
    evaluation["seconds"]["train"] = None
    evaluation["peak_memory_gib"] = None
    validate_evaluation(evaluation)


def test_an_invalid_record_leaves_the_old_file(tmp_path, evaluation):
    path = tmp_path / "evaluation.json"
    write_evaluation(path, evaluation)
    before = path.read_text()
    with pytest.raises(UserError):
        write_evaluation(path, evaluation | {"judge_accuracy": {"image_fill": {"structure": float("nan")}}})
    with pytest.raises(UserError):
        write_evaluation(path, evaluation | {"extra": float("nan")})
    assert path.read_text() == before


def change(evaluation, path, value):
    changed = copy.deepcopy(evaluation)
    *parents, last = path.split("/")
    node = changed
    for parent in parents:
        node = node[parent]
    node[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("algorithm", ""),
        ("judge_accuracy/image_fill/structure", 80),
        ("judge_accuracy/image_fill/removal_quality", 0.5),
        ("judge_ceiling", None),
        ("gsb/image_fill/good", 0.6),
        ("gsb/image_fill/n", 0),
        ("gsb/image_fill/ci95", [0.4, 0.2]),
        ("gsb/image_fill/ci95", [20, 40]),
        ("gsb/inpainting", {}),
        ("gsb/object_removal", {"good": 1}),
        ("seconds/evaluate", None),
        ("peak_memory_gib", -1),
    ],
)
def test_each_kind_of_mistake_is_found(evaluation, path, value):
    with pytest.raises(UserError):
        validate_evaluation(change(evaluation, path, value))


def test_all_mistakes_in_one_message(evaluation):
    del evaluation["gsb"], evaluation["algorithm"]
    with pytest.raises(UserError, match=r"algorithm.*gsb"):
        validate_evaluation(evaluation)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_evaluation(tmp_path / "evaluation.json")
    (tmp_path / "evaluation.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError):
        read_evaluation(tmp_path / "evaluation.json")
