"""The first judge: right answers with synthetic defects, and images of the base model.

    onereward make-preferences --config miniature/judge --workdir runs/miniature/preferences
    onereward train-judge --config miniature/judge --workdir runs/miniature/judge

3500 steps of 16 pairs on 6144 scenes with synthetic defects and 2048 of the base model's own images.
"""

from _judge_model import TEMPLATE, TEMPLATE_WITH_PROMPT, TEXT_CONFIG, VISION_CONFIG
from ml_collections import ConfigDict

from onereward_jax.config import schema
from onereward_jax.tasks import TASKS


def get_config() -> ConfigDict:
    config = schema.JudgeTraining.config_dict()
    config.data.resolution = 64
    config.data.synthetic_defects = 0.3
    config.data.task_weights = dict.fromkeys(TASKS, 0.25)
    config.data.loader_threads = 2
    config.max_sequence_length = 16
    config.question_length = 20
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 3500
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.train.num_steps = 3500

    config.judge.start = ""
    config.judge.data = ("runs/miniature/preferences",)
    config.judge.dtype = "float32"
    config.judge.remat = "none"
    config.judge.max_pixels = 0
    config.judge.image_step = 0
    config.judge.held_out_share = 0.0
    config.judge.evaluate_every = 0
    config.judge.keep_best = False
    config.judge.template = TEMPLATE
    config.judge.template_with_prompt = TEMPLATE_WITH_PROMPT
    config.judge.text_config = TEXT_CONFIG
    config.judge.vision_config = VISION_CONFIG

    config.preferences.base = "miniature/base"
    return config
