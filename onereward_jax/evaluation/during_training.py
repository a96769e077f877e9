"""Ground-truth scores of a policy during training, which show reward hacking that the reward hides."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import Source, samples_from
from onereward_jax.evaluation.evaluate import generate_images
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.proving_ground import overall

# First of the held-out samples for this; the final evaluation uses others, so that nobody tunes settings on them.
FIRST_SAMPLE = 100_000


def ground_truth_gain(
    config: RewardFeedback, pipeline: FillPipeline, source: Source
) -> Callable[[Any], dict[str, float]]:
    """Make a function of the policy's parameters that returns its ground-truth gain over the base.

    Args:
      source: source of held-out samples.

    Returns:
      params -> {"evaluation/<task>/truth_gain": mean over `config.evaluation.scenes_while_training` samples of the
      policy's ground-truth score minus the base's, from the same noise, in [−1, 1]}; nothing where the source has no
      ground truth.
    """
    truth, count = source.ground_truth, config.evaluation.scenes_while_training
    if truth is None:
        return lambda params: {}
    samples = {task: samples_from(source, task, FIRST_SAMPLE, count) for task in source.tasks}

    def scores(params: Any) -> dict[str, float]:
        means = {}
        for task, of_task in samples.items():
            images = generate_images(pipeline, params, of_task, config, batch_size=count, quiet=True)
            means[task] = float(np.mean([overall(row[0]) for row in truth.score_images(of_task, images[:, None])]))
        return means

    @functools.cache  # lazy: a run that has ended, or is killed before the first evaluation, makes no image
    def base() -> dict[str, float]:
        return scores(None)

    def gain(params: Any) -> dict[str, float]:
        return {f"evaluation/{task}/truth_gain": mean - base()[task] for task, mean in scores(params).items()}

    return gain
