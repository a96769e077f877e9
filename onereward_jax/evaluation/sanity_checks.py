"""Sanity checks of autoencoder and base model by ground truth, before anything is trained on them.

They measure how much of a right answer's score survives the autoencoder, and the base model's headroom: how much better
the best of a few candidates is than one of them. Without headroom a judge has nothing to teach.
"""

from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import write_json
from onereward_jax.candidates.simulated_preferences import CANDIDATES
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import ground_truth_of, samples_from
from onereward_jax.evaluation import good_same_bad
from onereward_jax.evaluation.generation import generate_images
from onereward_jax.evaluation.judge_predictions import batches_of
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow import conditioning
from onereward_jax.images.grid import image_grid, mask_overlay, write_png
from onereward_jax.proving_ground import overall
from onereward_jax.proving_ground.source import open_source


def run_sanity_checks(config: RewardFeedback, workdir: Path) -> dict[str, Any]:
    """Check the model in `config.model.base` on `config.evaluation.scenes_per_task` held-out scenes per task.

    Writes workdir/sanity_checks.json and workdir/base.png (source, target, reconstruction of the target, four
    candidates).

    Returns:
      {"autoencoder": {task: {dimension: {"target", "reconstruction"}}} (mean ground-truth scores),
       "base": {task: {"truth": {dimension: mean score}, "best_of_4": good, same and bad of the best candidate against
       the first}}}.

    Raises:
      UserError: the data have no ground truth.
    """
    settings = config.evaluation
    source = open_source(config, "test")
    truth = ground_truth_of(source, "`onereward sanity-checks`")
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    checks: dict[str, Any] = {"autoencoder": {}, "base": {}}
    rows: list[list[np.ndarray]] = []
    for task in source.tasks:
        samples = samples_from(source, task, 0, settings.scenes_per_task)
        targets = np.stack([sample.arrays("target")["target"] for sample in samples])
        decoded = np.concatenate(
            [
                np.asarray(conditioning.reconstruct(pipeline.vae, pipeline.params["vae"], targets[rows]))
                for rows in batches_of(len(samples), settings.batch_size)
            ]
        )[: len(samples)]
        candidates = [generate_images(pipeline, None, samples, config, number) for number in range(CANDIDATES)]
        of_targets, of_reconstructions, answers, comparisons = [], [], [], []
        shown = zip(targets, decoded, *candidates, strict=True)
        for target_scores, decoded_scores, *scores in truth.score_images(samples, shown):
            of_targets.append(target_scores)
            of_reconstructions.append(decoded_scores)
            best = max(scores, key=overall)
            answers += scores
            comparisons.append(good_same_bad.Comparison(task, base=scores[0], policy=best))
        target, reconstruction = _means(of_targets), _means(of_reconstructions)
        checks["autoencoder"][task] = {
            dimension: {"target": target[dimension], "reconstruction": reconstruction[dimension]}
            for dimension in target
        }
        checks["base"][task] = {"truth": _means(answers), "best_of_4": good_same_bad.good_same_bad(comparisons)[task]}
        for row, sample in enumerate(samples[: settings.images_per_task]):
            left = [mask_overlay(sample.image, sample.mask), targets[row], decoded[row]]
            rows.append(left + [images[row] for images in candidates])
    columns = ["source", "target", "decoded", *(f"base {number + 1}" for number in range(CANDIDATES))]
    write_png(workdir / "base.png", image_grid(rows, columns, scale=2))
    write_json(workdir / "sanity_checks.json", checks)
    return checks


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    """Average each dimension over the scenes that have it."""
    names = dict.fromkeys(name for values in scores for name in values)
    return {name: float(np.mean([values[name] for values in scores if name in values])) for name in names}
