"""A command of `onereward` in a process of its own, which is killed when a checkpoint is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]


def start(name: str, config: str, overrides: dict, workdir: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "onereward_jax.cli.main", name, "--config", config]
    command += [f"--config.{field}={value}" for field, value in overrides.items()]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
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
