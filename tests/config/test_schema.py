"""Settings that exist are valid: a wrong value of every kind is one sentence that names the field."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.config import load, schema
from onereward_jax.config.describe import page
from onereward_jax.config.option import Settings, about, checked, is_mapping, kind_of, wanted
from onereward_jax.errors import UserError

ROOT = Path(__file__).parents[2]

WRONG = [
    # One of every kind of option.
    ("train", "algorithm=both", "algorithm must be one of fixed, dynamic, earned, not 'both'"),
    ("train", "seed=-1", "seed must be a whole number from 0 to 4,294,967,295, not -1"),
    ("train", "max_sequence_length=many", "max_sequence_length must be a whole number from 1 to 512, not 'many'"),
    ("train", "train.batch_size=1.5", "train.batch_size must be a whole number from 1 to 65,536, not '1.5'"),
    ("train", "data.loader_timeout=-1", "data.loader_timeout must be a number from 0 to 10,000,000, not -1.0"),
    ("train", "data.resolution=60", "data.resolution must be a multiple of 8 from 32 to 16,384, not 60"),
    ("train", "data.resolution=24", "data.resolution must be a multiple of 8 from 32 to 16,384, not 24"),
    ("train", "mesh.fsdp=0", "mesh.fsdp must be a whole number from 1 to 1,048,576, or -1 for the rest, not 0"),
    ("train", "model.dtype=float8", "model.dtype must be one of float32, bfloat16, float16, not 'float8'"),
    ("train", "model.judge_adapters=5", "model.judge_adapters must be a tuple of paths"),
    ("train", "model.attention_blocks=768,100", "model.attention_blocks must be two multiples of 128"),
    ("train", "model.attention_blocks=768", "model.attention_blocks must be two multiples of 128"),
    (
        "train",
        "optimizer.learning_rate=inf",
        "optimizer.learning_rate must be a number above 0 and at most 10, not",
    ),
    ("train", "optimizer.b2=1.5", "optimizer.b2 must be a number, 0 or more and below 1"),
    (
        "train",
        "train.offload=ema,all",
        "train.offload must be a tuple of parts of the state (opt_state, ema, reference)",
    ),
    ("train", "rl.threshold=nan", "rl.threshold must be a number above 0 and at most 1, not nan"),
    ("train", "rl.shared_prefix=maybe", "rl.shared_prefix must be true or false, not 'maybe'"),
    ("train", "lora.targets=to_(", "lora.targets must be a regular expression, not 'to_('"),
    ("train-judge", "judge.bad_share=2", "judge.bad_share must be a number from 0 to 1"),
    ("train-judge", "judge.task=fill", "judge.task must be empty, or one of image_fill, image_extend"),
    # What no arithmetic, memory or library bears.
    ("train", f"seed={2**63}", "seed must be a whole number from 0 to 4,294,967,295, not 9223372036854775808"),
    ("train", f"seed={2**32}", "seed must be a whole number from 0 to"),
    ("train", f"optimizer.warmup_steps={10**21}", "warmup_steps must be a whole number from 0 to 1,000,000,000, not 1"),
    ("train", "data.resolution=100000000", "data.resolution must be a multiple of 8 from 32 to 16,384, not 100000000"),
    ("train", "lora.rank=1000000000", "lora.rank must be a whole number from 0 to 4,096, not 1000000000"),
    ("train", f"train.batch_size={10**11}", "train.batch_size must be a whole number from 1 to 65,536, not 1000000000"),
    ("train", f"rl.num_steps={10**9}", "rl.num_steps must be a whole number from 1 to 10,000, not 1000000000"),
    ("train", f"seed={'9' * 5000}", "seed must be a whole number from 0 to 4,294,967,295, not '999"),
    ("train", "optimizer.clip_norm=1e308", "optimizer.clip_norm must be a number above 0 and at most 1e+30"),
    ("train", "model.attention_blocks=128,65664", "model.attention_blocks must be two multiples of 128 up to 65,536"),
    ("train", "lora.targets=a{99999999999999}", "lora.targets must be a regular expression"),
    (
        "train-judge",
        "judge.template=a{task.__class__}",
        "judge.template: a question template is a text with some of",
    ),
    (
        "train-judge",
        "judge.template_with_prompt={prompt",
        "judge.template_with_prompt: a question template is",
    ),
    ("train-judge", "judge.template={task:999999999}", "judge.template: a question template is a text with some"),
    (
        "train-judge",
        "judge.text_config.hidden_size=9999999999",
        "must be a whole number from -1,000,000,000",
    ),
    # Several settings together.
    (
        "train",
        "data.task_weights.image_fill=-1",
        "data.task_weights.image_fill must be a number from 1e-06 to",
    ),
    (
        "train",
        "data.task_weights.image_fill=nan",
        "data.task_weights.image_fill must be a number from 1e-06 to",
    ),
    ("train", "optimizer.decay_steps=5", "optimizer.decay_steps is 5, which is not beyond"),
    ("train", "rl.num_steps=4", "rl.last_index (7) must be below rl.num_steps (4)"),
    ("train", "rl.first_index=8", "rl.first_index (8) must be at most rl.last_index (7)"),
    ("train", "rl.accumulate=3", "rl.accumulate is 3, which does not divide train.batch_size 8"),
    ("train", "data.num_conditions=9", "data.num_conditions 9 is no multiple of train.batch_size 8"),
    ("train", "train.offload=reference", "train.offload names the reference, which algorithm dynamic has none of"),
    ("train", "rl.reference_cache=pool", 'rl.reference_cache needs algorithm "fixed"'),
    ("train", "rl.max_disagreement=.1", "name two or more in model.judge_adapters"),
    ("train", "alarms.members=true", "name two or more in model.judge_adapters"),
    ("train", "algorithm=earned", "set evaluation.other_judge and evaluation.every"),
    ("train-base", "lora.rank=4", "there is no model to adapt: set base.start, or rank 0"),
    ("train-judge", "lora.rank=4", "there is no model to adapt: set judge.start, or rank 0"),
    ("train-judge", "judge.evaluate_every=5", "judge.held_out_share is 0: hold some records out"),
    ("train-judge", "judge.keep_best=true", "judge.keep_best needs judge.evaluate_every"),
    (
        "make-preferences",
        "preferences.min_steps=13",
        "preferences.min_steps (13) must be at most preferences.max_steps",
    ),
    ("sanity-checks", "evaluation.images_per_task=401", "must be at most evaluation.scenes_per_task (400)"),
]
CONFIGS = {
    "train-base": "miniature/base",
    "train-judge": "miniature/judge",
    "make-preferences": "miniature/judge",
    "train-vae": "miniature/vae",
}


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that must be refused; returns its one sentence."""

    def run(command: str, *arguments: str) -> str:
        # A value that is let through fails the test, instead of training.
        monkeypatch.setattr(f"onereward_jax.cli.commands.{command.replace('-', '_')}.run", lambda args: 0)
        workdir = tmp_path / "run"
        config = CONFIGS.get(command, "quick")
        assert cli.main([command, "--config", config, *arguments, "--workdir", str(workdir)]) == 2
        assert not workdir.exists()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(("command", "override", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_one_sentence(refused, command, override, words):
    assert words in refused(command, f"--config.{override}")


@pytest.mark.parametrize("override", ["alarms.seeds=2", "alarms.gradient_cosines=true"])
def test_what_is_measured_at_evaluations_needs_some(refused, override):
    assert "evaluation.every is 0" in refused("train", "--config.evaluation.every=0", f"--config.{override}")


def test_task_weights_of_zero(refused):
    zeros = [f"--config.data.task_weights.{task}=0" for task in schema.RewardFeedback().data.task_weights]
    assert "data.task_weights are all zero: give at least one task" in refused("train", *zeros)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: schema.SceneData(task_weights={"image_fil": 1.0}),
            "unknown task 'image_fil': did you mean image_fill",
        ),
        (lambda: schema.SceneData(task_weights={"zzz": 1.0}), "the unknown task 'zzz': choose among image_fill"),
        (lambda: schema.SceneData(task_weights=1.0), "must be a value for each of its fields, not 1.0"),
        (
            lambda: schema.Training(batch_size=None),
            "train.batch_size must be a whole number from 1 to 65,536, not",
        ),
        (lambda: schema.Training(num_steps=True), "train.num_steps must be a whole number"),
        (lambda: schema.RewardLearning(threshold="0.9"), "rl.threshold must be a number above 0"),
        (lambda: schema.RewardLearning(matched_reference=True, predictions=2), "for the policy's one t"),
        (lambda: schema.RewardLearning(matched_reference=True, reference_max_age=2), "which is of no use again"),
        (lambda: schema.RewardFeedback().replace({"rl.accumulate": 3}), "does not divide train.batch_size 8"),
        (lambda: schema.RewardFeedback().replace({"rl.acumulate": 3}), "there is no setting rl.acumulate"),
        (lambda: schema.RewardFeedback().replace({"seed.x.y": 3}), "there is no setting seed.x.y"),
        (lambda: schema.RewardFeedback().replace({"rl": 3}), "rl is a group of settings, not 3"),
        (lambda: schema.RewardFeedback(seed=10**5000), "seed must be .*, not a int that can't be shown"),
        (lambda: schema.Optimizer(clip_norm=10**400), "optimizer.clip_norm must be a number above 0"),
        (lambda: schema.Mesh(data=np.arange(3)), "mesh.data must be a whole number"),
        (lambda: schema.SceneData(task_weights={1: 1.0}), "data.task_weights has a field 1: name it by text"),
        (lambda: schema.Autoencoder(model={"a": [float("nan")]}), r"vae\.model\.a must be a number from -1,000"),
        (lambda: schema.Models(base="x\udce9"), r"model\.base must be .*, not 'x\\udce9', which is no UTF-8"),
        (lambda: schema.Models(base="x\0"), r"model\.base must be .*, not 'x\\x00', which holds a NUL"),
        (lambda: schema.Models(base="x" * 10_001), r"model\.base must be .*, which is longer than 10,000 characters"),
        (lambda: schema.Autoencoder(model={"a": object}), r"vae\.model\.a must be text, a number, true or false"),
    ],
)
def test_no_object_has_wrong_values(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_values_have_the_fields_type():
    made = schema.Optimizer(learning_rate=1, warmup_steps=np.int64(3), b2=np.float32(0.5))
    assert [type(value) for value in (made.learning_rate, made.warmup_steps, made.b2)] == [float, int, float]
    assert schema.PolicyModels(judge_adapters=["a"], attention_blocks=[128, 256]).attention_blocks == (128, 256)
    # The order in which tasks are named changes nothing: not which of them a random number draws.
    weights = schema.SceneData(task_weights={"object_removal": 1.0, "image_fill": 2.0}).task_weights
    assert list(weights) == ["image_fill", "object_removal"]


def test_some_values_are_replaced():
    config = schema.JudgeTraining(judge=schema.JudgeModel(text_config={"rope": {"theta": 1.0}, "depth": 3}))
    changed = config.replace({"train.batch_size": 2, "judge.text_config.rope.theta": 2.0, "seed": 5})
    assert (changed.train.batch_size, changed.seed) == (2, 5)
    assert changed.judge.text_config == {"rope": {"theta": 2.0}, "depth": 3}
    assert config.judge.text_config["rope"] == {"theta": 1.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize("recipe", schema.RECIPES)
def test_every_setting_says_what_it_is(recipe):
    assert json.loads(json.dumps(recipe().flat()))
    for name, field in load.options(recipe).items():
        assert about(field).help, name
        assert wanted(field), name
    groups = [value for _, value in recipe() if isinstance(value, Settings)]
    assert all(type(group).__doc__ and group.name for group in groups)
    assert recipe.own in recipe.config_dict()


@pytest.mark.parametrize("recipe", schema.RECIPES)
def test_every_number_has_a_range(recipe):
    for name, field in load.options(recipe).items():
        kind, known = kind_of(field)[0], about(field)
        inner = [part for part in (typing.get_args(kind) or (kind,)) if part in (int, float, Any)]
        if not inner:
            continue
        assert known.above is not None or known.at_least is not None, name
        assert known.below is not None or known.at_most is not None, name
        for wrong in (float("nan"), float("inf"), -float("inf"), 10**31, -(10**31), 10**400):
            value = {"x": wrong} if is_mapping(field) else (wrong,) * len(inner) if typing.get_args(kind) else wrong
            with pytest.raises(UserError, match=rf"^{name}.* must be "):
                checked(name, field, value)


def test_the_documentation_lists_what_the_schema_does():
    """Made anew by `onereward config --docs docs/reference/settings.md`."""
    assert (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8") == page()


def test_the_command_shows_value_source_default_and_range(capsys):
    assert cli.main(["config", "--config", "quick", "--config.rl.threshold=0.5"]) == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert lines["rl.threshold"] == "0.5 override 0.9 a number above 0 and at most 1"
    assert lines["rl.ema_decay"] == "0.95 file 0.99 a number, 0 or more and below 1"
    assert lines["seed"] == "0 default 0 a whole number from 0 to 4,294,967,295"
