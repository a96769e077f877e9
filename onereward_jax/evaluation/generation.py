"""A policy's answers to requests, from noise that is the same for every policy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from onereward_jax import tasks
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.sample import Sample
from onereward_jax.evaluation.judge_predictions import batches_of
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow.conditioning import latent_shape


def generate_images(
    pipeline: FillPipeline,
    params: Any,
    samples: Sequence[Sample],
    config: RewardFeedback,
    candidate: int = 0,
    batch_size: int | None = None,
    quiet: bool = False,
) -> np.ndarray:
    """Answer samples with the model, as `config.evaluation` says.

    The noise of a sample is the same for every parameter set.

    Args:
      params: parameters of the transformer; the pipeline's own if None.
      samples: S samples of one task and one size (H, W), from any source.
      candidate: number of the answer; each has different noise.
      batch_size: overrides `config.evaluation.batch_size`.
      quiet: show no progress bar.

    Returns:
      uint8 (S, H, W, 3).
    """
    batches = list(batches_of(len(samples), batch_size or config.evaluation.batch_size))
    answers = [
        generate_batch(pipeline, params, [samples[row] for row in rows], rows, config, candidate)
        for rows in tqdm(batches, desc=samples[0].task, leave=False, disable=quiet)
    ]
    return np.concatenate(answers)[: len(samples)]


def generate_batch(
    pipeline: FillPipeline,
    params: Any,
    samples: Sequence[Sample],
    numbers: Sequence[int] | np.ndarray,
    config: RewardFeedback,
    candidate: int = 0,
) -> np.ndarray:
    """Answer a batch of B samples of one task and one size.

    Args:
      numbers: of the samples within their task, which with the seed, the task and `candidate` determine the noise.

    Returns:
      uint8 (B, H, W, 3).
    """
    settings = config.evaluation
    task = samples[0].task
    key = jax.random.fold_in(jax.random.key(config.seed), tasks.TASKS.index(task) + len(tasks.TASKS) * candidate)
    images = np.stack([sample.image for sample in samples])
    made = pipeline.generate(
        images,
        np.stack([sample.mask for sample in samples]),
        [sample.prompt for sample in samples],
        sample_noise(key, numbers, latent_shape(pipeline.vae, *images.shape[1:3])),
        transformer_params=params,
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        negative_prompt=[sample.negative_prompt for sample in samples],
        max_sequence_length=config.max_sequence_length,
    )
    return np.round(made * 255).astype(np.uint8)
