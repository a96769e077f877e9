"""One working directory is one run of one configuration."""

import json
from pathlib import Path

import pytest

from onereward_jax.config.load import load_config
from onereward_jax.config.schema import JudgeTraining, PolicyModels, RewardFeedback
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = """
from onereward_jax.config import schema

def get_config(variant="fixed"):
    config = schema.RewardFeedback.config_dict()
    config.algorithm = variant
    config.rl.last_index = 7
    config.rl.first_index = 6
    config.rl.num_steps = 8
    config.model.base = config.model.judge = ""
    return config
"""


@pytest.fixture
def config_file(tmp_path) -> str:
    path = tmp_path / "x.py"
    path.write_text(CONFIG)
    return str(path)


def test_workdir_of_another_configuration(config_file, tmp_path):
    workdir = tmp_path / "runs" / "a"
    claim_workdir(workdir, load_config(config_file))
    (workdir / "checkpoints" / "step_00000001").mkdir(parents=True)
    claim_workdir(workdir, load_config(config_file))
    claim_workdir(workdir, load_config(config_file, {"train.num_steps": 200}))
    assert '"train.num_steps": 200' in (workdir / "config.json").read_text()
    with pytest.raises(
        UserError, match=r"differing in algorithm \(fixed there, dynamic now\), seed \(0 there, 1 now\)"
    ):
        claim_workdir(workdir, load_config(f"{config_file}:dynamic", {"seed": 1}))
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"can't be read, it is no JSON .*: remove it if the run there"):
        claim_workdir(workdir, load_config(config_file))


def test_what_may_differ_when_a_run_goes_on(config_file, tmp_path):
    claim_workdir(tmp_path / "run", load_config(config_file))
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    claim_workdir(tmp_path / "run", load_config(config_file, {"train.num_steps": 3, "train.log_every": 2}))
    with pytest.raises(UserError, match=r"differing in rl\.num_steps \(8 there, 9 now\)"):
        claim_workdir(tmp_path / "run", load_config(config_file, {"rl.num_steps": 9, "train.num_steps": 3}))
    evaluated_otherwise = load_config(config_file, {"evaluation.num_steps": 4, "evaluation.weights": "ema"})
    with pytest.raises(UserError, match=r"differing in evaluation\.num_steps .*, evaluation\.weights"):
        claim_workdir(tmp_path / "run", evaluated_otherwise)
    claim_workdir(tmp_path / "run", evaluated_otherwise, free=RewardFeedback.MEASURING)
    assert '"evaluation.weights": "ema"' in (tmp_path / "run" / "config.json").read_text()


def test_other_weights_are_another_configuration(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "x.safetensors").write_bytes(bytes(5_000_000))
    config = RewardFeedback(model=PolicyModels(base=str(model), judge=""))
    claim_workdir(tmp_path / "run", config)
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    claim_workdir(tmp_path / "run", config)
    for place in (0, 2_600_000, 4_999_999):
        changed = bytearray(5_000_000)
        changed[place] = 1
        (model / "x.safetensors").write_bytes(changed)
        with pytest.raises(UserError, match=r"model\.base\.content"):
            claim_workdir(tmp_path / "run", config)


def test_a_workdir_where_nothing_was_made_is_free(config_file, tmp_path):
    claim_workdir(tmp_path, load_config(config_file, {"seed": 1}))  # beside the configuration's own file
    with pytest.raises(UserError, match="seed"):
        claim_workdir(tmp_path, load_config(config_file))
    claim_workdir(tmp_path / "run", load_config(config_file, {"seed": 1}))
    # What a run leaves that fails before its first step.
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "run" / "tensorboard").mkdir()
    (tmp_path / "run" / "tensorboard" / "events").write_text("x")
    claim_workdir(tmp_path / "run", load_config(config_file))
    assert '"seed": 0' in (tmp_path / "run" / "config.json").read_text()


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written .*choose another --workdir"):
        claim_workdir(tmp_path / "file" / "run", RewardFeedback())


NAMES = {"tiny:quick": "quick", "tiny:vae": "miniature/vae", "tiny:fifth_judge": "miniature/fifth_judge"}
GOLDEN = json.loads((ROOT / "tests" / "goldens" / "configs.json").read_text())


@pytest.mark.parametrize("spec", ["tiny:quick", "tiny:vae", "tiny:fifth_judge", "judge_7b:7b", "finetune:flux_fill"])
def test_a_run_of_an_earlier_release_is_resumed(spec, tmp_path, monkeypatch):
    """Its file has fields that its recipe never read, and lacks those that came later."""
    monkeypatch.chdir(ROOT)
    run, config = tmp_path / "run", load_config(NAMES.get(spec, spec))
    claim_workdir(run, config)
    written = json.loads((run / "config.json").read_text())
    contents = {name: value for name, value in written.items() if name.endswith(".content")}
    (run / "config.json").write_text(json.dumps(GOLDEN[spec] | contents))
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    claim_workdir(run, config)
    assert json.loads((run / "config.json").read_text()) == written
    (run / "config.json").write_text(json.dumps(GOLDEN[spec] | contents | {"optimizer.learning_rate": 3.0}))
    with pytest.raises(UserError, match=r"differing in optimizer.learning_rate \(3\.0 there"):
        claim_workdir(run, config)


def test_a_run_of_another_recipe_is_another_configuration(config_file, tmp_path):
    claim_workdir(tmp_path / "run", load_config(config_file))
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(UserError, match="a run of another configuration, differing in alarms"):
        claim_workdir(tmp_path / "run", JudgeTraining())


def test_a_run_of_an_earlier_release_may_lie_outside_todays_bounds(config_file, tmp_path):
    run = tmp_path / "run"
    claim_workdir(run, load_config(config_file))
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    values = json.loads((run / "config.json").read_text())
    old = {
        "lora.rank": 10**6,
        "seed": 2**40,
        "model.base": "x\ny" * 1000,
        "unheard\n.of": [1],
        "data.task_weights": None,
    }
    (run / "config.json").write_text(json.dumps(values | old))
    with pytest.raises(UserError, match="holds a run of another configuration, differing in ") as refused:
        claim_workdir(run, load_config(config_file))
    assert "lora.rank (1000000 there, 0 now)" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    for damaged in (b"\xff", b"[" * 100_000, b"[1]", b'{"a": NaN}', b""):
        (run / "config.json").write_bytes(damaged)
        with pytest.raises(UserError, match="remove it if the run there is of this configuration"):
            claim_workdir(run, load_config(config_file))
