"""A run killed at every kind of moment, in one chain, ends as the run that nothing happened to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onereward_jax.training.metrics import read_metrics
from tests.support import killed_trainer

TRAINER = Path(killed_trainer.__file__)

# (moment of the kill, steps of the whole checkpoints that it leaves). Checkpoints are due at 5, 10, 15, 20, 24.
CHAIN = [
    ("compile", []),
    ("before the manifest", []),
    ("in a line of metrics", []),
    ("while Orbax writes", []),
    ("after the manifest", [5]),
    ("step 8", [5]),
    ("while deleting", [10, 15]),
    ("SIGTERM 16", [15, 17]),
    ("evaluation", [15, 17]),
    ("after the end", [20, 24]),
]


def train(workdir: Path, moment: str = "never") -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, str(TRAINER), str(workdir), moment],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def whole_steps(workdir: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in (workdir / "checkpoints").glob("step_*.json"))


def lines_without_times(workdir: Path) -> list[dict]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert train(workdir).returncode == 0
    return workdir


def test_chain_of_kills(undisturbed, tmp_path):
    for moment, steps in CHAIN:
        result = train(tmp_path, moment)
        if moment.startswith("SIGTERM"):
            assert result.returncode == 128 + signal.SIGTERM, result.stderr
            assert "stopped by SIGTERM at step 17, saved in" in result.stderr
        else:
            assert result.returncode == -signal.SIGKILL, (moment, result.stderr)
        assert whole_steps(tmp_path) == steps, (moment, result.stderr)
    assert not (tmp_path / "final.npz").exists()

    result = train(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "is not used" not in result.stderr
    # Nothing is left of the interrupted saves and deletions.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "step_00000020",
        "step_00000020.json",
        "step_00000024",
        "step_00000024.json",
    }

    expected, found = np.load(undisturbed / "final.npz"), np.load(tmp_path / "final.npz")
    assert expected.files == found.files
    for name in expected.files:
        assert expected[name].tobytes() == found[name].tobytes(), name
    lines = lines_without_times(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert lines == lines_without_times(undisturbed)
    assert [line["step"] for line in lines if "evaluation/norm" in line] == [6, 12, 18, 24]
    assert lines[-1]["learning/loss"] < lines[0]["learning/loss"]
