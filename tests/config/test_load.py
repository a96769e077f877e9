"""From files and overrides to settings."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from onereward_jax.config import schema
from onereward_jax.config.find import find_config, find_model, list_configs
from onereward_jax.config.load import load_config, load_with_sources, renamed
from onereward_jax.config.option import flattened
from onereward_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = """
from onereward_jax.config import schema

def get_config(variant="fixed"):
    if variant not in ("fixed", "dynamic"):
        raise ValueError(f"there is no variant {variant!r}: choose fixed or dynamic")
    config = schema.RewardFeedback.config_dict()
    config.algorithm = variant
    config.train.num_steps = 100
    config.optimizer = {"learning_rate": 1e-3}
    return config
"""
FROM_NOTHING = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"judge": {"data": ("here",), "text_config": {"depth": 2, "heads": (1, 2)}}, "seed": 3})
"""


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "x.py"
    path.write_text(CONFIG)
    return str(path)


def test_overrides_take_the_type_of_the_field(file):
    texts = {
        "train.num_steps": "7",
        "optimizer.learning_rate": "1",
        "rl.matched_reference": "true",
        "model.attention_blocks": "(128, 256)",
        "model.judge_adapters": "a,b",
        "model.base": "12",
        "data.task_weights.image_fill": "1",
    }
    config, sources = load_with_sources(f"{file}:dynamic", texts)
    assert isinstance(config, schema.RewardFeedback)
    found = config.flat()
    assert {name: found[name] for name in texts} == {
        "train.num_steps": 7,
        "optimizer.learning_rate": 1.0,
        "rl.matched_reference": True,
        "model.attention_blocks": (128, 256),
        "model.judge_adapters": ("a", "b"),
        "model.base": "12",
        "data.task_weights.image_fill": 1.0,
    }
    assert (config.algorithm, config.optimizer.b2) == ("dynamic", schema.Optimizer().b2)
    assert {sources[name] for name in texts} == {"override"}
    assert sources["rl.num_steps"] == "default"
    assert load_with_sources(file)[1]["train.num_steps"] == "file"
    assert load_config(file, {"model.attention_blocks": "none"}).model.attention_blocks is None


def test_a_file_that_starts_from_nothing_has_the_defaults(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FROM_NOTHING)
    config = load_config(path, {"judge.text_config.heads": "(3,4)"})
    assert isinstance(config, schema.JudgeTraining)
    assert (config.seed, config.judge.data, config.train) == (3, ("here",), schema.JudgeTraining().train)
    assert config.judge.text_config == {"depth": 2, "heads": (3, 4)}
    with pytest.raises(UserError, match="takes 2 values"):
        load_config(path, {"judge.text_config.heads": "3"})
    with pytest.raises(UserError, match="a configuration of the training of a judge: choose one of fine-tuning"):
        load_config(path, recipes=[schema.Finetuning])
    path.write_text(FROM_NOTHING.replace('"data": (', '"dta": ('))
    with pytest.raises(UserError, match=r"has no field judge\.dta: did you mean judge\.data"):
        load_config(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train.num_stps", "3", "has no field train.num_stps: did you mean train.num_steps?"),
        ("rl.learning_rate", "3", "did you mean optimizer.learning_rate?"),
        ("train.num_steps.x", "3", "has no field train.num_steps.x"),
        ("zzz", "3", "has no field zzz"),
        ("", "3", "has no field"),
        ("ascent", "3", "ascent is a group of fields: set one of ascent.num_steps, ascent.scenes_per_task"),
        ("data.task_weights", "3", "is a group of fields: set one of data.task_weights.image_extend"),
        ("train.num_steps", "many", "train.num_steps must be a whole number from 1 to 1,000,000,000, not 'many'"),
        ("train.num_steps", True, "must be a whole number"),
        ("data.task_weights.image_fill", "often", "data.task_weights.image_fill must be a number from 1e-06"),
        ("model.base", 3, "must be a directory in diffusers layout"),
    ],
)
def test_wrong_overrides(file, name, value, words):
    with pytest.raises(UserError, match=words):
        load_config(file, {name: value})


def test_names_of_an_earlier_release_are_accepted_with_a_warning(file, tmp_path):
    with pytest.warns(UserWarning, match=r"rl\.reference_pool is now called rl\.reference_cache"):
        config, sources = load_with_sources(file, {"rl.reference_pool": "cache", "data.num_conditions": "8"})
    assert (config.rl.reference_cache, sources["rl.reference_cache"]) == ("cache", "override")
    path = tmp_path / "old.py"
    path.write_text(CONFIG.replace("    return", '    config.evaluation.what = "ema"\n    return'))
    with pytest.warns(UserWarning, match=r"old\.py: evaluation\.what is now called evaluation\.weights"):
        assert load_config(path).evaluation.weights == "ema"


