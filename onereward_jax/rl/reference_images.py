"""Reference images x_ref: made in every update, or used again for another gradient of the same condition.

Algorithm 1 makes them by `state.reference`, and so does "earned" (`rl.reference_refresh`); Algorithm 2 has none and
makes them by `state.ema`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardLearning
from onereward_jax.flow import sampler
from onereward_jax.parallel.offload import to_devices
from onereward_jax.rl.batch import Batch, KnownReferences
from onereward_jax.rl.random_draws import Draws
from onereward_jax.rl.rollout import Flow
from onereward_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Made in every update by a full denoising from ε1, as the paper has it."""

    config: RewardLearning

    def recall(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with what is known of its references when the update starts."""
        del state
        return batch

    def __call__(self, flow: Flow, state: TrainState, draws: Draws, batch: Batch) -> jax.Array:
        """x_ref, float32 (B, H, W, 3) in [0, 1]."""
        del batch
        return self.make(flow, state, draws)

    def make(self, flow: Flow, state: TrainState, draws: Draws) -> jax.Array:
        """x_ref, from nothing."""
        params = to_devices(state.ema if state.reference is None else state.reference)
        scales = self.config.rollout_guidance_scale, self.config.rollout_true_cfg_scale
        tokens = self.denoise(flow, flow.velocity(flow.whole(params), *scales), draws)
        return jnp.clip(flow.decode(tokens), 0.0, 1.0)

    def denoise(self, flow: Flow, velocity: sampler.Velocity, draws: Draws) -> jax.Array:
        return sampler.denoise(velocity, draws.reference_noise, flow.schedule, len(flow.schedule) - 1)

    def kept(self, images: jax.Array) -> jax.Array | None:
        """What is left of the images when the gradient is known."""
        del images
        return None

    def finish(self, state: TrainState, batch: Batch, metrics: Metrics, images: Any) -> tuple[TrainState, Any]:
        """What the update returns."""
        del batch, images
        return state, metrics


class Matched(Fresh):
    """As the policy's image: denoised to the sample's t, then predicted, so that neither is sharper."""

    def denoise(self, flow: Flow, velocity: sampler.Velocity, draws: Draws) -> jax.Array:
        (prediction,) = draws.predictions
        tokens = sampler.denoise(velocity, draws.reference_noise, flow.schedule, prediction.stop)
        return sampler.predict_data(velocity, tokens, flow.schedule[prediction.stop])


class Cached(Fresh):
    """Read from a `rl.reference_cache` where it has them (Algorithm 1).

    The update then returns (metrics, images) beside the state, for the cache.
    """

    def __call__(self, flow: Flow, state: TrainState, draws: Draws, batch: Batch) -> jax.Array:
        assert batch.references is not None, "the batch brings no references"
        images, known = batch.references
        complete = lambda: jnp.where(known[:, None, None, None], images, self.make(flow, state, draws))
        return jax.lax.cond(known.all(), lambda: images, complete)

    def kept(self, images: jax.Array) -> jax.Array | None:
        return images

    def finish(self, state: TrainState, batch: Batch, metrics: Metrics, images: Any) -> tuple[TrainState, Any]:
        return state, (metrics, images)


class Stale(Cached):
    """Kept in the state for `reference_max_age` updates (Algorithm 2)."""

    def recall(self, state: TrainState, batch: Batch) -> Batch:
        assert state.references is not None, "the state has no place for references"
        # An update that was skipped may have left no image.
        known = (batch.age > 0) & jnp.isfinite(state.references).all(axis=(1, 2, 3))
        return dataclasses.replace(batch, references=KnownReferences(state.references, known))

    def finish(self, state: TrainState, batch: Batch, metrics: Metrics, images: Any) -> tuple[TrainState, Any]:
        metrics = metrics | {"learning/reference_age": batch.age.astype(jnp.float32).mean()}
        return dataclasses.replace(state, references=images), metrics


def references_of(config: RewardLearning) -> Fresh:
    """The references that a configuration asks for."""
    if config.reference_max_age:
        return Stale(config)
    if config.reference_cache:
        return Cached(config)
    return Matched(config) if config.matched_reference else Fresh(config)
