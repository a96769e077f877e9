"""Evaluate policies on requests: images, judges, meters, ground-truth scores, evaluation.json, report.html."""

import gc
import json
import platform
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from onereward_jax.atomic_files import fingerprint
from onereward_jax.candidates.simulated_preferences import make_preferences
from onereward_jax.config.find import find_model
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import read_requests
from onereward_jax.data.requests.source import HeldOut, Requests
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source, ground_truth_of
from onereward_jax.errors import UserError
from onereward_jax.evaluation import accuracy, good_same_bad, judge_verdicts
from onereward_jax.evaluation.comparison import Comparison
from onereward_jax.evaluation.judge_predictions import judge_pairs
from onereward_jax.evaluation.judge_verdicts import Answers
from onereward_jax.evaluation.meters.all_meters import chosen_meters
from onereward_jax.evaluation.meters.meter import Meter, compared
from onereward_jax.evaluation.report import plots
from onereward_jax.evaluation.report.run_report import ExampleRow, Setting, write_examples, write_report
from onereward_jax.evaluation.results import write_evaluation
from onereward_jax.fill.policies import Policy
from onereward_jax.given_files import read_json
from onereward_jax.judge.ensemble import ensemble
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import read_pairs
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground.scorer import TIE_MARGIN
from onereward_jax.proving_ground.source import open_source
from onereward_jax.training.metrics import peak_memory_gib
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import module_from_directory
from onereward_jax.weights.peft_adapters import PEFT_CONFIG, is_adapter

