"""The randomness of an update: every sample's from its global index, whatever its company."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardLearning
from onereward_jax.rl.batch import Batch
from onereward_jax.training.state import TrainState

# What a sample's keys are for, in their order.
_REFERENCE_NOISE, _POLICY_NOISE, _MATCHING_NOISE, _INDEX, _SHIFT, _JUDGE_NOISE = range(6)


@flax.struct.dataclass
class PredictionDraw:
    """What one prediction has for itself.

    Attributes:
      keys: (B, 6), of each sample.
      stop: int32 (B,), the index t at which the policy stops and predicts.
    """

    keys: jax.Array
    stop: jax.Array

    @property
    def shift_keys(self) -> jax.Array:
        return self.keys[:, _SHIFT]

    @property
    def noise_keys(self) -> jax.Array:
        """Of the noise on the images that the judge sees."""
        return self.keys[:, _JUDGE_NOISE]

    def gradient_steps(self, count: int, first: int, last: int, bias: float) -> jax.Array:
        """Of each sample `count` different indices from `first` to `last`, int32 (count, B).

        They are drawn one after the other, each from those left with weights (i + 1)^bias (by Gumbel noise on their
        logarithms, of which the largest are taken: Vieira 2014).
        """
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(self.keys[:, _INDEX])
        indices = jnp.arange(first, last + 1)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, indices.shape))(keys)
        return indices[jax.lax.top_k(bias * jnp.log(indices + 1.0) + noise, count)[1]].T

    def matching_noise(self, shape: tuple[int, ...]) -> jax.Array:
        """ε of flow matching, (B, *shape)."""
        return _normal(self.keys[:, _MATCHING_NOISE], shape)


class Draws(NamedTuple):
    """ε1, ε2 and t of Algorithm 1.

    Attributes:
      reference_noise, policy_noise: (B, N, 4C), packed.
      predictions: K of them.
    """

    reference_noise: jax.Array
    policy_noise: jax.Array
    predictions: list[PredictionDraw]


def draw(state: TrainState, batch: Batch, shape: tuple[int, int], config: RewardLearning) -> Draws:
    """Draws everything that an update's samples need.

    Args:
      shape: (N, 4C) of a sample's packed latents.
    """
    split = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(state.key, index), 6))
    keys = split(batch.index)
    reference_keys = keys if batch.condition is None else split(batch.condition)
    reference_noise = _normal(reference_keys[:, _REFERENCE_NOISE], shape)
    policy_noise = _normal(keys[:, _POLICY_NOISE], shape)
    predictions = [_draw_prediction(state, keys, number, config) for number in range(config.predictions)]
    return Draws(reference_noise, policy_noise, predictions)


def _draw_prediction(state: TrainState, keys: jax.Array, number: int, config: RewardLearning) -> PredictionDraw:
    again = lambda key: jax.random.fold_in(key, number) if number else key
    keys = jax.vmap(jax.vmap(again))(keys)
    if config.index_per_sample:
        index_keys = keys[:, _INDEX]
    else:
        index_keys = jnp.broadcast_to(again(jax.random.fold_in(state.key, -1 - state.step)), keys.shape[:1])
    index = lambda key: jax.random.randint(key, (), config.first_index, config.last_index + 1)
    return PredictionDraw(keys, jax.vmap(index)(index_keys))


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
