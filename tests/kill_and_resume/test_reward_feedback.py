"""The real run (`onereward train`), killed and started again."""

import subprocess
from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy learns bfloat16)
import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax.cli import main as cli
from tests.support import tiny_fill, tiny_judge
from tests.support.hostile import LONG
from tests.support.killed_command import finish, kill_after, start, steps
from tests.support.multiprocess_run import Run

FILE = "diffusion_pytorch_model.safetensors"
STEPS = 8
OVERRIDES = {
    "evaluation.every": 0,
    "train.num_steps": STEPS,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "rl.num_steps": 2,
    "rl.first_index": 0,
    "rl.last_index": 1,
    "data.resolution": 32,
    "max_sequence_length": tiny_fill.T5_LENGTH,
    "question_length": 64,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Settings that name a small base model and a small judge."""
    root = tmp_path_factory.mktemp("models")
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base")
    tiny_judge.judge(depth=1, fullatt_block_indexes=(0,), num_hidden_layers=1).save_pretrained(root / "judge")
    return OVERRIDES | {"model.base": str(root / "base"), "model.judge": str(root / "judge")}


def begin(models, workdir: Path, tmp_path_factory) -> subprocess.Popen:
    """Algorithm 1, whose state has all the parts: that of Algorithm 2 lacks the reference."""
    return start("train", "fixed", models, workdir, tmp_path_factory.getbasetemp() / "compiled")


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory) -> Path:
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(begin(models, workdir, tmp_path_factory))
    return workdir


def test_killed_run_ends_where_the_undisturbed_one_does(models, whole, tmp_path_factory, capsys):
    killed = tmp_path_factory.mktemp("killed")
    said, step = kill_after(begin(models, killed, tmp_path_factory), killed, 2)
    assert "going on" not in said
    assert step < STEPS
    assert f"going on from step {step} of {STEPS}" in finish(begin(models, killed, tmp_path_factory))

    assert [record["step"] for record in steps(killed)] == list(range(1, STEPS + 1))
    assert steps(killed) == steps(whole)
    before = load_file(Path(models["model.base"]) / "transformer" / FILE)
    for name in ("policy", "ema"):
        exports = [workdir / "export" / name / FILE for workdir in (killed, whole)]
        assert exports[0].read_bytes() == exports[1].read_bytes()
        after = load_file(exports[0])
        assert after.keys() == before.keys()
        assert any((after[key] != before[key].astype(after[key].dtype)).any() for key in before)

    out = tmp_path_factory.mktemp("exported") / "adapter"
    assert cli.main(["export", "--workdir", str(whole), "--out", str(out), "--format", "lora"]) == 2
    assert "trained the whole transformer" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(not LONG, reason="each process compiles the update: in the long form")
def test_two_processes_take_the_steps_of_one(models, whole, tmp_path):
    """With what they do together besides: they look at the truth, and export."""
    watching = {"evaluation.every": STEPS, "evaluation.scenes_while_training": 2, "evaluation.num_steps": 2}
    words = [f"--config.{field}={value}" for field, value in (models | watching).items()]
    command = ["-m", "onereward_jax.cli.main", "train", "--config", "fixed", *words]
    with Run(*command, "--workdir", str(tmp_path / "two"), devices=2) as both:
        assert both.ended() == [0, 0], both.said
    assert f"step {STEPS}/{STEPS}" in both.said[0]
    assert f"step {STEPS}/{STEPS}" not in both.said[1]

    lines = steps(tmp_path / "two")
    watched = [name for name in lines[-1] if name.startswith("evaluation/")]
    assert len(watched) > 4
    assert all(np.isfinite(lines[-1].pop(name)) for name in watched)
    for found, expected in zip(lines, steps(whole), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    before = load_file(Path(models["model.base"]) / "transformer" / FILE)
    for name in ("policy", "ema"):
        one, two = (load_file(workdir / "export" / name / FILE) for workdir in (whole, tmp_path / "two"))
        # Of the base's bfloat16: what differs in the last digits of float32 is rounded to another value here and there.
        learnt = sum(np.count_nonzero(one[key] != before[key]) for key in one)
        apart = sum(np.count_nonzero(one[key] != two[key]) for key in one)
        assert apart < 1e-3 * learnt
