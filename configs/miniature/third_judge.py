"""The third judge: resumes the second with pairs that are new at every step, and more of the base's images.

    onereward make-preferences --config miniature/third_judge --workdir runs/miniature/third_preferences
    onereward train-judge --config miniature/third_judge --workdir runs/miniature/third_judge

13 000 steps.
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
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 13000
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.train.num_steps = 13000

    config.judge.start = "runs/miniature/second_judge/export"
    config.judge.data = (
        "runs/miniature/preferences",
        "runs/miniature/second_preferences",
        "runs/miniature/third_preferences",
    )
    # Both images moved and mirrored alike.
    config.judge.max_shift = 4
    config.judge.flips = True
    # Pairs that are new at every step. Most others are annotated in one dimension: what is asked beyond costs a
    # question and teaches nothing.
    config.judge.synthetic_share = 0.4
    config.judge.questions_per_pair = 1
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
    config.preferences.first_scene = 5120
    config.preferences.synthetic_scenes_per_task = 0
    config.preferences.scenes_per_task = 2048
    return config
