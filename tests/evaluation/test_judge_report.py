"""Report of `onereward evaluate-judge`."""

import numpy as np
import pytest
from PIL import Image

from onereward_jax.data.preferences.ballots import Ballots
from onereward_jax.evaluation.accuracy import accuracy_difference, human_accuracy, judge_accuracy
from onereward_jax.evaluation.report.judge_report import write_judge_report
from onereward_jax.tasks import CELLS
from tests.support.page import Page


def answers(skill, seed):
    """The more skill, the nearer P(Yes) is to 1 with the winner first, and to 0 with the loser first."""
    draw = np.random.default_rng(seed)
    return [
        (*cell, float(draw.uniform(skill, 1)), float(draw.uniform(0, 1 - skill)), None)
        for cell in CELLS
        for _ in range(40)
    ]


@pytest.fixture(scope="module")
def found():
    one, several, untuned = (answers(skill, seed) for seed, skill in enumerate((0.3, 0.1, 0.0)))
    return {
        "model": judge_accuracy(one),
        "untuned": judge_accuracy(untuned),
        "one_a_task": judge_accuracy(several),
        "differences": {
            "untuned": accuracy_difference(one, untuned),
            "one_a_task": accuracy_difference(one, several),
        },
    }


def test_one_judge_beside_others(tmp_path, found):
    write_judge_report(tmp_path, found, [("data", "<mine>")])
    page = Page((tmp_path / "report.html").read_text())
    overall, apart = found["model"]["overall"], found["differences"]["one_a_task"]["overall"]
    assert f"one judge {100 * overall['accuracy']:.1f}" in page.words
    assert f"one judge − one per task: +{100 * apart['difference']:.0f} points" in page.words
    assert f"{len(CELLS)} cells it is clearly more often right in" in page.words
    assert "<mine>" in page.words
    assert page.tags.count("svg") == 4
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    for name in ("judges", "judge_difference", "calibration"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.size[0] > 400


def test_a_judge_alone(tmp_path, found):
    write_judge_report(tmp_path, {"model": found["model"], "differences": {}})
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert "paired" not in page.words
    assert not (tmp_path / "figures" / "judge_difference.png").exists()


def test_annotators_stand_beside_the_judge(tmp_path, found):
    humans = human_accuracy([("image_fill", "structure", Ballots(3, n), n) for n in range(2)])
    write_judge_report(tmp_path, {"model": found["model"], "annotators": humans})
    page = Page((tmp_path / "report.html").read_text())
    assert f"{100 * 6 / 7:.1f}" in page.words
    assert "n = 7" in page.words
