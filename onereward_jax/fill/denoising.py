"""The programs of `FillPipeline`: a whole fill in one, and its parts, where a caller looks in at every step.

Shapes as in `flow.conditioning`: B samples of H×W pixels, latents (h, w, C), N tokens of 4C channels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.conditioning import Condition, TextStates
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.parallel.activations import traced_for

DENOISING = "denoising"  # name of the loop over the schedule in a program
# Schedules are padded to a multiple of this, so that one program serves all numbers of steps up to it.
_SCHEDULE_BUCKET = 64


def padded(schedule: np.ndarray) -> np.ndarray:
    """A schedule (n + 1,), or one of each sample (n + 1, B), as `denoise` and `fill` take it."""
    after = (0, -len(schedule) % _SCHEDULE_BUCKET)
    return np.pad(schedule, (after, *[(0, 0)] * (schedule.ndim - 1)))


@flax.struct.dataclass
class Batch:
    """What B images are made of.

    Attributes:
      tokens: (B, N, 4C) at the first noise level.
      text, negative: encoded prompts; no negative ones: no true guidance.
      images, masks, posterior_noise: of `FluxFill.condition`, which encodes them.
      masked_image_latents: what comes of that, (B, N, 4C + 4f²), in the place of those three.
    """

    tokens: Any
    text: TextStates
    negative: TextStates | None = None
    images: Any = None
    masks: Any = None
    posterior_noise: Any = None
    masked_image_latents: Any = None


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a program is compiled for, beside the shapes of its arguments.

    Attributes:
      size: (H, W).
      tile: in latents, see `conditioning.decode_latents`.
      mesh: over which the parameters are spread, if they are; its attention and its activations go by it.
    """

    family: FluxFill
    size: tuple[int, int]
    tile: int | None = None
    mesh: AbstractMesh | None = None


def _program(function: Callable[..., Any]) -> Any:
    """Compile a function for each `setup`, its last argument."""

    def traced(*arguments: Any, setup: Setup) -> Any:
        return traced_for(setup.mesh, functools.partial(function, setup=setup))(*arguments)

    traced.__name__ = function.__name__
    return jax.jit(traced, static_argnames="setup")


def _condition(vae_params: Any, batch: Batch, setup: Setup) -> Condition:
    family = setup.family
    if batch.masked_image_latents is None:
        requests = batch.images, batch.masks, batch.text, batch.negative
        return family.condition(vae_params, *requests, batch.posterior_noise, setup.tile)
    channels = batch.tokens.shape[-1]
    both = batch.masked_image_latents[..., :channels], batch.masked_image_latents[..., channels:]
    return family.joined(*both, batch.text, batch.negative)


def _velocity(params: Any, condition: Condition, scales: tuple[Any, Any], setup: Setup) -> sampler.Velocity:
    guidance_scale, true_cfg_scale = scales
    if condition.negative_prompt_embeds is None:
        true_cfg_scale = 1.0
    return setup.family.velocity(params, condition, setup.size, guidance_scale, true_cfg_scale)


def _decoded(vae_params: Any, tokens: jax.Array, setup: Setup) -> jax.Array:
    return jnp.clip(setup.family.decode(vae_params, tokens, setup.size, setup.tile), 0.0, 1.0)


def _denoised(params: Any, batch: Batch, schedule: Any, stop: Any, scales: Any, setup: Setup) -> jax.Array:
    condition = _condition(params["vae"], batch, setup)
    velocity = _velocity(params["transformer"], condition, scales, setup)
    with jax.named_scope(DENOISING):
        tokens = sampler.denoise(velocity, batch.tokens, schedule, stop)
    last = schedule[stop] if schedule.ndim == 1 else schedule[stop, jnp.arange(len(tokens))]
    return sampler.predict_data(velocity, tokens, jnp.full(len(tokens), last))


@_program
def denoise(params: Any, batch: Batch, schedule: Any, stop: Any, scales: Any, setup: Setup) -> jax.Array:
    """Denoise to index `stop` of the schedule, then predict the data in one step: tokens (B, N, 4C).

    From the last index before σ = 0 that is the last Euler step.

    Args:
      params: {"transformer": tree, "vae": tree}.
      schedule: noise levels, `padded`.
      stop: one index, or with a schedule of each sample (B,).
      scales: of guidance and of true guidance, see `sampler.velocity_of`.
    """
    return _denoised(params, batch, schedule, stop, scales, setup)


@_program
def fill(params: Any, batch: Batch, schedule: Any, stop: Any, scales: Any, setup: Setup) -> jax.Array:
    """`denoise` and `decode` in one program."""
    return _decoded(params["vae"], _denoised(params, batch, schedule, stop, scales, setup), setup)


@_program
def encode(vae_params: Any, batch: Batch, setup: Setup) -> Condition:
    """What the velocity depends on besides the tokens."""
    return _condition(vae_params, batch, setup)


@_program
def step(
    params: Any, condition: Condition, tokens: Any, sigma: Any, next_sigma: Any, scales: Any, setup: Setup
) -> jax.Array:
    """One Euler step between two noise levels of all samples; `params` are the transformer's."""
    velocity = _velocity(params, condition, scales, setup)
    return tokens + (next_sigma - sigma) * velocity(tokens, jnp.full(len(tokens), sigma))


@_program
def decode(vae_params: Any, tokens: jax.Array, setup: Setup) -> jax.Array:
    """Tokens at σ = 0 as images, float32 (B, H, W, 3) in [0, 1]."""
    return _decoded(vae_params, tokens, setup)


@_program
def partly_noised(vae_params: Any, images: Any, posterior_noise: Any, noise: Any, sigma: Any, setup: Setup) -> Any:
    """Images at a noise level, `σ·ε + (1 − σ)·x`: tokens (B, N, 4C).

    Args:
      images: uint8 (B, H, W, 3); noise: (B, h, w, C); posterior_noise: see `conditioning.encode_image`.
    """
    vae, pixels = setup.family.vae, conditioning.to_model_range(images)
    data = conditioning.encode_image(vae, vae_params, pixels, posterior_noise, setup.tile)
    return conditioning.pack(sigma * noise + (1.0 - sigma) * data)
