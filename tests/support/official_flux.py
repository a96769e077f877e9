"""A tiny FLUX transformer, ours and diffusers', and inputs for both."""

import diffusers
import numpy as np

from onereward_jax.weights.names import flux
from tests.support import parity

CONFIG = {
    "in_channels": 20,
    "out_channels": 12,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
BATCH, ROWS, COLUMNS, TEXT = 2, 3, 5, 7


def pair(**changes):
    config = CONFIG | changes
    theirs = parity.randomize(diffusers.FluxTransformer2DModel(patch_size=1, **config))
    parity.shrink(theirs, ("x_embedder", "context_embedder", "to_q", "to_k", "add_q_proj", "add_k_proj"))
    return flux.module_from_config(config), theirs


def inputs(guidance=True):
    """Small noise levels and guidance: `test_time_features` says why, and the test before it has those in use."""
    draw = np.random.default_rng(1)
    normal = lambda *shape: draw.standard_normal(shape).astype(np.float32)
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    img_ids = np.stack([np.zeros_like(rows), rows, columns], -1).reshape(-1, 3).astype(np.float32)
    txt_ids = np.stack([np.arange(TEXT)] * 3, -1).astype(np.float32)  # not the zeros of FLUX: rope must be seen on text
    return (
        normal(BATCH, ROWS * COLUMNS, CONFIG["in_channels"]),
        normal(BATCH, TEXT, CONFIG["joint_attention_dim"]),
        normal(BATCH, CONFIG["pooled_projection_dim"]),
        np.array([0.031, 0.0127], np.float32),
        img_ids,
        txt_ids,
        np.array([0.04, 0.025], np.float32) if guidance else None,
    )


def call(theirs, image, text, pooled, timestep, img_ids, txt_ids, guidance):
    return theirs(
        hidden_states=image,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=timestep,
        img_ids=img_ids,
        txt_ids=txt_ids,
        guidance=guidance,
        return_dict=False,
    )[0]
