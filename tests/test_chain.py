"""The whole chain of commands, every model smaller than the miniature and two steps each: what each leaves behind."""

import html.parser
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax import cli
from onereward_jax.tasks import CELLS, DIMENSIONS, TASKS

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.py"
SCENES = 2  # a task, in every evaluation
STEPS = {"train.num_steps": 2, "train.log_every": 1, "optimizer.warmup_steps": 1}
VAE = {"vae.model.block_out_channels": (8, 8, 8), "vae.model.latent_channels": 4, "vae.model.norm_num_groups": 4}
BASE = {
    "base.scenes_per_task": 16,
    "base.transformer.in_channels": 16 + 16 + 64,
    "base.transformer.out_channels": 16,
    "base.transformer.num_layers": 1,
    "base.transformer.num_single_layers": 1,
    "base.transformer.attention_head_dim": 16,
    "base.transformer.num_attention_heads": 2,
    "base.transformer.joint_attention_dim": 16,
    "base.transformer.pooled_projection_dim": 16,
    "base.transformer.axes_dims_rope": (4, 6, 6),
    "base.text_encoder.hidden_size": 16,
    "base.text_encoder.intermediate_size": 32,
    "base.text_encoder.num_hidden_layers": 1,
    "base.text_encoder.num_attention_heads": 2,
    "base.text_encoder_2.d_model": 16,
    "base.text_encoder_2.d_kv": 8,
    "base.text_encoder_2.d_ff": 32,
    "base.text_encoder_2.num_layers": 1,
    "base.text_encoder_2.num_heads": 2,
}
JUDGE = {
    "judge.text_config.hidden_size": 32,
    "judge.text_config.intermediate_size": 64,
    "judge.text_config.num_hidden_layers": 1,
    "judge.text_config.num_attention_heads": 2,
    "judge.text_config.num_key_value_heads": 1,
    "judge.text_config.rope_parameters.mrope_section": (2, 3, 3),
    "judge.vision_config.depth": 1,
    "judge.vision_config.hidden_size": 32,
    "judge.vision_config.intermediate_size": 64,
    "judge.vision_config.num_heads": 2,
    "judge.vision_config.out_hidden_size": 32,
    "judge.vision_config.fullatt_block_indexes": (0,),
}
# No margin: pictures of untrained models differ little, and every cell shall have pairs.
PREFERENCES = {
    "preferences.planted_scenes_per_task": 2,
    "preferences.scenes_per_task": 2,
    "preferences.part_size": 2,
    "preferences.min_steps": 2,
    "preferences.max_steps": 3,
    "preferences.annotator_margin": 0.0,
}
FEEDBACK = {
    "rl.num_steps": 2,
    "rl.first_index": 0,
    "rl.last_index": 1,
    "evaluation.scenes_per_task": SCENES,
    "evaluation.judge_scenes_per_task": 4,
    "evaluation.num_steps": 2,
    "evaluation.batch_size": 4,
    "evaluation.pictures_per_task": 1,
    "evaluation.every": 1,
    "evaluation.watched_scenes": 1,
    "ascent.scenes_per_task": SCENES,
    "ascent.num_steps": 5,
    "ascent.step_size": 0.1,
    "preferences.part_size": 2,
    "preferences.min_steps": 2,
    "preferences.max_steps": 3,
    "preferences.annotator_margin": 0.0,
}


class Chain(NamedTuple):
    """Directories that the commands wrote to."""

    root: Path
    models: Path
    run: Path


def onereward(command: str, variant: str, workdir: Path, overrides: dict) -> None:
    """Runs a command with a configuration; it must succeed."""
    arguments = [f"--config.{name}={value}" for name, value in overrides.items()]
    assert cli.main([command, "--config", f"{CONFIG}:{variant}", *arguments, "--workdir", str(workdir)]) == 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    models, run = root / "models", root / "run"
    base, data = {"preferences.base": models / "base"}, {"judge.data": f"({str(root / 'preferences')!r},)"}
    onereward("train-vae", "vae", root / "vae", STEPS | VAE)
    onereward("train-base", "base", root / "base", STEPS | BASE | {"base.vae": root / "vae" / "export" / "vae"})
    assert cli.main(["package", "--base", str(root / "base" / "export"), "--out", str(models)]) == 0
    tuned = STEPS | {"base.start": models / "base", "base.train_text_encoders": "false", "base.scenes_per_task": 16}
    onereward("train-base", "base", root / "tuned_base", tuned)
    feedback = STEPS | FEEDBACK | {"model.base": models / "base", "model.judge": models / "judge"}
    onereward("gates", "dynamic", root / "gates", feedback)
    onereward("make-preferences", "judge", root / "preferences", JUDGE | PREFERENCES | base)
    onereward("train-judge", "judge", root / "first_judge", STEPS | JUDGE | PREFERENCES | base | data)
    second = {"judge.start": root / "first_judge" / "export", "judge.max_shift": 2, "judge.flips": True}
    second |= {"judge.retone": True, "judge.adversarial_radius": 0.02}
    second |= {"judge.planted_share": 0.5, "judge.questions_per_pair": 1}
    onereward("train-judge", "judge", root / "judge", STEPS | PREFERENCES | base | data | second)
    assert cli.main(["package", "--judge", str(root / "judge" / "export"), "--out", str(models)]) == 0
    onereward("ascend", "dynamic", root / "ascent", feedback)
    onereward("train", "dynamic", run, feedback)
    onereward("evaluate", "dynamic", run, feedback)
    return Chain(root, models, run)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_training_leaves_its_steps(chain):
    for workdir in ("vae", "base", "judge", "run"):
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


