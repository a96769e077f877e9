"""`benchmarks/alarms.py limits`: which runs it goes by. The runs themselves take hours."""

import json

import pytest

from benchmarks import alarms as benchmark
from onereward_jax.cli.exit_codes import guarded


@pytest.fixture
def workdir(tmp_path):
    """Three finished runs of each kind in the first half of the seeds, and one of the other half."""
    for kind in benchmark.KINDS:
        for seed in (0, 1, 2, 5):
            run = tmp_path / f"{kind}_{seed}"
            run.mkdir()
            (run / "config.json").write_text('{"train.num_steps": 60}')
            drift = 0.2 if kind == "provoked" else 0.001 * seed
            write(run, drift, 60)
    return tmp_path


def write(run, drift: float, last: int) -> None:
    lines = [
        {"step": step, "evaluation/gain": 0.1, "evaluation/image_fill/drift_gain": drift}
        for step in range(20, last + 1, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def limits(workdir, monkeypatch):
    monkeypatch.setattr("sys.argv", ["alarms", "limits", "--workdir", str(workdir)])
    return lambda: guarded(benchmark.main)


def test_a_run_under_way_sets_no_limit(workdir, limits, capsys):
    assert not limits()
    before = json.loads((workdir / "limits.json").read_text())["drift_gain"]
    assert before["runs"] == [3, 3]
    assert before["limit"] == pytest.approx(0.0515)
    assert "left out" not in capsys.readouterr().out
    write(workdir / "honest_1", 0.001, 40)
    (workdir / "limits.json").unlink()
    assert limits() == 2
    told = capsys.readouterr()
    assert "left out: 1 of 6 runs" in told.out
    assert "3 finished runs of each kind" in told.err
    assert "2 honest and 3 provoked" in told.err
    assert not (workdir / "limits.json").exists()
