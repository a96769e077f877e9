"""Reward ascent: follows the judge's gradient without a policy, as a check before any policy is trained.

Moves the latents of the base's images up the judge's objective (Eq. 5), against other images of the base. If the
ground-truth score does not rise with the judge here, it will not rise in reward feedback learning either.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from onereward_jax.atomic_files import write_json
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import ground_truth_of, samples_from
from onereward_jax.evaluation import good_same_bad
from onereward_jax.evaluation.during_training import FIRST_SAMPLE
from onereward_jax.evaluation.generation import generate_images
from onereward_jax.evaluation.judge_predictions import batches_of, judge_views
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow import conditioning
from onereward_jax.images.grid import image_grid, mask_overlay, write_png
from onereward_jax.judge.augment import noise_together, shift_together
from onereward_jax.judge.ensemble import ensemble
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.proving_ground.source import open_source
from onereward_jax.rl.reward_loss import reward_loss


def run_reward_ascent(config: RewardFeedback, workdir: Path) -> dict[str, Any]:
    """Ascend the reward of the judge in `config.model.judge` on images by the model in `config.model.base`.

    `config.ascent`: `scenes_per_task` held-out scenes, `num_steps` steps along the gradient, each moving the normalised
    latents of an image by `step_size` in root mean square.

    Writes workdir/reward_ascent.json and workdir/reward_ascent.png (source, reference, base, base after the ascent).

    Returns:
      {task: {"good", "same", "bad", "n", "ci95"}, the ground truth's verdict on images after the ascent against before,
      and "judge": {"before", "after"}, the judge's mean P(better than the reference)}.

    Raises:
      UserError: the data have no ground truth.
    """
    settings, size = config.ascent, config.evaluation.batch_size
    source = open_source(config, "test")
    truth = ground_truth_of(source, "`onereward reward-ascent`")
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    judge = ensemble(Judge.from_pretrained(config.model.judge, "float32"), config.model.judge_adapters)
    ascend = make_ascent(pipeline, judge, config)
    found: dict[str, Any] = {}
    rows: list[list[np.ndarray]] = []
    for task in source.tasks:
        samples = samples_from(source, task, FIRST_SAMPLE, settings.scenes_per_task)
        before, reference = (generate_images(pipeline, None, samples, config, candidate) for candidate in range(2))
        prompts = [sample.prompt for sample in samples]
        parts = []
        for batch in tqdm(list(batches_of(len(samples), size)), desc=f"ascending {task}"):
            asked = question_batch(judge, [task] * size, [prompts[row] for row in batch], config.question_length)
            parts.append(ascend(before[batch], reference[batch], asked))
        after = np.concatenate(parts)[: len(samples)]
        scores = truth.score_images(samples, zip(before, after, strict=True))
        comparisons = [good_same_bad.Comparison(task, base=row[0], policy=row[1]) for row in scores]
        texts = [(task, prompt) for prompt in prompts]
        views = [
            judge_views(judge, texts, images, reference, size, config.question_length)[0] for images in (before, after)
        ]
        means = [float(np.mean([p for view in each for p in view.values()])) for each in views]
        found[task] = good_same_bad.good_same_bad(comparisons)[task] | {
            "judge": {"before": means[0], "after": means[1]}
        }
        for row, sample in enumerate(samples[: config.evaluation.images_per_task]):
            rows.append([mask_overlay(sample.image, sample.mask), reference[row], before[row], after[row]])
    write_png(workdir / "reward_ascent.png", image_grid(rows, ["source", "reference", "base", "ascended"], scale=2))
    write_json(workdir / "reward_ascent.json", found)
    return found


def make_ascent(pipeline: FillPipeline, judge: Judge, config: RewardFeedback) -> Any:
    """Compile a function (images, reference, questions) -> images after the ascent; uint8 (B, H, W, 3)."""
    settings = config.ascent

    @jax.jit
    def ascend(vae_params, judge_params, images, reference, asked):
        decode = lambda latents: conditioning.to_unit_range(
            conditioning.decode_latents(pipeline.vae, vae_params, latents)
        )

        def loss(latents, key):
            shift_keys, noise_keys = jax.random.split(key, (2, len(latents)))
            first, second = shift_together(shift_keys, decode(latents), reference / 255.0, config.rl.judge_shift)
            first, second = noise_together(noise_keys, first, second, config.rl.judge_noise)
            log_p = judge.scorer(judge_params, first, second, asked)
            # Each image ascends by itself: the sum, not the mean over the batch.
            return len(latents) * reward_loss(jnp.exp(log_p[..., 0]), asked.weights, config.rl.threshold)

        def step(latents, key):
            gradient = jax.grad(loss)(latents, key)
            size = jnp.sqrt(jnp.square(gradient).mean(axis=(1, 2, 3), keepdims=True))
            return latents - settings.step_size * gradient / (size + 1e-12), None

        start = conditioning.encode_image(pipeline.vae, vae_params, conditioning.to_model_range(images))
        keys = jax.random.split(jax.random.key(config.seed), settings.num_steps)
        latents, _ = jax.lax.scan(step, start, keys)
        return jnp.round(jnp.clip(decode(latents), 0.0, 1.0) * 255).astype(jnp.uint8)

    return lambda images, reference, asked: np.asarray(
        ascend(pipeline.params["vae"], judge.params, jnp.asarray(images), jnp.asarray(reference), asked)
    )
