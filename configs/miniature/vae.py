"""The miniature's autoencoder: the first of the stages that make miniature/ from nothing (launch/miniature.sh).

    onereward train-vae --config miniature/vae --workdir runs/miniature/vae

Then the right answers keep about 95 % of their ground-truth score through it, everywhere but in words.
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema
from onereward_jax.tasks import TASKS


def get_config() -> ConfigDict:
    config = schema.AutoencoderTraining.config_dict()
    config.data.resolution = 64
    config.data.synthetic_defects = 0.3
    config.data.task_weights = dict.fromkeys(TASKS, 0.25)
    config.data.loader_threads = 2
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 4000
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.train.num_steps = 4000
    config.vae.model = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return config
