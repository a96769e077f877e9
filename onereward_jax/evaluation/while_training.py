"""The truth about a policy while it is trained: what the reward alone does not show."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import samples_from
from onereward_jax.evaluation.evaluate import generate_images
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.proving_ground import overall
from onereward_jax.proving_ground.source import open_source

# Held-out samples that the evaluation at the end does not use: nobody shall choose settings by those.
FIRST_SAMPLE = 100_000


def watch_truth(config: RewardFeedback, pipeline: FillPipeline) -> Callable[[Any], dict[str, float]]:
    """A function of the policy's parameters that says how much better than the base it is by truth.

    Returns:
      params -> {"evaluation/<task>/truth_gain": mean over `config.evaluation.watched_scenes` scenes of the policy's
      truth minus the base's, from the same noise, in [−1, 1]}; nothing where the data have no ground truth.
    """
    source = open_source(config, "test")
    scores, count = source.ground_truth, config.evaluation.watched_scenes
    if scores is None:
        return lambda params: {}
    samples = {task: samples_from(source, task, FIRST_SAMPLE, count) for task in source.tasks}

    def truth(params: Any) -> dict[str, float]:
        means = {}
        for task, of_task in samples.items():
            images = generate_images(pipeline, params, of_task, config, batch_size=count, quiet=True)
            means[task] = float(np.mean([overall(row[0]) for row in scores.score_images(of_task, images[:, None])]))
        return means

    @functools.cache  # at the first look: a run that has ended, or is killed before it, draws nothing
    def base() -> dict[str, float]:
        return truth(None)

    def gain(params: Any) -> dict[str, float]:
        return {f"evaluation/{task}/truth_gain": mean - base()[task] for task, mean in truth(params).items()}

    return gain
