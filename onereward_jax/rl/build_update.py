"""The update of a configuration: the one program that `onereward train` runs and `onereward plan` compiles."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.flow.family import PolicyFamily
from onereward_jax.judge.scorer import Scorer
from onereward_jax.models.lora import LoRA
from onereward_jax.rl.batch import Batch
from onereward_jax.rl.reference_refresh import NO_PREFERENCE
from onereward_jax.rl.rollout import Frozen
from onereward_jax.rl.step import make_reward_gradient, make_step
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state


class Update(NamedTuple):
    """What training starts from and repeats; pure functions all.

    Attributes:
      params: the transformer's parameters, or for an adapter their shapes -> the parameters to train.
      frozen: parameters of (transformer, vae, judge) -> `Frozen`; the transformer's are kept with an adapter alone.
      create: parameters to train -> `TrainState` before the first update.
      reward_gradient: (state, frozen, batch) -> gradient of Eq. 5 alone, see `rl.step.make_reward_gradient`.
      step: (state, frozen, batch) -> (state, metrics), or with cached references (state, (metrics, images)); see
        `rl.step.make_step`.
    """

    params: Callable[[Any], Any]
    frozen: Callable[[Any, Any, Any], Frozen]
    create: Callable[[Any], TrainState]
    step: Callable[[TrainState, Frozen, Batch], tuple[TrainState, Any]]
    reward_gradient: Callable[[TrainState, Frozen, Batch], Any]


def make_update(config: RewardFeedback, family: PolicyFamily, judge: Scorer) -> Update:
    """The update that a configuration describes.

    Args:
      family: of the policy; its modules have `computation(config)` among their fields, the transformer
        `attention_of(config)`, too.
      judge: `Judge.scorer` of one that has `computation(config)`.
    """
    optimizer, adapters = make_optimizer(**config.optimizer), adapters_of(config)
    step_config = config.rl
    fixed, earned = config.algorithm == "fixed", config.algorithm == "earned"
    # What is frozen is kept as it computes; what is trained has float32 masters.
    dtype = jnp.dtype(frozen_dtype(config))
    kept = lambda params: jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)

    def params(transformer: Any) -> Any:
        return adapters.init(transformer, jax.random.key(config.seed)) if adapters.rank else transformer

    def frozen(transformer: Any, vae: Any, judge: Any) -> Frozen:
        return Frozen(vae=kept(vae), judge=kept(judge), base=kept(transformer) if adapters.rank else None)

    def create(params: Any) -> TrainState:
        state = create_state(params, optimizer, config.seed, reference=earned or (fixed and not adapters.rank))
        if fixed and adapters.rank:
            state = dataclasses.replace(state, reference={})
        if earned:
            state = dataclasses.replace(state, earned=jnp.float32(NO_PREFERENCE))
        if step_config.reference_max_age:
            images = jnp.zeros((config.train.batch_size, *[config.data.resolution] * 2, 3), jnp.float32)
            state = dataclasses.replace(state, references=images)
        return state

    step = make_step(family, judge, optimizer, step_config, adapters.scale)
    return Update(params, frozen, create, step, make_reward_gradient(family, judge, step_config, adapters.scale))


def adapters_of(config: RewardFeedback) -> LoRA:
    return LoRA(**config.lora)


def computation(config: RewardFeedback) -> dict[str, Any]:
    """Fields that `config.model` sets in every module of the update."""
    return {"dtype": jnp.dtype(config.model.dtype), "remat": config.model.remat}


def attention_of(config: RewardFeedback) -> dict[str, Any]:
    """Fields that `config.model` sets in the transformer alone; the others' attention has masks or other heads."""
    fields: dict[str, Any] = {"attention_implementation": config.model.attention}
    if config.model.attention_blocks is not None:
        fields["attention_blocks"] = config.model.attention_blocks
    return fields


def frozen_dtype(config: RewardFeedback) -> str:
    """In which dtype parameters are kept that no update changes."""
    return "bfloat16" if config.model.dtype == "bfloat16" else "float32"
