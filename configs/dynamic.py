"""Algorithm 2 on the miniature, longer: the reference is the policy's moving average.

    onereward train --config dynamic --workdir runs/dynamic
    onereward evaluate --config dynamic --workdir runs/dynamic

500 updates with a rate that falls to a tenth. docs/lab-notes/miniature.md compares three seeds of both algorithms.
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema
from onereward_jax.tasks import TASKS


def get_config() -> ConfigDict:
    config = schema.RewardFeedback.config_dict()
    config.algorithm = "dynamic"
    config.model.base = "miniature/base"
    config.model.judge = "miniature/judge"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.resolution = 64
    config.data.synthetic_defects = 0.3
    config.data.task_weights = dict.fromkeys(TASKS, 0.25)
    config.data.loader_threads = 2
    config.max_sequence_length = 16
    config.question_length = 20

    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_steps = 5
    config.optimizer.decay_steps = 500
    config.optimizer.b2 = 0.99
    config.train.num_steps = 500
    config.train.checkpoint_every = 40
    config.train.log_every = 1

    config.rl.ema_decay = 0.95
    config.rl.num_steps = 8
    # Late: an early prediction is blurred, and beside the reference the judge would ask for nothing but sharpness.
    config.rl.first_index = 6
    config.rl.last_index = 7
    config.rl.rollout_true_cfg_scale = 1.0
    config.rl.flow_matching_weight = 0.5
    # What holds under all shifts and noise is in the image; the rest is the judge's own.
    config.rl.judge_shift = 4
    config.rl.judge_noise = 0.15

    config.evaluation.scenes_per_task = 400
    config.evaluation.judge_scenes_per_task = 200
    config.evaluation.num_steps = 8
    config.evaluation.true_cfg_scale = 1.0
    config.evaluation.batch_size = 50
    config.evaluation.every = 50
    config.evaluation.scenes_while_training = 32
    config.preferences.base = "miniature/base"
    config.preferences.part_size = 25
    return config
