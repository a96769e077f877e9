"""Values that can't be are refused by name, before a workdir is made or a model is loaded."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.tiny import VARIANTS
from onereward_jax.cli import main as cli
from onereward_jax.config.load import LIST_FIELDS, fields, load_config
from onereward_jax.config.validation import validate
from onereward_jax.errors import UserError

TINY = str(Path(__file__).parents[2] / "configs" / "tiny.py")
WEIGHTS = "data.task_weights"

WRONG = [
    ("train", "quick", "algorithm=both", "algorithm must be one of fixed, dynamic, not 'both'"),
    ("train", "quick", "seed=-1", "seed must be a whole number, 0 or more, not -1"),
    ("train", "quick", "max_sequence_length=0", "max_sequence_length must be a whole number, 1 or more"),
    ("train", "quick", "question_length=0", "question_length must be a whole number, 1 or more"),
    ("train", "quick", "data.seed=-1", "data.seed must be a whole number, 0 or more"),
    ("train", "quick", "data.loader_timeout=-1", "data.loader_timeout must be a number, 0 or more, not -1.0"),
    ("train", "quick", "train.max_skipped=-1", "train.max_skipped must be a whole number, 0 or more, not -1"),
    ("train", "quick", "data.resolution=60", "data.resolution must be a multiple of 8 from 32 on, not 60"),
    ("train", "quick", "data.resolution=24", "data.resolution must be a multiple of 8 from 32 on, not 24"),
    ("train", "quick", "data.target_flaws=1.5", "data.target_flaws must be from 0 to 1"),
    ("train", "quick", f"{WEIGHTS}.image_fill=-1", f"{WEIGHTS}.image_fill is -1.0: give 0 or a positive number"),
    ("train", "quick", f"{WEIGHTS}.image_fill=nan", f"{WEIGHTS}.image_fill is nan"),
    ("train", "quick", "model.dtype=float8", "model.dtype must be one of float32, bfloat16, float16, not 'float8'"),
    ("train", "quick", "optimizer.learning_rate=0", "optimizer.learning_rate must be above 0, not 0.0"),
    ("train", "quick", "optimizer.learning_rate=inf", "optimizer.learning_rate must be above 0, not inf"),
    ("train", "quick", "optimizer.warmup_steps=-1", "optimizer.warmup_steps must be a whole number, 0 or more"),
    ("train", "quick", "optimizer.decay_steps=5", "optimizer.decay_steps is 5, which is not beyond"),
    ("train", "quick", "optimizer.clip_norm=-1", "optimizer.clip_norm must be above 0"),
    ("train", "quick", "optimizer.b2=1.5", "optimizer.b2 must be 0 or more and below 1"),
    ("train", "quick", "optimizer.weight_decay=-1", "optimizer.weight_decay must be a number, 0 or more"),
    ("train", "quick", "rl.flow_matching_weight=-1", "rl.flow_matching_weight must be a number, 0 or more"),
    ("train", "quick", "rl.gradient_true_cfg_scale=nan", "rl.gradient_true_cfg_scale must be a number, 0 or more"),
    ("train", "quick", "rl.judge_shift=-1", "rl.judge_shift must be a whole number, 0 or more"),
    ("train", "quick", "rl.judge_noise=-0.1", "rl.judge_noise must be"),
    ("train", "quick", "model.judge_adapters=5", "model.judge_adapters must be a tuple of paths"),
    ("train", "quick", "model.remat=some", "model.remat must be one of none, dots, full"),
    ("make-preferences", "judge", "preferences.max_true_cfg_scale=1", "max_true_cfg_scale must be a number, 1.2 or"),
    ("make-preferences", "judge", "preferences.max_latent_noise=0", "max_latent_noise must be a number, 0.1 or more"),
    ("make-preferences", "judge", "preferences.annotator_noise=nan", "annotator_noise must be a number, 0 or more"),
    ("train", "quick", "train.num_steps=0", "train.num_steps must be a whole number, 1 or more"),
    ("train", "quick", "train.batch_size=0", "train.batch_size must be a whole number, 1 or more"),
    ("train", "quick", "train.checkpoint_every=-1", "train.checkpoint_every must be a whole number, 0 or more"),
    ("train", "quick", "train.keep_checkpoints=0", "train.keep_checkpoints must be a whole number, 1 or more"),
    ("train", "quick", "train.log_every=-1", "train.log_every must be a whole number, 0 or more"),
    ("train", "quick", "rl.threshold=0", "rl.threshold must be above 0 and at most 1"),
    ("train", "quick", "rl.threshold=1.1", "rl.threshold must be above 0 and at most 1"),
    ("train", "quick", "rl.threshold=nan", "rl.threshold must be above 0 and at most 1"),
    ("train", "quick", "rl.ema_decay=1", "rl.ema_decay must be 0 or more and below 1"),
    ("train", "quick", "rl.num_steps=0", "rl.num_steps must be a whole number, 1 or more"),
    ("train", "quick", "rl.num_steps=4", "rl.last_index (7) must be below rl.num_steps (4)"),
    ("train", "quick", "rl.first_index=-1", "rl.first_index must be a whole number, 0 or more"),
    ("train", "quick", "rl.first_index=8", "rl.first_index (8) must be at most rl.last_index (7)"),
    ("train", "quick", "rl.accumulate=0", "rl.accumulate must be a whole number, 1 or more"),
    ("train", "quick", "rl.accumulate=3", "rl.accumulate is 3, which does not divide train.batch_size 8"),
    ("train", "quick", "rl.predictions=0", "rl.predictions must be a whole number, 1 or more"),
    ("train", "quick", "rl.reference_max_age=-1", "rl.reference_max_age must be a whole number, 0 or more"),
    ("train", "fixed", "rl.reference_max_age=8", "is of algorithm dynamic: with fixed set rl.reference_pool"),
    ("train", "quick", "rl.reference_pool=pool", "is of algorithm fixed, whose references never change"),
    ("train", "fixed", "rl.reference_pool=pool", "set data.num_conditions to how many there are"),
    ("train", "quick", "data.num_conditions=9", "data.num_conditions 9 is no multiple of train.batch_size 8"),
    ("train", "quick", "data.num_conditions=-1", "data.num_conditions must be a whole number, 0 or more"),
    ("train", "quick", "lora.rank=-1", "lora.rank must be a whole number, 0 or more"),
    ("train", "quick", "lora.alpha=0", "lora.alpha must be above 0"),
    ("train", "quick", "lora.targets=to_(", "lora.targets must be a regular expression, not 'to_('"),
    ("train-base", "base", "lora.rank=4", "there is no model to adapt: set base.start, or rank 0"),
    ("train-judge", "judge", "lora.rank=4", "there is no model to adapt: set judge.start, or rank 0"),
    ("train-vae", "vae", "vae.ema_decay=-0.1", "vae.ema_decay must be 0 or more and below 1"),
    ("train-base", "base", "base.ema_decay=1.5", "base.ema_decay must be 0 or more and below 1"),
    ("train-base", "base", "base.prompt_dropout=-0.1", "base.prompt_dropout must be from 0 to 1"),
    ("train-base", "base", "base.scenes_per_task=0", "base.scenes_per_task must be a whole number, 1 or more"),
    ("train-judge", "judge", "judge.ema_decay=nan", "judge.ema_decay must be 0 or more and below 1"),
    ("train-judge", "judge", "judge.bad_share=2", "judge.bad_share must be from 0 to 1"),
    ("train-judge", "judge", "judge.dtype=int8", "judge.dtype must be one of float32, bfloat16, float16"),
    ("train-judge", "judge", "judge.remat=some", "judge.remat must be one of none, dots, full"),
    ("train-judge", "judge", "judge.max_pixels=-1", "judge.max_pixels must be a whole number, 0 or more"),
    ("train-judge", "judge", "judge.image_step=-1", "judge.image_step must be a whole number, 0 or more"),
    ("train-judge", "judge", "judge.held_out_share=1", "judge.held_out_share must be 0 or more and below 1"),
    ("train-judge", "judge", "judge.evaluate_every=5", "judge.held_out_share is 0: hold some records out"),
    ("train-judge", "judge", "judge.keep_best=true", "judge.keep_best needs judge.evaluate_every"),
    ("make-preferences", "judge", "preferences.part_size=0", "preferences.part_size must be a whole number, 1 or more"),
    ("make-preferences", "judge", "preferences.scenes_per_task=-1", "preferences.scenes_per_task must be"),
    ("make-preferences", "judge", "preferences.decoded_share=1.1", "preferences.decoded_share must be from 0 to 1"),
    ("make-preferences", "judge", "preferences.one_step_share=-1", "preferences.one_step_share must be from 0 to 1"),
    ("make-preferences", "judge", "preferences.guided_share=2", "preferences.guided_share must be from 0 to 1"),
    ("make-preferences", "judge", "preferences.latent_noise_share=2", "preferences.latent_noise_share must be from 0"),
    ("make-preferences", "judge", "preferences.min_steps=0", "preferences.min_steps must be a whole number, 1 or more"),
    (
        "make-preferences",
        "judge",
        "preferences.min_steps=13",
        "preferences.min_steps (13) must be at most preferences.max_steps (12)",
    ),
    ("evaluate", "quick", "evaluation.scenes_per_task=0", "evaluation.scenes_per_task must be a whole number, 1 or"),
    ("evaluate", "quick", "evaluation.judge_scenes_per_task=0", "evaluation.judge_scenes_per_task must be a whole"),
    ("evaluate", "quick", "evaluation.batch_size=0", "evaluation.batch_size must be a whole number, 1 or more"),
    ("evaluate", "quick", "evaluation.num_steps=0", "evaluation.num_steps must be a whole number, 1 or more"),
    ("evaluate", "quick", "evaluation.what=best", "evaluation.what must be one of policy, ema, not 'best'"),
    (
        "sanity-checks",
        "quick",
        "evaluation.pictures_per_task=0",
        "evaluation.pictures_per_task must be a whole number, 1 or",
    ),
    (
        "sanity-checks",
        "quick",
        "evaluation.pictures_per_task=401",
        "evaluation.pictures_per_task (401) must be at most evaluation.scenes_per_task (400)",
    ),
]


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that must be refused; returns its one sentence."""

    def run(command: str, *arguments: str) -> str:
        # A value that is let through fails the test, instead of training.
        monkeypatch.setattr(f"onereward_jax.cli.commands.{command.replace('-', '_')}.run", lambda args: 0)
        workdir = tmp_path / "run"
        assert cli.main([command, *arguments, "--workdir", str(workdir)]) == 2
        assert not workdir.exists()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_packaged_is_valid(variant):
    validate(load_config(f"{TINY}:{variant}"))


