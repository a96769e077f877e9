"""Two processes export, evaluate and fill as one does; an evaluation that was killed goes on where it stopped."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from onereward_jax.images.reading import read_image
from onereward_jax.weights.load import load_component
from tests.support import evaluating
from tests.support.compiler import xla_flags
from tests.support.multiprocess_run import ROOT, Run

MODULE = ("-m", "tests.support.evaluating")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """What two processes of a device each made, and what one made."""
    root, alone = tmp_path_factory.mktemp("both"), tmp_path_factory.mktemp("one") / "alone"
    evaluating.make(root)
    shutil.copytree(root, alone)
    with Run(*MODULE, str(root), devices=2) as both:
        assert both.ended() == [0, 0], both.said
    command = [sys.executable, *MODULE, str(alone)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags(1)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return root, alone


def test_an_export_has_the_bases_dtype(directories):
    """Gathered from both processes, each tensor is the checkpoint's, rounded to bfloat16."""
    expected = evaluating.policy()
    for root in directories:
        _, found = load_component(root / "exported" / "transformer", "transformer", "bfloat16")
        for mine, given in zip(*map(evaluating.jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_array_equal(mine, given.astype(mine.dtype))
    both, one = (sorted(p.relative_to(root) for p in (root / "exported").rglob("*")) for root in directories)
    assert both == one


def test_two_processes_evaluate_and_fill_as_one(directories):
    both, one = (json.loads((root / "evaluation" / "evaluation.json").read_text()) for root in directories)
    (judge,), (same_judge,) = both["judges"].values(), one["judges"].values()
    assert judge["overall"]["n"] == 5
    assert judge["overall"]["p"] == pytest.approx(same_judge["overall"]["p"], abs=1e-4)
    assert set(judge["gsb"]) == {"image_fill", "object_removal"}
    assert both["requests"] == one["requests"] == {"image_fill": 3, "object_removal": 2}
    for meter, tasks in one["meters"].items():
        for task, values in tasks.items():
            for name, value in values.items():
                assert both["meters"][meter][task][name]["policy"] == pytest.approx(value["policy"], abs=0.01), name
    assert {"residue"} == set(one["meters"]["removal"]["object_removal"])
    assert "psnr_target" in one["meters"]["outside"]["object_removal"]
    assert "psnr_target" not in one["meters"]["outside"]["image_fill"]
    for name in ("filled.png", *(f"evaluation/images/policy/image_fill/{n:06d}.png" for n in range(3))):
        pictures = [read_image(root / name).astype(int) for root in directories]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1, name
    page = (directories[0] / "evaluation" / "report.html").read_text()
    assert all(words in page for words in ("by judge", "Measured without a judge", "right answer"))
    assert "Reward during training" not in page
