"""Ground-truth scores of a policy while it is trained: what the reward alone does not show."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import Source, samples_from
from onereward_jax.evaluation.evaluate import generate_images
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.proving_ground import overall

# Held-out samples that the evaluation at the end does not use: nobody shall choose settings by those.
FIRST_SAMPLE = 100_000


def ground_truth_gain(
    config: RewardFeedback, pipeline: FillPipeline, source: Source
) -> Callable[[Any], dict[str, float]]:
    """Make a function of the policy's parameters that says by how much its images beat the base's.

    Args:
      source: of held-out samples.

    Returns:
      params -> {"evaluation/<task>/truth_gain": mean over `config.evaluation.watched_scenes` samples of the policy's
      ground-truth score minus the base's, from the same noise, in [−1, 1]}; nothing where the source has no ground
      truth.
    """
    truth, count = source.ground_truth, config.evaluation.watched_scenes
    if truth is None:
        return lambda params: {}
    samples = {task: samples_from(source, task, FIRST_SAMPLE, count) for task in source.tasks}

    def scores(params: Any) -> dict[str, float]:
        means = {}
        for task, of_task in samples.items():
            images = generate_images(pipeline, params, of_task, config, batch_size=count, quiet=True)
            means[task] = float(np.mean([overall(row[0]) for row in truth.score_images(of_task, images[:, None])]))
        return means

    @functools.cache  # at the first evaluation: a run that has ended, or is killed before it, makes no image
    def base() -> dict[str, float]:
        return scores(None)

    def gain(params: Any) -> dict[str, float]:
        return {f"evaluation/{task}/truth_gain": mean - base()[task] for task, mean in scores(params).items()}

    return gain