@pytest.mark.parametrize(("command", "variant", "override", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_one_sentence(refused, command, variant, override, words):
    assert words in refused(command, f"--config={TINY}:{variant}", f"--config.{override}")


def test_task_weights_of_zero(refused):
    zeros = [f"--config.{WEIGHTS}.{task}=0" for task in load_config(TINY).data.task_weights]
    assert f"{WEIGHTS} are all zero: give at least one task" in refused("train", f"--config={TINY}", *zeros)


def test_a_variant_of_another_command(refused):
    assert f"{TINY}:judge has no algorithm, evaluation, model, rl: choose" in refused("train", f"--config={TINY}:judge")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": {"task_weights": {"image_fil": 1.0}}}, "the unknown task 'image_fil': did you mean image_fill"),
        ({"data": {"task_weights": {"zzz": 1.0}}}, "the unknown task 'zzz': choose among image_fill"),
        ({"data": {"task_weights": {}}}, "are all zero"),
        ({"data": {"task_weights": 1.0}}, "must be a weight for each task, not 1.0"),
        ({"train": {"batch_size": None}}, "train.batch_size must be a whole number, 1 or more, not None"),
        ({"train": {"num_steps": True}}, "train.num_steps must be a whole number"),
        ({"rl": {"threshold": "0.9"}}, "rl.threshold must be above 0"),
        ({"model": {"attention": "flash"}}, "model.attention must be one of auto, xla, splash, cudnn, reference"),
        ({"model": {"attention_blocks": (768, 100)}}, "model.attention_blocks must be two multiples of 128"),
        (
            {"rl": {"matched_reference": True, "predictions": 2}},
            "rl.matched_reference makes a reference for the policy",
        ),
    ],
)
def test_what_only_a_file_can_get_wrong(values, words):
    with pytest.raises(UserError, match=words):
        validate(ConfigDict(values))


