"""The wheel by itself: installed outside the checkout, it has the configurations and the packaged miniature with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "onereward_jax", "configs", "miniature")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
# One update of as little as can be, without the images that a run makes beside it.
OVERRIDES = {
    "train.num_steps": 1,
    "train.batch_size": 2,
    "rl.num_steps": 2,
    "rl.first_index": 0,
    "rl.last_index": 1,
    "evaluation.every": 0,
}


@pytest.fixture(scope="module")
def onereward(tmp_path_factory):
    """Runs the installed command in a directory of its own; gives its stdout."""
    source, installed, elsewhere = (tmp_path_factory.mktemp(name) for name in ("source", "installed", "elsewhere"))
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir=dist", "."], cwd=source, check=True
    )
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", f"--target={installed}", str(wheel)], check=True)
    shutil.rmtree(source)
    # The libraries are this environment's; PYTHONPATH comes before an editable install in it.
    variables = {"PYTHONPATH": str(installed), "XLA_FLAGS": "--xla_llvm_disable_expensive_passes=true"}

    def run(*words: str) -> str:
        command = [sys.executable, str(installed / "bin" / "onereward"), *words]
        result = subprocess.run(command, cwd=elsewhere, env=os.environ | variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    run.directory = elsewhere
    return run


@pytest.fixture(scope="module")
def images(onereward):
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(onereward.directory / "image.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(onereward.directory / "mask.png")


def test_help(onereward):
    assert "train-judge" in onereward("--help")


def test_fill_then_judge(onereward, images):
    fill = ["--image=image.png", "--mask=mask.png", "--prompt=a small red circle", "--out=filled.png"]
    onereward("fill", "--model=miniature/base", *fill, "--num_inference_steps=2", "--max_sequence_length=16")
    with Image.open(onereward.directory / "filled.png") as filled:
        assert filled.size == (64, 64)
    pair = ["--first=filled.png", "--second=image.png", "--task=image_fill", "--dimension=structure"]
    answer = json.loads(onereward("judge", "--model=miniature/judge", *pair))
    assert 0 < answer["p_yes"]["structure"] < 1


def test_train(onereward):
    fields = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    onereward("train", "--config=quick", *fields, "--workdir=run")
    exported = onereward.directory / "run" / "export" / "policy"
    assert (exported / "diffusion_pytorch_model.safetensors").exists()
