"""`onereward finetune`: what a run leaves, what is refused, and the shapes of the official model's step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from onereward_jax.cli import main as cli
from onereward_jax.config.load import load_config
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import Requests
from onereward_jax.fill.diffusers_io import load_transformer
from onereward_jax.flow.losses import fill_loss
from onereward_jax.flow.schedule import Shift
from onereward_jax.models.lora import LoRA, factors
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state, supervised_step
from onereward_jax.weights.load import load_component, param_shapes
from onereward_jax.weights.names import flux, vae
from tests.support.compiler import xla_flags

WEIGHTS, LORA = "diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
CONFIG = ROOT / "configs" / "finetune.py"


def picture(path, size=(40, 40)):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directory of tests/support/finetuning_runs.py, and what was said."""
    root = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
    command = [sys.executable, "-m", "tests.support.finetuning_runs", str(root)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return root, run.stderr


def lines_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def test_a_run_trains_the_transformer_and_measures_held_out_pictures(runs):
    root, said = runs
    assert "torn.png is a damaged image" in said
    before, after = (load_file(root / folder / "transformer" / WEIGHTS) for folder in ("base", "whole/export"))
    assert before.keys() == after.keys()
    assert all(0 < np.abs(after[name] - before[name]).max() < 0.01 for name in before)
    report = json.loads((root / "whole" / "requests.json").read_text())
    assert (report["requests"], report["held_out"]) == (6, ["0.png", "1.png"])  # one of each size
    assert sorted(report["sizes"]) == ["24x40", "40x24"]
    first, last = lines_of(root / "whole")
    assert (first["step"], last["step"]) == (2, 4)
    assert first["held_out/base_loss"] == last["held_out/base_loss"]
    assert len({line["held_out/loss"] for line in (first, last)} | {first["held_out/base_loss"]}) == 3


def test_a_stopped_run_goes_on_to_the_same_end_with_the_same_pictures_only(runs):
    root, said = runs
    assert "going on from step 2 of 4" in said
    assert lines_of(root / "stopped") == lines_of(root / "whole")
    one, other = ((root / name / "export" / "transformer" / WEIGHTS).read_bytes() for name in ("stopped", "whole"))
    assert one == other
    assert "stopped began with other images, masks or prompts: put them back" in said


def test_a_whole_model_is_exported_as_its_average_or_as_it_is(runs, tmp_path, capsys):
    root, _ = runs
    found = {}
    for what in ("ema", "policy"):  # the former if nothing is asked for
        asked = ["--what", what] if what == "policy" else []
        assert cli.main(["export", "--workdir", str(root / "whole"), "--out", str(tmp_path / what), *asked]) == 0
        assert f"{what} of step 4" in capsys.readouterr().out
        found[what] = (tmp_path / what / "transformer" / WEIGHTS).read_bytes()
        averaged = "averaged" in (tmp_path / what / "README.md").read_text()
        assert averaged == (what == "ema")
        assert (tmp_path / what / "vae" / WEIGHTS).read_bytes() == (root / "base" / "vae" / WEIGHTS).read_bytes()
    assert found["ema"] == (root / "whole" / "export" / "transformer" / WEIGHTS).read_bytes()
    assert found["policy"] != found["ema"]


def test_an_adapter_its_samples_and_every_export(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("onereward_jax.runs.export.check_comfyui", lambda module, base: None)  # which is for FLUX.1
    root, _ = runs
    run = root / "adapter"
    assert sorted(path.name for path in (run / "export").iterdir()) == [".onereward.json", LORA]
    (sheet,) = (run / "samples").iterdir()
    assert sheet.name == "step_00000002.png"
    assert np.asarray(Image.open(sheet)).shape[1] > 3 * 128
    own = load_component(root / "base" / "transformer", "transformer")[1]
    changes = [float(np.abs(b).max()) for _, b in factors(load_transformer(run / "export", own)).values()]
    assert len(changes) == 2  # of both kinds of blocks
    assert min(changes) > 0

    def export(*arguments):
        return cli.main(["export", "--workdir", str(run), *arguments])

    for form in ("lora", "comfyui"):  # an adapter merged for diffusers: tests/runs/test_chain.py
        assert export("--out", str(tmp_path / form), "--format", form) == 0
        assert "policy of step 2" in capsys.readouterr().out
        card = (tmp_path / form / "README.md").read_text()
        assert str(root) not in card
        for words in ("\nbase, fine-tuned", "licence", "on 8 pictures: an adapter of rank 2", sheet.name):
            assert words in card, words
        assert (tmp_path / form / sheet.name).is_file()
    exported, of_training = load_file(tmp_path / "lora" / LORA), load_file(run / "export" / LORA)
    assert exported.keys() == of_training.keys()
    assert all((exported[name] == of_training[name]).all() for name in exported)
    workflow = json.loads((tmp_path / "comfyui" / "workflow.json").read_text())
    assert workflow["sampled"]["inputs"]["cfg"] == 1.0
    assert export("--out", str(tmp_path / "x"), "--what", "ema") == 2
    assert "keeps no average" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no path", "data.source is empty: give a folder of images"),
        ("no folder", "there are no requests at"),
        ("no picture", "holds no requests"),
        ("mask of another size", "1 of 1 requests in"),
        ("no model", "there is no directory nowhere"),
        ("no Fill model", "has in_channels 64, but it is 384 for a Fill model"),
        ("wrong value", "data.max_hole must be a number above 0 and below 1, not 1.0"),
        ("wrong step", "data.resolution 64 is no multiple of data.bucket_step 24"),
        ("wrong name", "did you mean finetune.sample_steps?"),
    ],
)
def test_what_can_not_be_is_one_sentence_and_nothing_is_made(case, words, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    if case not in ("no picture", "no folder"):
        picture(folder / "a.png")
    (folder / "a.txt").write_text("a thing")
    if case == "mask of another size":
        Image.new("L", (8, 8), 255).save(folder / "a_mask.png")
    given = {"data.source": folder, "model.base": ROOT / "miniature" / "base"}
    given |= {
        "no path": {"data.source": ""},
        "no folder": {"data.source": tmp_path / "none"},
        "no model": {"model.base": "nowhere"},
        "no Fill model": {"model.base": tmp_path / "base"},
        "wrong value": {"data.max_hole": 1.0},
        "wrong step": {"data.bucket_step": 24},
        "wrong name": {"finetune.sample_step": 3},
    }.get(case, {})
    if case == "no Fill model":
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            (tmp_path / "base" / part).mkdir(parents=True)
            config = json.loads((GOLDENS / f"flux.1-fill-dev.{part}.json").read_text())["config"]
            config |= {"in_channels": 64} if part == "transformer" else {}
            (tmp_path / "base" / part / "config.json").write_text(json.dumps(config))
    overrides = [f"--config.{name}={value}" for name, value in given.items()]
    workdir = tmp_path / "run"
    config = str(ROOT / "configs" / "finetune.py")
    assert cli.main(["finetune", "--config", config, *overrides, "--workdir", str(workdir)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onereward: ")]
    assert len(said) == 1
    assert words in said[0]
    assert not workdir.exists()


def test_a_step_of_the_official_model():
    """Nothing is computed: shapes and dtypes of the whole step."""
    config = load_config(f"{CONFIG}:flux_fill")
    official = lambda part: json.loads((GOLDENS / f"flux.1-fill-dev.{part}.json").read_text())["config"]
    fields = {"dtype": jnp.bfloat16, "remat": config.model.remat}
    transformer = flux.module_from_config(official("transformer"), **fields)
    # Narrow, of the official factor and channels: nothing is learnt in it.
    narrow = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    autoencoder = vae.module_from_config(official("vae") | narrow, dtype=jnp.bfloat16)

    def params_of(module, kind):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), param_shapes(module, kind))

    adapters = LoRA(**config.lora)
    frozen = {"transformer": params_of(transformer, "transformer"), "vae": params_of(autoencoder, "vae")}
    trained = {"transformer": jax.eval_shape(lambda: adapters.init(frozen["transformer"], jax.random.key(0)))}
    loss = fill_loss(transformer, autoencoder, prompt_dropout=0.1, guidance_scale=1.0, shift=Shift())
    optimizer = make_optimizer(**config.optimizer)
    step = supervised_step(adapters.loss(loss), optimizer, config.finetune.ema_decay)
    state = jax.eval_shape(lambda params: create_state(params, optimizer, 0), trained)
    pictures = [Request(str(n), Path("a"), None, "a", ("image_fill",), size=(3000, 4000)) for n in range(8)]
    ((height, width),) = Requests(config, pictures).sizes
    assert (height, width) == (896, 1152)
    size, length = config.train.batch_size, config.max_sequence_length
    shape = lambda *sides, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((size, *sides), dtype)
    batch = {"index": shape(dtype=jnp.int32), "image": shape(height, width, 3, dtype=jnp.uint8)}
    batch["mask"] = shape(height, width, dtype=jnp.uint8)
    for name in ("", "negative_"):
        batch |= {f"{name}prompt_embeds": shape(length, 4096), f"{name}pooled": shape(768)}
    after, metrics = jax.eval_shape(step, state, frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["learning/loss"].shape == ()


def test_pictures_of_two_aspects_are_shown_at_two_sizes():
    config = load_config(f"{CONFIG}:tiny", {"train.batch_size": 2})
    sizes = [(64, 64), (100, 90), (60, 100), (30, 50), (90, 60)]
    pictures = [Request(str(n), Path("a"), None, "a", ("image_fill",), size=size) for n, size in enumerate(sizes)]
    samples = Requests(config, pictures)
    assert samples.sizes == ((48, 80), (64, 64))
    shown = [samples.size_of(picture) for picture in pictures]
    assert shown == [(64, 64), (64, 64), (48, 80), (48, 80), (64, 64)]