def test_packaged_models_are_whole(chain):
    parts = {"transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert parts | {"model_index.json"} <= {path.name for path in (chain.models / "base").iterdir()}
    files = {"config.json", "model.safetensors", "tokenizer.json", "questions.json", "preprocessor_config.json"}
    assert files <= {path.name for path in (chain.models / "judge").iterdir()}
    judge = load_file(chain.models / "judge" / "model.safetensors")
    assert {str(array.dtype) for array in judge.values()} == {"bfloat16"}


def test_gates_measure_every_task(chain):
    assert (chain.root / "gates" / "base.png").read_bytes().startswith(b"\x89PNG")
    gates = json.loads((chain.root / "gates" / "gates.json").read_text())
    assert set(gates["autoencoder"]) == set(gates["base"]) == set(TASKS)
    for task in TASKS:
        assert all(0 <= share <= 1 for share in gates["base"][task]["truth"].values())
        best = gates["base"][task]["best_of_4"]
        assert best["n"] == SCENES
        assert best["good"] + best["same"] + best["bad"] == pytest.approx(1)


def test_the_judges_gradient_is_followed(chain):
    assert (chain.root / "ascent" / "ascent.png").read_bytes().startswith(b"\x89PNG")
    ascent = json.loads((chain.root / "ascent" / "ascent.json").read_text())
    assert set(ascent) == set(TASKS)
    for found in ascent.values():
        assert found["n"] == SCENES
        assert 0 < found["judge"]["before"] < 1
        assert found["judge"]["after"] != found["judge"]["before"]  # an untrained judge has no way up


def test_preferences_are_of_every_task(chain):
    lines = [line for path in (chain.root / "preferences" / "train").glob("*.jsonl") for line in lines_of(path)]
    assert {line["task"] for line in lines if line["preferences"]} == set(TASKS)
    assert len(lines) == 2 * SCENES * len(TASKS)


def test_the_second_judge_goes_on_from_the_first(chain):
    first, second = (load_file(chain.root / name / "export" / "model.safetensors") for name in ("first_judge", "judge"))
    assert {name: array.shape for name, array in first.items()} == {name: array.shape for name, array in second.items()}
    # Two steps at a small rate, averaged: far nearer to the first judge than to another start.
    distance = sum(float(np.square(second[name] - first[name]).sum()) for name in first)
    assert 0 < distance < 1e-3 * sum(float(np.square(array).sum()) for array in first.values())


def test_a_judge_is_measured_on_any_preferences(chain, capsys):
    out = chain.root / "accuracy.json"
    judges = ["--model", str(chain.models / "judge"), "--untuned", str(chain.root / "first_judge" / "export")]
    data = ["--data", str(chain.root / "preferences")]
    assert cli.main(["evaluate-judge", *judges, *data, "--source", "base", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    accuracy = json.loads(out.read_text())
    assert set(accuracy) == {"model", "untuned"}
    lines = [line for path in (chain.root / "preferences" / "train").glob("base*.jsonl") for line in lines_of(path)]
    for found in accuracy.values():
        assert found["overall"]["n"] == sum(len(line["preferences"]) for line in lines)
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
    for what in ("policy", "ema"):
        assert (chain.run / "export" / what / "diffusion_pytorch_model.safetensors").exists()


def test_the_truth_is_looked_at_while_training(chain):
    for line in lines_of(chain.run / "metrics.jsonl"):
        gains = {name: line[name] for name in line if name.startswith("evaluation/")}
        assert set(gains) == {f"evaluation/{task}/truth_gain" for task in TASKS}
        # Two updates at a rate of 1e-5 hardly change a picture.
        assert all(abs(gain) < 0.2 for gain in gains.values())


def test_training_moved_the_policy(chain):
    file = "diffusion_pytorch_model.safetensors"
    before = load_file(chain.models / "base" / "transformer" / file)
    policy = load_file(chain.run / "export" / "policy" / file)
    assert before.keys() == policy.keys()
    assert any((policy[name] != before[name].astype(policy[name].dtype)).any() for name in before)


def test_evaluation_has_what_is_promised(chain):
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
