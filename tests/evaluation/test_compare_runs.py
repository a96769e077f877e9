"""Comparison of several runs."""

import json

import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.evaluation import compare_runs
from onereward_jax.evaluation.good_same_bad import shares
from onereward_jax.evaluation.results import write_evaluation
from onereward_jax.tasks import TASKS


def made_run(workdir, algorithm, good, reward):
    write_evaluation(
        workdir / "evaluation.json",
        {
            "algorithm": algorithm,
            "judge_accuracy": {},
            "judge_ceiling": {},
            "gsb": {task: shares(good, 380 - good, 20) for task in TASKS},
            "seconds": {"train": 1.0, "evaluate": 1.0},
            "peak_memory_gib": 1.0,
        },
    )
    lines = [
        {"step": step, "rewards/image_fill/structure": reward, "rewards/image_fill/aesthetics": reward + 0.1}
        | ({"evaluation/image_fill/truth_gain": step / 100} if step % 5 == 0 else {})
        for step in range(1, 11)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


@pytest.fixture
def runs(tmp_path):
    # Names of directories may be the same.
    made = {"0/fixed": ("fixed", 100, 0.5), "1/fixed": ("fixed", 60, 0.6), "0/dynamic": ("dynamic", 22, 0.4)}
    return [made_run(tmp_path / name, *of) for name, of in made.items()]


def test_command_writes_table_and_figure(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["compare-runs", "--out", str(out), "--runs", *map(str, runs)]) == 0
    rows = json.loads((out / "comparison.json").read_text())
    assert [row["task"] for row in rows] == [*TASKS, *TASKS]
    first, last = rows[0], rows[-1]
    assert (first["group"], first["above_zero"], first["runs"]) == ("Algorithm 1", 2, 2)
    assert first["good_minus_bad"] == pytest.approx({str(runs[0]): 0.2, str(runs[1]): 0.1})
    assert first["mean"] == pytest.approx(0.15)
    assert (last["group"], last["above_zero"], last["runs"]) == ("Algorithm 2", 0, 1)  # 22 good, 20 bad
    assert "2 of 2" in capsys.readouterr().out
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_means_over_dimensions_and_start_at_zero(runs):
    rewards, gains_by_group = compare_runs.task_curves([compare_runs.read_run(run) for run in runs], "image_fill")
    assert {group: len(lines) for group, lines in rewards.items()} == {"Algorithm 1": 2, "Algorithm 2": 1}
    np.testing.assert_allclose(rewards["Algorithm 1"][1][1], 0.65)
    steps, gains = gains_by_group["Algorithm 2"][0]
    np.testing.assert_allclose(steps, [0, 5, 10])
    np.testing.assert_allclose(gains, [0, 0.05, 0.1])
    assert compare_runs.task_curves([compare_runs.read_run(runs[0])], "image_extend") == ({}, {})


def test_a_run_that_was_not_evaluated_is_named(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert cli.main(["compare-runs", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "run")]) == 2
    assert "run the evaluation first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
