"""A tiny autoencoder, ours and diffusers', and images in the layouts of both."""

import diffusers
import numpy as np
import torch

from onereward_jax.weights.names import vae
from tests.support import parity

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "latent_channels": 6,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
BATCH, HEIGHT, WIDTH = 2, 16, 24


def pair(**changes):
    config = CONFIG | changes
    theirs = parity.randomize(diffusers.AutoencoderKL(**config))
    parity.shrink(theirs, ("conv_in", "conv1"))
    return vae.module_from_config(config), theirs


def images():
    return np.random.default_rng(1).uniform(-1, 1, (BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)


def latents():
    shape = (BATCH, HEIGHT // 4, WIDTH // 4, CONFIG["latent_channels"])
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x):
    return x.permute(0, 2, 3, 1)
