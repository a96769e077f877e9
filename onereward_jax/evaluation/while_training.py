"""The truth about a policy while it is trained: what the reward alone does not show."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from onereward_jax import tasks
from onereward_jax.evaluation.evaluate import pictures_of
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.proving_ground import ProvingGround, overall
from onereward_jax.proving_ground.parallel import score_all

# Held-out scenes that the evaluation at the end does not use: nobody shall choose settings by those.
FIRST_SCENE = 100_000


def watch_truth(config: ConfigDict, pipeline: FillPipeline) -> Callable[[Any], dict[str, float]]:
    """A function of the policy's parameters that says how much better than the base it is by truth.

    Returns:
      params -> {"evaluation/<task>/truth_gain": mean over `config.evaluation.watched_scenes` scenes of the policy's
      truth minus the base's, from the same noise, in [−1, 1]}.
    """
    ground = ProvingGround("test", config.data.resolution, config.data.seed, config.data.photos or None)
    count = config.evaluation.watched_scenes
    scenes = {task: [ground.scene(FIRST_SCENE + index, task) for index in range(count)] for task in tasks.TASKS}

    def truth(params: Any) -> dict[str, float]:
        means = {}
        for task, of_task in scenes.items():
            pictures = pictures_of(pipeline, params, of_task, config, batch_size=count, quiet=True)
            means[task] = float(np.mean([overall(row[0]) for row in score_all(of_task, pictures[:, None])]))
        return means

    @functools.cache  # at the first look: a run that has ended, or is killed before it, draws nothing
    def base() -> dict[str, float]:
        return truth(None)

    def gain(params: Any) -> dict[str, float]:
        return {f"evaluation/{task}/truth_gain": mean - base()[task] for task, mean in truth(params).items()}

    return gain
