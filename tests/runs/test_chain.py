"""What each command of the chain leaves behind, see tests/support/chain.py."""

import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401 (numpy learns bfloat16)
import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax import tree
from onereward_jax.cli import main as cli
from onereward_jax.fill.diffusers_io import load_transformer
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.judge.judge import Judge
from onereward_jax.models import lora
from onereward_jax.tasks import CELLS, DIMENSIONS, TASKS
from onereward_jax.weights.load import load_component
from onereward_jax.weights.peft_adapters import load_adapters
from tests.support.chain import SCENES
from tests.support.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]


class Chain(NamedTuple):
    """Directories that the commands wrote to."""

    root: Path
    models: Path
    run: Path


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    warnings = ("error", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::RuntimeWarning")
    command = [sys.executable, *(f"-W{option}" for option in warnings), "-m", "tests.support.chain", str(root)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags(1)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return Chain(root, root / "models", root / "run")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_training_leaves_its_steps(chain):
    for workdir in ("vae", "base", "judge", "run", "judge_adapter"):
        lines = lines_of(chain.root / workdir / "metrics.jsonl")
        assert [line["step"] for line in lines] == [1, 2], workdir
        assert all({"learning/loss", "learning/grad_norm", "perf/step_time_seconds"} <= line.keys() for line in lines)
        assert list((chain.root / workdir / "tensorboard").iterdir()), workdir
        assert list((chain.root / workdir / "checkpoints").iterdir()), workdir


def test_a_fill_model_is_tuned_further(chain):
    """The transformer moves a little; text encoders and autoencoder stay what they were."""
    start, tuned = chain.models / "base", chain.root / "tuned_base" / "export"
    for path in sorted(start.rglob("*.safetensors")):
        before, after = load_file(path), load_file(tuned / path.relative_to(start))
        change = max(float(np.abs(after[name] - before[name].astype(np.float32)).max()) for name in before)
        assert (0 < change < 0.01) if path.parent.name == "transformer" else change == 0, path


@pytest.mark.parametrize("directory", ["run/export/policy", "run/export/ema"])
def test_an_adapter_is_exported_alone_and_read_as_a_policy(chain, directory):
    names = sorted(path.name for path in (chain.root / directory).iterdir())
    assert names == [".onereward.json", "pytorch_lora_weights.safetensors"]
    own = FillPipeline.from_pretrained(chain.models / "base").params["transformer"]
    adapted = load_transformer(chain.root / directory, own)
    assert set(tree.flatten(adapted)) > set(tree.flatten(own))
    changes = [float(np.abs(b).max()) for _, b in lora.factors(adapted).values()]
    assert max(changes) > 0


def test_a_run_of_an_adapter_is_exported_in_every_form(chain, tmp_path):
    def export(form):
        return cli.main(["export", "--workdir", str(chain.run), "--out", str(tmp_path / form), "--format", form])

    assert [export(form) for form in ("lora", "diffusers", "comfyui")] == [0, 0, 2]  # ComfyUI opens FLUX.1 only
    trained = chain.run / "export" / "policy"
    file = "pytorch_lora_weights.safetensors"
    exported, of_training = load_file(tmp_path / "lora" / file), load_file(trained / file)
    assert exported.keys() == of_training.keys()
    assert all((exported[name] == of_training[name]).all() for name in exported)
    base = load_component(chain.models / "base" / "transformer", "transformer")[1]
    merged = lora.merge(base, load_adapters("transformer", base, [(trained, 1.0)]))
    found = load_component(tmp_path / "diffusers" / "transformer", "transformer")[1]
    for (path, expected), given in zip(tree.flatten(merged).items(), tree.flatten(found).values(), strict=True):
        # In the base model's bfloat16.
        np.testing.assert_allclose(given, np.asarray(expected), rtol=2**-7, atol=1e-6, err_msg=path)
    assert "load_lora_weights" in (tmp_path / "lora" / "README.md").read_text()


def test_an_adapter_of_the_judge_is_exported_alone(chain):
    names = {path.name for path in (chain.root / "judge_adapter" / "export").iterdir()}
    assert names == {".onereward.json", "adapter_model.safetensors", "adapter_config.json"}
    adapted = Judge.from_pretrained(chain.models / "judge", lora=chain.root / "judge_adapter" / "export")
    assert min(float(np.abs(b).max()) for _, b in lora.factors(adapted.params).values()) > 0


def test_packaged_models_are_whole(chain):
    parts = {"transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert parts | {"model_index.json"} <= {path.name for path in (chain.models / "base").iterdir()}
    files = {"config.json", "model.safetensors", "tokenizer.json", "questions.json", "preprocessor_config.json"}
    assert files <= {path.name for path in (chain.models / "judge").iterdir()}
    judge = load_file(chain.models / "judge" / "model.safetensors")
    assert {str(array.dtype) for array in judge.values()} == {"bfloat16"}


def test_sanity_checks_cover_every_task(chain):
    assert (chain.root / "sanity_checks" / "base.png").read_bytes().startswith(b"\x89PNG")
    checks = json.loads((chain.root / "sanity_checks" / "sanity_checks.json").read_text())
    assert set(checks["autoencoder"]) == set(checks["base"]) == set(TASKS)
    for task in TASKS:
        assert all(0 <= share <= 1 for share in checks["base"][task]["truth"].values())
        best = checks["base"][task]["best_of_4"]
        assert best["n"] == SCENES
        assert best["good"] + best["same"] + best["bad"] == pytest.approx(1)


def test_reward_ascent_follows_the_judges_gradient(chain):
    assert (chain.root / "reward_ascent" / "reward_ascent.png").read_bytes().startswith(b"\x89PNG")
    ascent = json.loads((chain.root / "reward_ascent" / "reward_ascent.json").read_text())
    assert set(ascent) == set(TASKS)
    for found in ascent.values():
        assert found["n"] == SCENES
        assert 0 < found["judge"]["before"] < 1
        assert found["judge"]["after"] != found["judge"]["before"]  # an untrained judge has no way up


def test_every_task_has_preferences(chain):
    lines = [line for path in (chain.root / "preferences" / "train").glob("*.jsonl") for line in lines_of(path)]
    assert {line["task"] for line in lines if line["pairs"]} == set(TASKS)
    assert len(lines) == 2 * SCENES * len(TASKS)


def test_the_second_judge_starts_from_the_first(chain):
    first, second = (load_file(chain.root / name / "export" / "model.safetensors") for name in ("first_judge", "judge"))
    assert {name: array.shape for name, array in first.items()} == {name: array.shape for name, array in second.items()}
    # Two steps at a small rate, averaged: far nearer to the first judge than to another start.
    distance = sum(float(np.square(second[name] - first[name]).sum()) for name in first)
    assert 0 < distance < 1e-3 * sum(float(np.square(array).sum()) for array in first.values())
    assert any((second[name] != first[name]).any() for name in first if name.startswith("visual"))


def test_a_judge_is_measured_on_any_preferences(chain, capsys):
    out = chain.root / "accuracy.json"
    judges = ["--model", str(chain.models / "judge"), "--untuned", str(chain.root / "first_judge" / "export")]
    data = ["--data", str(chain.root / "preferences")]
    assert cli.main(["evaluate-judge", *judges, *data, "--source", "base", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    accuracy = json.loads(out.read_text())
    assert set(accuracy.pop("differences")) == {"untuned"}
    assert set(accuracy) == {"model", "untuned"}
    lines = [
        line
        for path in (chain.root / "preferences" / "train").glob("preferences-base*.jsonl")
        for line in lines_of(path)
    ]
    for found in accuracy.values():
        assert found["overall"]["n"] == sum(len(line["pairs"]) for line in lines)
        assert 0 <= found["overall"]["accuracy"] <= 1
        assert all(dimension in printed for cells in found["cells"].values() for dimension in cells)
    assert cli.main(["evaluate-judge", "--model", str(chain.models / "judge"), "--data", str(chain.run)]) == 2
    assert "make-preferences" in capsys.readouterr().err


def test_training_reports_the_rewards_of_its_cells(chain):
    lines = lines_of(chain.run / "metrics.jsonl")
    cells = {f"rewards/{task}/{dimension}" for task, dimension in CELLS}
    for line in lines:
        rewards = {name for name in line if name.startswith("rewards/")} - {"rewards/mean"}
        assert rewards
        assert rewards <= cells
        assert all(0 <= line[name] <= 1 for name in rewards)
    # 16 samples of tasks drawn at random: not each of the four need be there.
    seen = {name.split("/")[1] for line in lines for name in line if name in cells}
    assert len(seen) >= 3
    assert seen <= set(TASKS)


def test_ground_truth_is_evaluated_during_training(chain):
    for line in lines_of(chain.run / "metrics.jsonl"):
        gains = {name: line[name] for name in line if name.startswith("evaluation/")}
        # Two updates of an adapter that starts at nothing hardly change a picture.
        assert all(abs(gains[f"evaluation/{task}/truth_gain"]) < 0.2 for task in TASKS)
        assert all(0 < gains[f"evaluation/{task}/preference"] < 1 for task in TASKS)


def test_the_evaluation_is_complete(chain):
    evaluation = json.loads((chain.run / "evaluation.json").read_text())
    assert evaluation["algorithm"] == "dynamic"
    accuracy, ceiling = evaluation["judge_accuracy"], evaluation["judge_ceiling"]
    assert {(task, dimension) for task, cells in accuracy.items() for dimension in cells} == set(CELLS)
    # A cell has no ceiling where all its pairs are alike in truth.
    assert ceiling
    assert {(task, dimension) for task, cells in ceiling.items() for dimension in cells} <= set(CELLS)
    for table in (accuracy, ceiling):
        assert all(0 <= share <= 1 for cells in table.values() for share in cells.values())
    assert set(evaluation["gsb"]) == set(TASKS)
    for shares in evaluation["gsb"].values():
        assert shares["n"] == SCENES
        assert shares["good"] + shares["same"] + shares["bad"] == pytest.approx(1)
        low, high = shares["ci95"]
        assert -1 <= low <= shares["good"] - shares["bad"] <= high <= 1
    assert evaluation["seconds"]["train"] > 0
    assert evaluation["seconds"]["evaluate"] > 0
    assert evaluation["peak_memory_gib"] > 0


class Page(html.parser.HTMLParser):
    """The words of a page, and every address that it loads or leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words = ""
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        loading = ("src", "href", "xlink:href", "srcset", "data", "poster")
        self.addresses += [value for name, value in attrs if name in loading and value]

    def handle_data(self, data):
        self.words += data


def test_report_shows_every_task_and_loads_nothing(chain):
    text = (chain.run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = page.words.lower()
    assert all(task.replace("_", " ") in words for task in TASKS)
    assert all(dimension.replace("_", " ") in words for dimension in DIMENSIONS)
    assert any(address.startswith("data:image/png") for address in page.addresses)
    assert [address for address in page.addresses if not address.startswith(("data:", "#"))] == []
    assert "@import" not in text
    assert "url(http" not in text
