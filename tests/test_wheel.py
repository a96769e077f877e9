"""The wheel by itself: installed outside the checkout, it has the configurations and the packaged miniature with it.

Its fills and its training are those of notebooks/kaggle_v5e8.ipynb, whose cells run there one after the other.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks/kaggle_v5e8.ipynb"
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
    variables = {"PYTHONPATH": str(installed), "XLA_FLAGS": xla_flags(1)}

    def python(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, *words], cwd=elsewhere, env=os.environ | variables, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    run = functools.partial(python, str(installed / "bin" / "onereward"))
    run.directory, run.python = elsewhere, python
    return run


def test_help(onereward):
    assert "train-judge" in onereward("--help")


def test_the_notebooks_cells_then_the_judge(onereward):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
    sources = {cell["id"]: "".join(cell["source"]) for cell in codes}
    tagged = {tag: cell["id"] for cell in codes for tag in cell["metadata"].get("tags", ())}

    assert sources.pop(tagged["install"]).startswith("%pip install")
    values: dict = {}
    exec(sources[tagged["parameters"]], values)
    assert set(values["settings"]) <= set(OVERRIDES)  # all that could be large is made small here
    sources[tagged["parameters"]] = f"workdir, settings = 'run', {OVERRIDES}"
    assert "'step': 1" in onereward.python("-c", "\n\n".join(sources.values()))
    assert (onereward.directory / "run/export/policy/diffusion_pytorch_model.safetensors").exists()
    for name in ("before", "after"):
        with Image.open(onereward.directory / f"{name}.png") as filled:
            assert filled.size == (64, 64)

    pair = ["--first=before.png", "--second=image.png", "--task=image_fill", "--dimension=structure"]
    answer = json.loads(onereward("judge", "--model=miniature/judge", *pair))
    assert 0 < answer["p_yes"]["structure"] < 1
