"""The real run (`onereward train`, packaged miniature), killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy learns bfloat16)
from safetensors.numpy import load_file

from onereward_jax import cli

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
OVERRIDES = {
    "evaluation.every": 0,
    "train.num_steps": STEPS,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "rl.num_steps": 2,
    "rl.first_index": 0,
    "rl.last_index": 1,
}


def start(name: str, variant: str, overrides: dict, workdir: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "onereward_jax.cli", name, "--config", f"configs/tiny.py:{variant}"]
    command += [f"--config.{field}={value}" for field, value in overrides.items()]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen([*command, "--workdir", str(workdir)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> str:
    """What it said on stderr."""
    errors = process.communicate(timeout=500)[1].decode()
    assert process.returncode == 0, errors[-2000:]
    return errors


def kill_after(process: subprocess.Popen, workdir: Path, step: int) -> tuple[str, int]:
    """Kills it as soon as the checkpoint of `step` is whole: what it had said on stderr, and the newest whole one."""
    checkpoints = workdir / "checkpoints"  # a manifest is written last
    deadline = time.time() + 500
    while not (checkpoints / f"step_{step:08d}.json").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, errors[-2000:]
    return errors, max(int(path.stem.removeprefix("step_")) for path in checkpoints.glob("step_*.json"))


def steps(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # being written
            break
    return [{name: value for name, value in record.items() if not name.startswith("perf/")} for record in records]


def test_killed_run_ends_where_the_undisturbed_one_does(tmp_path_factory, capsys):
    """Algorithm 1, whose state has all the parts: that of Algorithm 2 lacks the reference."""
    cache = tmp_path_factory.getbasetemp() / "compiled"
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    begin = lambda workdir: start("train", "fixed", OVERRIDES, workdir, cache)  # noqa: E731
    finish(begin(whole))

    said, step = kill_after(begin(killed), killed, 2)
    assert "going on" not in said
    assert step < STEPS
    assert f"going on from step {step} of {STEPS}" in finish(begin(killed))

    assert [record["step"] for record in steps(killed)] == list(range(1, STEPS + 1))
    assert steps(killed) == steps(whole)
    file = "diffusion_pytorch_model.safetensors"
    before = load_file(ROOT / "miniature" / "base" / "transformer" / file)
    for name in ("policy", "ema"):
        exports = [workdir / "export" / name / file for workdir in (killed, whole)]
        assert exports[0].read_bytes() == exports[1].read_bytes()
        after = load_file(exports[0])
        assert after.keys() == before.keys()
        assert any((after[key] != before[key].astype(after[key].dtype)).any() for key in before)

    out = tmp_path_factory.mktemp("exported") / "adapter"
    assert cli.main(["export", "--workdir", str(whole), "--out", str(out), "--format", "lora"]) == 2
    assert "trained the whole transformer" in capsys.readouterr().err
    assert not out.exists()
