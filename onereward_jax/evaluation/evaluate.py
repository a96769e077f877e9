"""Evaluate a run on held-out samples: images, ground-truth scores, judge, evaluation.json, report.html."""

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from onereward_jax import tasks
from onereward_jax.candidates.simulated_preferences import make_preferences
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import GroundTruth, Source, ground_truth_of, samples_from
from onereward_jax.errors import UserError
from onereward_jax.evaluation import accuracy, good_same_bad
from onereward_jax.evaluation.judge_predictions import batches_of, judge_pairs, judge_views
from onereward_jax.evaluation.report import plots
from onereward_jax.evaluation.report.run_report import ExampleRow, Setting, write_examples, write_report
from onereward_jax.evaluation.results import write_evaluation
from onereward_jax.fill.diffusers_io import load_transformer
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.judge.ensemble import ensemble
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import read_pairs
from onereward_jax.proving_ground.scorer import TIE_MARGIN
from onereward_jax.proving_ground.source import open_source
from onereward_jax.training.metrics import peak_memory_gib

PACKAGES = ("onereward-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def evaluate(config: RewardFeedback, workdir: Path) -> dict[str, Any]:
    """Compare the trained policy of `workdir` with its base, and measure the judge.

    Writes workdir/evaluation.json, workdir/report.html and the report's figures in workdir/figures.

    Raises:
      FileNotFoundError, UserError: the run has not ended, a model is missing, or the data have no ground truth.
    """
    started = time.perf_counter()
    trained = workdir / "export"
    if not (workdir / "training.json").exists():
        raise FileNotFoundError(f"{workdir} holds no trained policy: run `onereward train` with this --workdir first")
    training = json.loads((workdir / "training.json").read_text())
    if training["step"] != config.train.num_steps:
        raise UserError(
            f"the policy in {workdir} has {training['step']} steps, not train.num_steps {config.train.num_steps}:"
            " finish `onereward train`, or set train.num_steps to the number it has"
        )
    source = open_source(config, "test")
    truth = ground_truth_of(source, "`onereward evaluate`")
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    judge = ensemble(Judge.from_pretrained(config.model.judge, "float32"), config.model.judge_adapters)
    settings = config.evaluation
    own = pipeline.params["transformer"]
    base, policy = None, load_transformer(trained / settings.weights, own)  # None: the pipeline's own
    reference = base if config.algorithm == "fixed" else load_transformer(trained / "ema", own)

    comparisons, examples = [], []
    for task in source.tasks:
        samples = samples_from(source, task, 0, settings.scenes_per_task)
        before, after = (generate_images(pipeline, params, samples, config) for params in (base, policy))
        shown = generate_images(pipeline, reference, samples[: settings.images_per_task], config)
        of_task = _compared(judge, truth, samples, (before, after), config)
        comparisons += of_task
        examples += [_example(*row) for row in zip(samples, before, shown, after, of_task, strict=False)]
    judged = _judged(judge, source, workdir / "preferences", config)
    evaluation = {
        "algorithm": config.algorithm,
        "what": settings.weights,
        "judge_accuracy": accuracy.table(judged),
        "judge_ceiling": accuracy.table(judged, "ceiling"),
        "gsb": good_same_bad.good_same_bad(comparisons),
        "seconds": {"train": training["seconds"], "evaluate": time.perf_counter() - started},
        "peak_memory_gib": max(training["peak_memory_gib"], peak_memory_gib()),
        "tie_margin": TIE_MARGIN,
        "judge": judged,
        "truth": good_same_bad.scores_by_dimension(comparisons),
        "judge_view": good_same_bad.judge_preferences(comparisons),
    }
    write_evaluation(workdir / "evaluation.json", evaluation)
    plots.save_figures(workdir / "figures", workdir / "metrics.jsonl", evaluation)
    write_examples(workdir / "figures" / "examples.png", examples)
    write_report(
        workdir / "report.html",
        metrics_jsonl=workdir / "metrics.jsonl",
        evaluation=evaluation,
        examples=examples,
        examples_note=f"The first {settings.images_per_task} held-out scenes of each task, not chosen.",
        setting=Setting(
            config=config.to_dict(),
            versions=_versions(),
            credits=source.credits,
        ),
    )
    return evaluation


def _compared(
    judge: Judge,
    truth: GroundTruth,
    samples: Sequence[Sample],
    images: tuple[np.ndarray, np.ndarray],
    config: RewardFeedback,
) -> list[good_same_bad.Comparison]:
    """Compare the base's and the policy's images of one task, by ground truth and by the judge."""
    before, after = images
    texts = [(sample.task, sample.prompt) for sample in samples]
    batch_size = config.evaluation.batch_size
    p_yes, p_yes_swapped = judge_views(judge, texts, after, before, batch_size, config.question_length)
    scores = truth.score_images(samples, zip(before, after, strict=True))
    return [
        good_same_bad.Comparison(sample.task, *of_both, *views)
        for sample, of_both, *views in zip(samples, scores, p_yes, p_yes_swapped, strict=True)
    ]


def _judged(judge: Judge, source: Source, directory: Path, config: RewardFeedback) -> dict[str, Any]:
    """Measure the judge's accuracy on preferences over held-out samples, which are made in `directory`."""
    settings = config.evaluation
    make_preferences(
        config,
        directory,
        "test",
        model=config.model.base,
        planted=0,
        base=settings.judge_scenes_per_task,
        replace=True,
    )
    predictions = judge_pairs(
        judge,
        read_pairs(directory),
        batch_size=settings.batch_size,
        question_length=config.question_length,
        source=source,
    )
    return accuracy.judge_accuracy(predictions)


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
    settings = config.evaluation
    batches = list(batches_of(len(samples), batch_size or settings.batch_size))
    task = samples[0].task
    key = jax.random.fold_in(jax.random.key(config.seed), tasks.TASKS.index(task) + len(tasks.TASKS) * candidate)
    answers = []
    for rows in tqdm(batches, desc=f"{task}", leave=False, disable=quiet):
        batch = [samples[row] for row in rows]
        images = np.stack([sample.image for sample in batch])
        made = pipeline.generate(
            images,
            np.stack([sample.mask for sample in batch]),
            [sample.prompt for sample in batch],
            sample_noise(key, rows, latent_shape(pipeline.vae, *images.shape[1:3])),
            transformer_params=params,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            true_cfg_scale=settings.true_cfg_scale,
            negative_prompt=[sample.negative_prompt for sample in batch],
            max_sequence_length=config.max_sequence_length,
        )
        answers.append(np.round(made * 255).astype(np.uint8))
    return np.concatenate(answers)[: len(samples)]


def _example(
    sample: Sample, base: np.ndarray, reference: np.ndarray, policy: np.ndarray, comparison: good_same_bad.Comparison
) -> ExampleRow:
    both = {d: (p + 1 - comparison.p_yes_swapped[d]) / 2 for d, p in comparison.p_yes.items()}
    return ExampleRow(
        task=sample.task,
        prompt=sample.prompt,
        source=sample.image,
        mask=sample.mask,
        base=base,
        reference=reference,
        policy=policy,
        scores={d: (comparison.base[d], comparison.policy[d]) for d in comparison.base},
        p_yes=both,
        verdict=good_same_bad.verdict(comparison),
    )


def _versions() -> dict[str, str]:
    devices = jax.devices()
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": f"{len(devices)} × {devices[0].device_kind}",
    }