PACKAGES = ("onereward-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


# ----------------------------------------------------------------------------------------------- any policies, any data


def evaluate_policies(
    policy: Policy,
    baseline: Policy,
    source: Source,
    config: RewardFeedback,
    out: Path,
    judges: Sequence[str] = (),
    meters: Sequence[Meter] = (),
    per_task: int | None = None,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Compare two policies on the requests of a source, by judges and meters.

    Writes out/evaluation.json, out/report.html and out/figures; what they are computed from lies beside them, and a
    call that was killed goes on where it stopped. Of several processes, all call this alike, and share `out`.

    Args:
      config: its `evaluation`, `seed` and `max_sequence_length`.
      judges: directories or hub repositories of judges, or adapters of some.
      per_task: the first requests of each task; None is all.
      dtype: of policies' and judges' parameters and products.

    Returns:
      the evaluation, see `results.validate_evaluation`, with "judges": {name: `judge_verdicts.summary`} and "meters":
      {name: `meter.compared`}; of several processes, the primary's.

    Raises:
      FileNotFoundError, UserError: a model is missing or does not fit, or `out` holds another evaluation.
    """
    started = time.perf_counter()
    names = _names(judges)
    for of in (policy, baseline):
        of.check()
    for path in names.values():
        module_from_directory(_judge_files(path)[0], "judge")
    comparison = Comparison(source, config, out, per_task, dtype)
    for name, of in (("base", baseline), ("policy", policy)):
        comparison.answer(name, of)
        gc.collect()
    answers = {}
    for name, path in names.items():
        judge, about = _open_judge(path, comparison)
        answers[name] = comparison.ask(name, judge, about)
        del judge
        gc.collect()
    found = {
        meter.name: compared(meter, *(comparison.measure(name, meter) for name in ("base", "policy")))
        for meter in meters
        if set(meter.tasks) & {item.task for item in comparison.items}
    }
    if not hosts.is_primary():
        return {}
    evaluation = {
        "algorithm": "comparison",
        "what": "policy",
        "policy": str(policy),
        "base": str(baseline),
        "judge_accuracy": {},
        "judge_ceiling": {},
        "gsb": {},
        "seconds": {"train": None, "evaluate": time.perf_counter() - started},
        "peak_memory_gib": peak_memory_gib(),
        "requests": {task: sum(i.task == task for i in comparison.items) for task in source.tasks},
        "judges": {name: judge_verdicts.summary(of_judge) for name, of_judge in answers.items()},
        "meters": found,
    }
    first = next(iter(answers.values()), None)
    _write(out, comparison, evaluation, _examples(comparison, answers=first), {"judges": names})
    return evaluation


def requests_at(config: RewardFeedback, path: Path, workdir: Path) -> Source:
    """Read requests to be compared on: each is always the same sample, for each of its tasks.

    Args:
      config: its `seed`, `train.batch_size` and `data`, see `data.requests.source.Requests`.
      path: see docs/reference/requests.md.
      workdir: see `data.requests.read.read_requests`.

    Raises:
      FileNotFoundError, UserError: there are no requests, or too many bad ones.
    """
    data = config.data
    defaults = Defaults(prompt=data.caption)
    requests = read_requests(path, defaults, data.bad_share, data.inside_only, workdir=workdir)
    return HeldOut(Requests(config, requests), requests)


def _names(judges: Sequence[str]) -> dict[str, str]:
    """{name: path} of judges: the last parts of their paths, with a number where two are alike."""
    names: dict[str, str] = {}
    for path in judges:
        stem = name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(Path(path).parts[-2:])).strip("-.") or "judge"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names[name] = path
    return names


def _judge_files(path: str) -> tuple[Path, Path | None]:
    """The directory of a judge and None; or of an adapter's judge, and the adapter."""
    found = find_model(path)
    if not is_adapter(found):
        return model_directory(found), None
    file = found / PEFT_CONFIG
    base = read_json(file).get("base_model_name_or_path") if file.is_file() else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{path} is an adapter that does not name its judge: write it into {PEFT_CONFIG}")
    return model_directory(find_model(base)), found


def _open_judge(path: str, comparison: Comparison) -> tuple[Judge, str]:
    """Read a judge, or an adapter of one, onto the mesh; and identify its files."""
    directory, adapter = _judge_files(path)
    judge = Judge.from_pretrained(directory, comparison.dtype, lora=adapter, mesh=comparison.mesh)
    return judge, " ".join(fingerprint(part) for part in (directory, adapter) if part is not None)


# ------------------------------------------------------------------------------------------------------- a finished run


def evaluate(config: RewardFeedback, workdir: Path) -> dict[str, Any]:
    """Compare the trained policy of `workdir` with its base on what the run held out, and measure the judge.

    On the proving ground, by its ground truth too: writes workdir/evaluation.json, workdir/report.html, the report's
    figures in workdir/figures, and what they are computed from in workdir/evaluation. On a user's own requests, see
    `evaluate_policies`: all of it lies in workdir/evaluation. Of several processes, all call this alike.

    Raises:
      FileNotFoundError, UserError: the run has not ended, or a model is missing.
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
    source, settings, base = open_source(config, "test"), config.evaluation, config.model.base
    policy = Policy.at(trained / settings.weights, base)
    if source.ground_truth is None:
        given = (config.model.judge, *config.model.judge_adapters, settings.other_judge)
        judges = [path for path in given if path]
        out, count = workdir / "evaluation", settings.scenes_per_task
        return evaluate_policies(policy, Policy(base), source, config, out, judges, chosen_meters(), count)
    truth = ground_truth_of(source, "`onereward evaluate`")
    comparison = Comparison(source, config, workdir / "evaluation", settings.scenes_per_task, "float32", replace=True)
    shown = [item for item in comparison.items if item.number < settings.images_per_task]
    comparison.answer("base", Policy(base))
    comparison.answer("policy", policy)
    exported = {"dynamic": "ema", "earned": "reference"}.get(config.algorithm)
    reference = Policy(base) if exported is None else Policy.at(trained / exported, base)
    comparison.answer("reference", reference, shown)
    judge = Judge.from_pretrained(config.model.judge, "float32", mesh=comparison.mesh)
    judge = ensemble(judge, config.model.judge_adapters)
    about = [fingerprint(find_model(path)) for path in (config.model.judge, *config.model.judge_adapters)]
    answers = comparison.ask("judge", judge, " ".join(about), config.question_length)
    judged = _judged(judge, source, workdir / "preferences", config, comparison)
    if not hosts.is_primary():
        return {}

    comparisons: list[good_same_bad.Comparison] = []
    for task in source.tasks:
        asked = {item: of_item for item, of_item in zip(comparison.items, answers, strict=True) if item.task == task}
        images = zip(*(comparison.shown(name, list(asked)) for name in ("base", "policy")), strict=True)
        scores = truth.score_images([comparison.sample(item) for item in asked], images)
        comparisons += [
            good_same_bad.Comparison(task, before, after, of_judge.policy_first, of_judge.baseline_first)
            for (before, after), of_judge in zip(scores, asked.values(), strict=True)
        ]
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
    examples = _examples(comparison, comparisons=comparisons, answers=answers, reference=True)
    _write(workdir, comparison, evaluation, examples, {})
    return evaluation


def _judged(
    judge: Judge, source: Source, directory: Path, config: RewardFeedback, comparison: Comparison
) -> dict[str, Any]:
    """Measure the judge's accuracy on preferences over held-out samples, which are made in `directory`."""
    settings = config.evaluation
    hosts.on_primary(
        lambda: make_preferences(
            config,
            directory,
            "test",
            model=config.model.base,
            planted=0,
            base=settings.judge_scenes_per_task,
            replace=True,
        )
    )
    hosts.share(directory)
    predictions = judge_pairs(
        judge,
        read_pairs(directory),
        batch_size=settings.batch_size,
        question_length=config.question_length,
        source=source,
        mesh=comparison.mesh,
    )
    return accuracy.judge_accuracy(predictions)


# ----------------------------------------------------------------------------------------------------------- the report


def _write(
    directory: Path,
    comparison: Comparison,
    evaluation: dict[str, Any],
    examples: Sequence[ExampleRow],
    facts: dict[str, Any],
) -> None:
    """Write evaluation.json, the figures and the report."""
    config, metrics = comparison.config, directory / "metrics.jsonl"
    write_evaluation(directory / "evaluation.json", evaluation)
    if evaluation["gsb"]:
        plots.save_figures(directory / "figures", metrics, evaluation)
    write_examples(directory / "figures" / "examples.png", examples)
    write_report(
        directory / "report.html",
        metrics_jsonl=metrics,
        evaluation=evaluation,
        examples=examples,
        examples_note=f"The first {config.evaluation.images_per_task} held-out scenes of each task, not chosen.",
        setting=Setting(
            config=config.to_dict() | facts,
            versions=_versions(),
            credits=comparison.source.credits,
        ),
    )


def _examples(
    comparison: Comparison,
    answers: Sequence[Answers] | None = None,
    comparisons: Sequence[good_same_bad.Comparison] | None = None,
    reference: bool = False,
) -> list[ExampleRow]:
    """The first requests of each task, `config.evaluation.images_per_task` of them."""
    count, rows = comparison.config.evaluation.images_per_task, []
    shown: dict[str, int] = {}
    for number, item in enumerate(comparison.items):
        shown[item.task] = shown.get(item.task, 0) + 1
        if shown[item.task] > count:
            continue
        images = {
            name: comparison.shown(name, [item])[0]
            for name in ("base", "policy", *(("reference",) if reference else ()))
        }
        of_judge = None if answers is None else next(a for a in answers if (a.task, a.id) == (item.task, item.id))
        scored = None if comparisons is None else comparisons[number]
        rows.append(_example(comparison.sample(item), images, of_judge, scored))
    return rows


def _example(
    sample: Sample,
    images: dict[str, np.ndarray],
    answers: Answers | None,
    scored: good_same_bad.Comparison | None,
) -> ExampleRow:
    if scored is not None:
        verdict = good_same_bad.verdict(scored)
    else:
        verdict = answers.verdict(*answers.policy_first) if answers else ""
    return ExampleRow(
        task=sample.task,
        prompt=sample.prompt,
        source=sample.image,
        mask=sample.mask,
        base=images["base"],
        reference=images.get("reference"),
        policy=images["policy"],
        target=None if scored else sample.target,
        scores={d: (scored.base[d], scored.policy[d]) for d in scored.base} if scored else {},
        p_yes={d: answers.preference(d) for d in answers.policy_first} if answers else {},
        verdict=verdict,
    )


def _versions() -> dict[str, str]:
    devices = jax.devices()
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": f"{len(devices)} × {devices[0].device_kind}",
    }
