"""What a configuration's values must satisfy, checked before a directory is claimed or a model is loaded.

Imports no JAX. Only what is there is checked: which groups a configuration has depends on its command.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from onereward_jax.config.load import OFFLOADABLE, did_you_mean, fields
from onereward_jax.errors import UserError
from onereward_jax.tasks import TASKS

Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and words for those that are


def validate(config: ConfigDict, needs: Iterable[str] = (), source: str = "the configuration") -> None:
    """Checks every value that can be checked without a model, a device or a file.

    Args:
      config: as loaded.
      needs: top-level names that the command reads.
      source: of the configuration, for the message.

    Raises:
      UserError: names the first field that is wrong.
    """
    if missing := [name for name in needs if name not in config]:
        raise UserError(f"{source} has no {', '.join(missing)}: choose a configuration or variant for this command")
    values = fields(config)
    for name, (right, wanted) in _RULES.items():
        if name in values and not right(values[name]):
            raise UserError(f"{name} must be {wanted}, not {values[name]!r}")
    for lower, relation, upper in _ORDERED:
        if lower in values and upper in values:
            less, greater = values[lower], values[upper]
            if less > greater or (less == greater and relation == "below"):
                raise UserError(f"{lower} ({less}) must be {relation} {upper} ({greater}): change one of them")
    _check_accumulation(values)
    _check_decay(values)
    _check_references(values)
    _check_offload(values)
    _check_held_out(values)
    _check_buckets(values)
    _check_adapter(values)
    if "data" in config and "task_weights" in config.data:
        _check_task_weights(config.data.task_weights)


# --------------------------------------------------------------------------------------------------------- values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int) -> Rule:
    return lambda value: _is_whole(value) and value >= least, f"a whole number, {least} or more"


def _at_least(least: float) -> Rule:
    return lambda value: _is_number(value) and value >= least, f"a number, {least:g} or more"


def _one_of(*names: str) -> Rule:
    return lambda value: value in names, f"one of {', '.join(names)}"


def _is_regex(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


_REGEX: Rule = (_is_regex, "a regular expression")
_SHARE: Rule = (lambda value: _is_number(value) and 0 <= value <= 1, "from 0 to 1")
_DECAY: Rule = (lambda value: _is_number(value) and 0 <= value < 1, "0 or more and below 1")
_PART: Rule = (lambda value: _is_number(value) and 0 < value < 1, "above 0 and below 1")
_POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, "above 0")
_NOT_NEGATIVE: Rule = _at_least(0)
_DTYPE = _one_of("float32", "bfloat16", "float16")
_REMAT = _one_of("none", "dots", "full")

_RULES: Mapping[str, Rule] = {
    "algorithm": _one_of("fixed", "dynamic"),
    "seed": _whole(0),
    "max_sequence_length": _whole(1),
    "question_length": _whole(1),
    # 32 is the least that scenes can be drawn in; an autoencoder may ask for a multiple of more than 8.
    "data.resolution": (
        lambda value: _is_whole(value) and value >= 32 and value % 8 == 0,
        "a multiple of 8 from 32 on",
    ),
    "data.seed": _whole(0),
    "data.num_conditions": _whole(0),
    "data.target_flaws": _SHARE,
    "data.loader_timeout": _NOT_NEGATIVE,
    "data.bad_share": _SHARE,
    "data.held_out_share": _DECAY,
    "data.bucket_step": _whole(1),
    "data.max_aspect": _at_least(1),
    "data.min_hole": _PART,
    "data.max_hole": _PART,
    **dict.fromkeys(
        ("mesh.data", "mesh.fsdp", "mesh.tensor"),
        (
            lambda value: _is_whole(value) and (value == -1 or value >= 1),
            "a whole number, 1 or more, or -1 for the rest",
        ),
    ),
    "model.judge_adapters": (
        lambda value: isinstance(value, tuple | list) and all(isinstance(path, str) and path for path in value),
        "a tuple of paths, such as \"('a','b')\"",
    ),
    "model.attention": _one_of("auto", "xla", "splash", "cudnn", "reference"),
    "model.attention_blocks": (
        lambda value: (
            isinstance(value, tuple) and len(value) == 2 and all(_is_whole(n) and n > 0 and n % 128 == 0 for n in value)
        ),
        "two multiples of 128, such as (768,768)",
    ),
    "model.dtype": _DTYPE,
    "model.remat": _REMAT,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.b2": _DECAY,
    "optimizer.warmup_steps": _whole(0),
    "optimizer.decay_steps": _whole(0),
    "train.num_steps": _whole(1),
    "train.batch_size": _whole(1),
    "train.checkpoint_every": _whole(0),
    "train.keep_checkpoints": _whole(1),
    "train.log_every": _whole(0),
    "train.max_skipped": _whole(0),
    "train.max_unsharded_mib": _POSITIVE,
    "train.offload": (
        lambda value: isinstance(value, tuple) and all(part in OFFLOADABLE for part in value),
        f"a tuple of parts of the state ({', '.join(OFFLOADABLE)}), such as \"('opt_state',)\"",
    ),
    "rl.threshold": (lambda value: _is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    "rl.ema_decay": _DECAY,
    "rl.num_steps": _whole(1),
    "rl.first_index": _whole(0),
    "rl.last_index": _whole(0),
    "rl.judge_shift": _whole(0),
    "rl.judge_noise": _NOT_NEGATIVE,
    "rl.flow_matching_weight": _NOT_NEGATIVE,
    "rl.rollout_guidance_scale": _NOT_NEGATIVE,
    "rl.rollout_true_cfg_scale": _NOT_NEGATIVE,
    "rl.gradient_guidance_scale": _NOT_NEGATIVE,
    "rl.gradient_true_cfg_scale": _NOT_NEGATIVE,
    "rl.accumulate": _whole(1),
    "rl.predictions": _whole(1),
    "rl.shared_prefix": (lambda value: isinstance(value, bool), "true or false"),
    "rl.reference_pool": (lambda value: isinstance(value, str), "a directory, or empty"),
    "rl.reference_max_age": _whole(0),
    "lora.rank": _whole(0),
    "lora.alpha": _POSITIVE,
    "lora.targets": _REGEX,
    "vae.ema_decay": _DECAY,
    "vae.kl_weight": _NOT_NEGATIVE,
    "vae.edge_weight": _NOT_NEGATIVE,
    "vae.square_weight": _NOT_NEGATIVE,
    "base.ema_decay": _DECAY,
    "base.dtype": _DTYPE,
    "base.remat": _REMAT,
    "base.prompt_dropout": _SHARE,
    "base.scenes_per_task": _whole(1),
    "finetune.guidance_scale": _NOT_NEGATIVE,
    "finetune.prompt_dropout": _SHARE,
    "finetune.ema_decay": _DECAY,
    "finetune.evaluate_every": _whole(0),
    "finetune.held_out_draws": _whole(1),
    "finetune.sample_every": _whole(0),
    "finetune.num_samples": _whole(0),
    "finetune.sample_steps": _whole(1),
    "finetune.sample_guidance_scale": _NOT_NEGATIVE,
    "finetune.sample_true_cfg_scale": _NOT_NEGATIVE,
    "judge.ema_decay": _DECAY,
    "judge.dtype": _DTYPE,
    "judge.remat": _REMAT,
    "judge.bad_share": _SHARE,
    "judge.max_pixels": _whole(0),
    "judge.image_step": _whole(0),
    "judge.held_out_share": _DECAY,
    "judge.evaluate_every": _whole(0),
    "judge.max_shift": _whole(0),
    "judge.planted_share": _SHARE,
    "judge.questions_per_pair": _whole(1),
    "judge.adversarial_radius": _SHARE,
    "judge.only_task": (lambda value: value in ("", *TASKS), f"empty, or one of {', '.join(TASKS)}"),
    "preferences.first_scene": _whole(0),
    "preferences.planted_scenes_per_task": _whole(0),
    "preferences.scenes_per_task": _whole(0),
    "preferences.part_size": _whole(1),
    "preferences.decoded_share": _SHARE,
    "preferences.latent_noise_share": _SHARE,
    "preferences.one_step_share": _SHARE,
    "preferences.guided_share": _SHARE,
    "preferences.max_latent_noise": _at_least(0.1),
    "preferences.max_true_cfg_scale": _at_least(1.2),
    "preferences.annotator_noise": _NOT_NEGATIVE,
    "preferences.annotator_margin": _NOT_NEGATIVE,
    "preferences.min_steps": _whole(1),
    "preferences.max_steps": _whole(1),
    "evaluation.scenes_per_task": _whole(1),
    "evaluation.judge_scenes_per_task": _whole(1),
    "evaluation.pictures_per_task": _whole(1),
    "evaluation.every": _whole(0),
    "evaluation.watched_scenes": _whole(1),
    "evaluation.batch_size": _whole(1),
    "evaluation.num_steps": _whole(1),
    "ascent.scenes_per_task": _whole(1),
    "ascent.num_steps": _whole(1),
    "ascent.step_size": _POSITIVE,
    "evaluation.guidance_scale": _NOT_NEGATIVE,
    "evaluation.true_cfg_scale": _NOT_NEGATIVE,
    "evaluation.what": _one_of("policy", "ema"),
}


# ------------------------------------------------------------------------------------------------------ relations

_ORDERED = (
    ("rl.first_index", "at most", "rl.last_index"),
    ("rl.last_index", "below", "rl.num_steps"),
    ("data.min_hole", "at most", "data.max_hole"),
    ("preferences.min_steps", "at most", "preferences.max_steps"),
    ("evaluation.pictures_per_task", "at most", "evaluation.scenes_per_task"),
)


def _check_accumulation(values: Mapping[str, Any]) -> None:
    size, parts = values.get("train.batch_size", 1), values.get("rl.accumulate", 1)
    if "train.batch_size" in values and size % parts:
        raise UserError(f"rl.accumulate is {parts}, which does not divide train.batch_size {size}: change one of them")


def _check_decay(values: Mapping[str, Any]) -> None:
    decay, warmup = values.get("optimizer.decay_steps", 0), values.get("optimizer.warmup_steps", 0)
    if 0 < decay <= warmup:
        raise UserError(
            f"optimizer.decay_steps is {decay}, which is not beyond optimizer.warmup_steps {warmup}:"
            " raise it, or set it to 0 for a constant rate"
        )


def _check_references(values: Mapping[str, Any]) -> None:
    """What may be combined to save compute."""
    count, size = values.get("data.num_conditions", 0), values.get("train.batch_size", 1)
    if count % size:
        raise UserError(
            f"data.num_conditions {count} is no multiple of train.batch_size {size}, so that a batch would lie in two"
            " epochs: change one of them"
        )
    pool, age = values.get("rl.reference_pool"), values.get("rl.reference_max_age")
    matched = values.get("rl.matched_reference")
    if pool and values.get("algorithm") != "fixed":
        raise UserError(
            "rl.reference_pool is of algorithm fixed, whose references never change: with dynamic set"
            " rl.reference_max_age"
        )
    if pool and not values.get("data.num_conditions"):
        raise UserError(
            "rl.reference_pool is of use where conditions come again: set data.num_conditions to how many there are"
        )
    if age and values.get("algorithm") != "dynamic":
        raise UserError("rl.reference_max_age is of algorithm dynamic: with fixed set rl.reference_pool")
    if matched and (pool or age):
        raise UserError(
            "rl.matched_reference makes a reference for the policy's t, which is of no use again: set it to false, or"
            " rl.reference_pool to '' and rl.reference_max_age to 0"
        )
    if matched and values.get("rl.predictions", 1) > 1:
        raise UserError(
            "rl.matched_reference makes a reference for the policy's one t: set it to false, or rl.predictions to 1"
        )


def _check_offload(values: Mapping[str, Any]) -> None:
    if "reference" in values.get("train.offload", ()) and values.get("algorithm") == "dynamic":
        raise UserError("train.offload names the reference, which algorithm dynamic has none of: leave it out")


def _check_held_out(values: Mapping[str, Any]) -> None:
    share, every = values.get("judge.held_out_share", 0), values.get("judge.evaluate_every", 0)
    if every and not share:
        raise UserError("judge.evaluate_every is set, but judge.held_out_share is 0: hold some records out")
    if values.get("judge.keep_best") and not every:
        raise UserError("judge.keep_best needs judge.evaluate_every: say how often the judge is measured")


def _check_buckets(values: Mapping[str, Any]) -> None:
    resolution, step = values.get("data.resolution", 0), values.get("data.bucket_step", 1)
    if resolution % step:
        raise UserError(f"data.resolution {resolution} is no multiple of data.bucket_step {step}: change one of them")


def _check_adapter(values: Mapping[str, Any]) -> None:
    if not values.get("lora.rank"):
        return
    for start in ("base.start", "judge.start"):
        if values.get(start) == "":
            raise UserError(
                f"lora.rank is {values['lora.rank']}, but there is no model to adapt: set {start}, or rank 0"
            )
    if values.get("base.train_text_encoders"):
        raise UserError(
            "lora.rank trains the transformer's adapter alone: set base.train_text_encoders to false, or rank 0"
        )


def _check_task_weights(weights: Any) -> None:
    if not isinstance(weights, Mapping | ConfigDict):
        raise UserError(f"data.task_weights must be a weight for each task, not {weights!r}")
    for task, weight in weights.items():
        if task not in TASKS:
            hint = did_you_mean(task, TASKS) or f": choose among {', '.join(TASKS)}"
            raise UserError(f"data.task_weights has the unknown task {task!r}{hint}")
        if not (_is_number(weight) and weight >= 0):
            raise UserError(f"data.task_weights.{task} is {weight!r}: give 0 or a positive number")
    if not any(weights.values()):
        raise UserError("data.task_weights are all zero: give at least one task a positive weight")