def test_wrong_files(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist: did you mean .*x\.py"):
        load_config(file.replace("x.py", "xx.py"))
    with pytest.raises(UserError, match="no variant 'best': choose fixed or dynamic"):
        load_config(f"{file}:best")
    for text, words in {
        "def get_config(:": "line 1",
        "x = 1": r"defines no get_config\(\)",
        "def get_config(): return {}": "has no variants",
        "def get_config(v): return {'a': 1}[v]": "has no variant 'a1'",
        "def get_config(v): return {}": "returns no ConfigDict",
    }.items():
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            load_config(f"{path}:a1")
    with pytest.raises(UserError, match=r"broken\.py needs a variant: give it as .*broken\.py:VARIANT"):
        load_config(path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match="is not a Python file"):
        load_config(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"defines no get_config\(\)"),
        ("get_config = 5", r"defines no get_config\(\)"),
        ("def get_config(:", r"broken\.py, line 1: invalid syntax"),
        ("\nx = 1 / 0", r"broken\.py, line 2: ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", r"broken\.py, line 1: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit('a\\nb')", r"broken\.py, line 2: SystemExit: a b$"),
        ("def get_config():\n    raise KeyError('x')", r"broken\.py, line 2: KeyError: 'x'"),
        ("def get_config(): return get_config()", r"broken\.py, line 1: RecursionError"),
        ("def get_config(): return 3", "returns no ConfigDict"),
        ("x = " + "(" * 5000, r"broken\.py, line 1: too many nested parentheses"),
        (
            "from ml_collections import ConfigDict, config_dict as c\n"
            "def get_config(): return ConfigDict({'rl': {'num_steps': c.required_placeholder(int)}})",
            r"broken\.py: RequiredValueError",
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 10**5000})",
            "seed must be",
        ),
    ],
)
def test_files_that_are_broken_programs(tmp_path, text, words):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_programs(tmp_path):
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"binary\.py"):
        load_config(tmp_path / "binary.py")
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(UserError, match=r"pipe\.py is a pipe or a device and not a file"):
        load_config(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(IsADirectoryError):
        load_config(tmp_path / "folder.py")
    with pytest.raises(UserError, match="the configuration has no name"):
        load_config("")


def test_shapes_of_models_are_set_key_by_key():
    """Rounds of preferences and levels of an autoencoder may be any number; axes of rope stay three."""
    judge = load_config("miniature/judge", {"judge.vision_config.fullatt_block_indexes": "()"}).judge
    assert judge.vision_config["fullatt_block_indexes"] == ()
    vae = "miniature/vae"
    assert load_config(vae, {"vae.model.block_out_channels": "8,8"}).vae.model["block_out_channels"] == (8, 8)
    with pytest.raises(UserError, match=r"block_out_channels\[1\] must be a whole number"):
        load_config(vae, {"vae.model.block_out_channels": "8,x"})
    with pytest.raises(UserError, match="takes 3 values"):
        load_config("miniature/base", {"base.transformer.axes_dims_rope": "8,8"})


def test_names_alone_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("flux_fill:fixed_512") == (ROOT / "configs" / "flux_fill.py", "fixed_512")
    assert find_model("miniature/base") == ROOT / "miniature" / "base"
    assert find_model("some/where") == Path("some/where")
    assert "flux_fill" in list_configs()
    (tmp_path / "miniature" / "base").mkdir(parents=True)
    assert find_model("miniature/base") == Path("miniature/base")
    with pytest.raises(FileNotFoundError, match="flux_fil does not exist: did you mean flux_fill"):
        find_config("flux_fil")


GOLDEN: dict[str, dict] = json.loads((ROOT / "tests" / "goldens" / "configs.json").read_text())


@pytest.mark.parametrize("spec", GOLDEN)
def test_values_are_those_of_earlier_files(spec):
    """Of every field that the recipe reads; those that came later have the defaults."""
    old = f"{ROOT}/configs/{spec.replace(':', '.py:')}"
    with pytest.warns(UserWarning, match="is now the configuration") if spec.startswith("tiny:") else nullcontext():
        config = load_config(old)
    found = json.loads(json.dumps(config.flat()))
    were = {renamed().get(name, name): value for name, value in GOLDEN[spec].items()}
    assert found.items() >= {name: value for name, value in were.items() if name in found}.items()
    defaults = flattened(type(config)().to_dict())
    assert all(found[name] == json.loads(json.dumps(defaults[name])) for name in found.keys() - were.keys())


def test_what_refers_to_a_field_follows_its_override(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from onereward_jax.config import schema\n"
        "def get_config():\n"
        "    config = schema.RewardFeedback.config_dict()\n"
        "    config.rate = 1e-3\n"
        "    config.optimizer.learning_rate = config.get_ref('rate')\n"
        "    config.optimizer.decay_steps = config.train.get_ref('num_steps')\n"
        "    return config\n"
    )
    config = load_config(path, {"train.num_steps": "400", "rate": "1e-4"})
    assert (config.train.num_steps, config.optimizer.decay_steps) == (400, 400)
    assert config.optimizer.learning_rate == 1e-4


def test_a_file_of_two_recipes_serves_both(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'rl': {'threshold': 0.8}, 'judge': {'max_shift': 2}, 'seed': 3})\n"
    )
    with pytest.warns(UserWarning, match="judge is no group"):
        assert load_config(path, recipes=[schema.RewardFeedback]).rl.threshold == 0.8
    with pytest.warns(UserWarning, match="rl is no group"):
        assert load_config(path, recipes=[schema.JudgeTraining]).judge.max_shift == 2
