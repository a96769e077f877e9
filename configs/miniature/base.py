"""The miniature's fill model, by flow matching on the autoencoder of `miniature/vae`.

    onereward train-base --config miniature/base --workdir runs/miniature/base

A share of its training targets has a synthetic defect, as images from the web would: that leaves reward feedback
learning something to improve. `onereward sanity-checks --config quick` measures it.
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema
from onereward_jax.tasks import TASKS


def get_config() -> ConfigDict:
    config = schema.BaseTraining.config_dict()
    config.data.resolution = 64
    config.data.synthetic_defects = 0.3
    config.data.task_weights = dict.fromkeys(TASKS, 0.25)
    config.data.loader_threads = 2
    config.max_sequence_length = 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_steps = 9000
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.train.num_steps = 9000
    config.train.batch_size = 16
    config.base.vae = "runs/miniature/vae/export/vae"
    config.base.transformer = {
        "patch_size": 1,
        "in_channels": 192,
        "out_channels": 64,
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "guidance_embeds": True,
        "axes_dims_rope": (8, 12, 12),
    }
    config.base.text_encoder = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 64,
    }
    config.base.text_encoder_2 = {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }
    return config
