"""The settings of an update, under their former name."""

from onereward_jax.config.schema import RewardLearning as StepConfig

__all__ = ["StepConfig"]