def test_only_what_is_there_is_checked():
    validate(ConfigDict())
    validate(ConfigDict({"train": {"batch_size": 3}, "rl": {"first_index": 1}, "optimizer": {"decay_steps": 9}}))


def test_lists_take_any_number_of_values():
    """Rounds of preferences, levels of an autoencoder; axes of rope stay three."""
    overrides = {"judge.data": "('a', 'b')", "judge.vision_config.fullatt_block_indexes": "()"}
    config = load_config(f"{TINY}:judge", overrides)
    assert config.judge.data == ("a", "b")
    assert config.judge.vision_config.fullatt_block_indexes == ()
    assert load_config(f"{TINY}:vae", {"vae.model.block_out_channels": "8,8"}).vae.model.block_out_channels == (8, 8)
    with pytest.raises(UserError, match=r"block_out_channels\[1\]"):
        load_config(f"{TINY}:vae", {"vae.model.block_out_channels": "8,x"})
    with pytest.raises(UserError):
        load_config(f"{TINY}:base", {"base.transformer.axes_dims_rope": "8,8"})


def test_every_list_is_a_field_of_the_miniature():
    known = {name for variant in VARIANTS for name in fields(load_config(f"{TINY}:{variant}"))}
    assert set(LIST_FIELDS) <= known
