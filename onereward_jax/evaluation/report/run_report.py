"""`report.html`: a run's setting, results and failures, in one file that needs no network."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from onereward_jax.atomic_files import write_text
from onereward_jax.config.schema import Alarms
from onereward_jax.evaluation.report import alarm_table, plots
from onereward_jax.evaluation.report.plots import label
from onereward_jax.images.grid import drawable, image_grid, mask_overlay, png, write_png
from onereward_jax.proving_ground.scorer import TIE_MARGIN
from onereward_jax.tasks import CELLS, DIMENSIONS, TASKS
from onereward_jax.training.early_stop import Stop, recorded

CRISP_BELOW = 256  # pixels: smaller images are shown pixel by pixel, larger ones reduced to this and smoothed
SPACE = "\N{NO-BREAK SPACE}"
IMAGE_BUDGET = 2_200_000  # bytes of encoded images in the page, so that it stays below 3 MB

ALGORITHMS = {
    "fixed": "Algorithm 1: the reference is the frozen pre-trained model",
    "dynamic": "Algorithm 2: the reference is the moving average (EMA) of the policy",
    "earned": "Earned reference: the policy becomes it when a judge that training never sees prefers it by a margin",
}
REWARD_NOTES = {
    "fixed": "The reference stays the same, so a rising line means that the judge likes the policy’s images better.",
    "dynamic": "The reference is the policy’s own moving average and improves with it: a line that stays above ½ means "
    "steady progress by the judge’s measure, and it need not rise.",
    "earned": "The reference stays the same between refreshes: a line that rises there means that the judge likes the "
    "policy’s images better; at a refresh it falls to ½.",
}


@dataclasses.dataclass(frozen=True)
class ExampleRow:
    """Images of one held-out scene, all uint8 (H, W, 3), mask (H, W).

    Attributes:
      task, prompt: the scene's task and prompt.
      source, mask: inputs of the models.
      base, policy: their outputs.
      reference: output of the reference at the end of training; None leaves the column out.
      target: a right answer; None leaves the column out.
      scores: ground-truth scores, dimension -> (base, policy), in [0, 1].
      p_yes: the judge's P(policy better), dimension -> [0, 1]; may be empty.
      verdict: "good", "same", "bad", or "" if it was not decided.
    """

    task: str
    prompt: str
    source: np.ndarray
    mask: np.ndarray
    base: np.ndarray
    reference: np.ndarray | None
    policy: np.ndarray
    scores: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    p_yes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    verdict: str = ""
    target: np.ndarray | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Heading -> image."""
        found = {
            "source": self.source,
            "mask": mask_overlay(self.source, self.mask),
            "base": self.base,
            "reference": self.reference,
            "policy": self.policy,
            "right answer": self.target,
        }
        return {name: image for name, image in found.items() if image is not None}


def write_examples(path: str | Path, examples: Sequence[ExampleRow], scenes: int = 3) -> None:
    """Write a PNG with the first scenes of every task, a row each, two tasks side by side.

    Raises:
      UserError: there is no example.
    """
    by_task = [[row for row in examples if row.task == task][:scenes] for task in TASKS]
    left, right = ([row for rows in half for row in rows] for half in (by_task[:2], by_task[2:]))
    rows = [[image for row in pair if row for image in row.columns.values()] for pair in zip_longest(left, right)]
    widest = [max((row.columns for row in half), key=len, default={}) for half in (left, right)]
    headings = [name for columns in widest for name in columns]
    height = max((row.source.shape[0] for row in examples), default=CRISP_BELOW)
    write_png(path, image_grid(rows, headings, scale=max(1, 128 // height)))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where the numbers of a report come from.

    Attributes:
      config: nested configuration, a dict or ConfigDict.
      versions: name -> version, or another fact about the machine (device, host, commit).
      credits: authors of photographs, models and ideas in the page, one sentence each.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    credits: Sequence[str] = ()


def write_report(
    path: str | Path,
    *,
    metrics_jsonl: str | Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    examples: Sequence[ExampleRow] = (),
    examples_note: str = "",
    setting: Setting = Setting(),
) -> Path:
    """Write the page atomically. It says what is missing.

    Args:
      path: file of the page.
      metrics_jsonl: training metrics, one JSON object with "step" per line.
      evaluation: see `results.validate_evaluation`, with these further keys where known: "judge" (from
        `accuracy.judge_accuracy`), "truth" (`gsb.scores_by_dimension`), "judge_view" (`gsb.judge_preferences`).
      examples: rows of images, shown in this order within each task until `IMAGE_BUDGET` is spent.
      examples_note: how the examples were chosen, in a sentence.
      setting: configuration, versions and credits.

    Returns:
      the path.
    """
    path, evaluation = Path(path), evaluation or {}
    algorithm = evaluation.get("algorithm", "")
    curves = plots.read_curves(metrics_jsonl)
    shown, dropped = _examples(examples)
    note = f"{examples_note} " if examples_note else ""
    note += "The model paints where the mask is tinted. "
    if any(row.scores for row in examples):
        note += (
            "Arrows lead from the base’s ground-truth score to the policy’s (0 to 100). Good, same and bad compare "
            "policy with base by ground truth; “judge differs” marks scenes where the judge prefers the image with the "
            "lower ground-truth score."
        )
    elif any(row.verdict for row in examples):
        note += "Good, same and bad are the first judge’s verdict on the policy’s image against the base’s."
    if dropped:
        note += f" {dropped} of {len(examples)} rows were left out to keep the page small."
    context = {
        "title": "OneReward: reward feedback learning with one judge",
        "subtitle": _subtitle(evaluation),
        "of_run": "policy" not in evaluation,
        "judges": [_judge(name, found) for name, found in (evaluation.get("judges") or {}).items()],
        "meters": _meters(evaluation),
        "result": summarize(evaluation, curves),
        "tiles": _tiles(evaluation, curves),
        "rewards": [
            (label(task), svg(partial(plots.draw_rewards, curves=curves, task=task), task))
            for task in TASKS
            if plots.has_rewards(curves, task)
        ],
        "ground_truth_curves": svg(partial(plots.draw_ground_truth, curves=curves), "ground truth")
        if plots.has_ground_truth(curves)
        else "",
        "alarms": alarm_table.rows(curves, setting.config),
        "in_a_row": (setting.config.get("alarms") or {}).get("in_a_row", Alarms().in_a_row),
        "stopped": str(stopped) if (stopped := _stop_of(metrics_jsonl)) else "",
        "reward_note": REWARD_NOTES.get(algorithm, ""),
        "bandwidth": f"{100 * plots.BANDWIDTH:.0f}{SPACE}%",
        "margin": f"{100 * evaluation.get('tie_margin', TIE_MARGIN):g}{SPACE}%",
        "accuracy": _accuracy_table(evaluation),
        "orders": _orders(evaluation),
        "calibration": _calibration(evaluation),
        "gsb": _gsb(evaluation),
        "scores": _scores(evaluation),
        "preferences": _preferences(evaluation),
        "contradictions": _contradictions(evaluation),
        "examples": shown,
        "examples_note": note,
        "training": [
            svg(partial(plots.draw_training, curves=curves, key=key, title=name), name, (3.3, 2.3))
            for key, name in plots.TRAINING_CURVES.items()
            if key in curves
        ],
        "cost": _cost(evaluation, curves),
        "versions": [(name, str(value)) for name, value in setting.versions.items()],
        "config": _config_text(setting.config) if setting.config else "",
        "credits": list(setting.credits),
    }
    write_page(path, "run_report.html.jinja", context)
    return path


def _stop_of(metrics_jsonl: str | Path | None) -> Stop | None:
    """Where the run ended before its last update."""
    return None if metrics_jsonl is None else recorded(Path(metrics_jsonl).parent)


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Render a template of this directory with `css`, its stylesheet, and write the page atomically."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))
    page = environment.get_template(template).render(css=css, **context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _subtitle(evaluation: Mapping[str, Any]) -> str:
    if "policy" in evaluation:
        return f"Policy {evaluation['policy']} against base {evaluation['base']}"
    algorithm = evaluation.get("algorithm", "")
    return ALGORITHMS.get(algorithm, algorithm or "algorithm not named")


def _judge(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a judge's verdicts, see `judge_verdicts.summary`."""
    rows = []
    for task in (task for task in TASKS if task in found["gsb"]):
        rows.append(_verdicts(label(task), found["gsb"][task]))
        dimensions = found["dimensions"].get(task, {})
        if len(dimensions) > 1:
            rows += [_verdicts(f"{label(task)} · {label(d)}", dimensions[d], "") for d in DIMENSIONS if d in dimensions]
    return {"name": name, "rows": rows, "bias": signed(found["position_bias"], ".3f")}


def _verdicts(name: str, shares: Mapping[str, Any], weight: str = "task") -> dict[str, Any]:
    low, high = shares["ci95"]
    return {value: f"{100 * shares[value]:.1f}" for value in ("good", "same", "bad")} | {
        "name": name,
        "weight": weight,
        "difference": points(shares["good"] - shares["bad"]),
        "interval": f"{points(low)} to {points(high)}",
        "mark": _mark(low, high),
        "p": f"{shares['p']:.3f}",
        "n": shares["n"],
    }


def _meters(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each task and value that a meter found, see `meter.compared`."""
    rows = []
    for of_meter in (evaluation.get("meters") or {}).values():
        values = dict.fromkeys(value for task in TASKS for value in of_meter.get(task, {}))
        for value in values:
            for task in (task for task in TASKS if value in of_meter.get(task, {})):
                cell = of_meter[task][value]
                low, high = cell["ci95"] or (0.0, 0.0)
                up = cell["higher_is_better"]
                rows.append(
                    {
                        "name": f"{cell['what']} ({'higher' if up else 'lower'} is better)",
                        "task": label(task),
                        "base": f"{cell['base']:.4g}",
                        "policy": f"{cell['policy']:.4g}",
                        "difference": signed(cell["difference"], ".3g"),
                        "interval": f"{signed(low, '.3g')} to {signed(high, '.3g')}" if cell["ci95"] else "",
                        "mark": _mark(low, high) if up else _mark(-high, -low),
                        "n": str(cell["n"]),
                    }
                )
    return rows


def _by_judges(evaluation: Mapping[str, Any]) -> list[str]:
    """What each judge says, a sentence each."""
    sentences = []
    for name, found in (evaluation.get("judges") or {}).items():
        if not found["overall"]:
            continue
        p, (low, high) = found["overall"]["p"], found["overall"]["ci95"]
        says = {1: "prefers the policy", 0: "is undecided", -1: "prefers the base"}[_side(low - 0.5, high - 0.5)]
        sentences.append(
            f"Judge {name} {says}: P(policy better) is {p:.3f} on average over {found['overall']['n']} requests,"
            f" 95{SPACE}% interval {low:.3f} to {high:.3f}."
        )
    return sentences


def summarize(evaluation: Mapping[str, Any], curves: plots.Curves) -> str:
    """State the result, good or bad, in one paragraph computed from the numbers."""
    shares_of, sentences = evaluation.get("gsb") or {}, []
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    for task in (task for task in TASKS if task in shares_of):
        low, high = shares_of[task]["ci95"]
        difference = shares_of[task]["good"] - shares_of[task]["bad"]
        text = f"{label(task)} ({points(difference)}, 95{SPACE}% interval {points(low)} to {points(high)})"
        (better if low > 0 else worse if high < 0 else open_).append(text)
    if shares_of:
        counts = sorted({shares["n"] for shares in shares_of.values()})
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        start = f"By ground truth, on {number} held-out scenes per task, the policy"
        claims = []
        if better:
            claims.append(f"is better than the base in {_list(better)}")
        if worse:
            claims.append(f"is worse in {_list(worse)}" if better else f"is worse than the base in {_list(worse)}")
        if claims:
            sentences.append(f"{start} {'; it '.join(claims)}.")
        if open_:
            sentences.append(
                ("In " if claims else f"{start} shows no certain change: in ")
                + f"{_list(open_)} the interval includes zero, so the result is open"
                + (" there." if claims else ".")
            )
        sentences.append("Numbers are points of good − bad.")
    elif evaluation.get("judges") or evaluation.get("meters"):
        sentences += _by_judges(evaluation) or ["No judge was asked; what was measured of both is below."]
    else:
        sentences.append("Policy and base have not been compared yet, so this page shows no result.")

    rewards = _reward_change(curves)
    if rewards:
        first, last = rewards
        verb = "rose" if last - first > 0.01 else "fell" if last - first < -0.01 else "stayed"
        change = f"at {last:.2f}" if verb == "stayed" else f"from {first:.2f} to {last:.2f}"
        sentences.append(f"In training the judge’s mean reward, P(Yes), {verb} {change}.")
    cells = _cells(evaluation.get("judge_accuracy"))
    if cells:
        (worst_task, worst_dimension), worst = min(cells.items(), key=lambda item: item[1])
        sentence = f"The judge gets {percent(float(np.mean(list(cells.values()))))} of held-out pairs right on average"
        if len(cells) > 1:
            sentence += f", {percent(worst)} in its weakest cell ({label(worst_task)}, {label(worst_dimension)})"
        sentences.append(f"{sentence}; chance is 50{SPACE}%.")
    contradictions = [text for task in TASKS if (text := _contradiction(evaluation, task))]
    if contradictions:
        sentences.append(f"Judge and ground truth disagree: {'; '.join(contradictions)}.")
    return " ".join(sentences)


def _contradiction(evaluation: Mapping[str, Any], task: str) -> str:
    """Say so if the intervals of judge and ground truth lie on different sides of zero, or just one includes it."""
    shares = (evaluation.get("gsb") or {}).get(task)
    view = (evaluation.get("judge_view") or {}).get(task)
    if not shares or not view:
        return ""
    judge, ground_truth = _side(*(limit - 0.5 for limit in view["ci95"])), _side(*shares["ci95"])
    if judge == ground_truth:
        return ""
    words = {1: "prefers the policy", 0: "is undecided", -1: "prefers the base"}
    says = {1: "the policy is better", 0: "nothing is certain", -1: "the policy is worse"}
    return f"in {label(task)} the judge {words[judge]} where by ground truth {says[ground_truth]}"


def _side(low: float, high: float) -> int:
    return 1 if low > 0 else -1 if high < 0 else 0


def _contradictions(evaluation: Mapping[str, Any]) -> str:
    found = [text for task in TASKS if (text := _contradiction(evaluation, task))]
    if not found:
        return "Judge and ground truth agree on the direction of the change in every task."
    text = "; ".join(found)
    return f"{text[0].upper()}{text[1:]}."


def _reward_change(curves: plots.Curves) -> tuple[float, float] | None:
    """Return the smoothed reward, mean over cells, in the first and in the last tenth of the run."""
    ends = []
    for task, dimension in CELLS:
        if (key := plots.reward_key(task, dimension)) in curves and len(curves[key][0]) > 1:
            _, smoothed = plots.smooth(*curves[key])
            tenth = max(1, len(smoothed) // 10)
            ends.append((smoothed[:tenth].mean(), smoothed[-tenth:].mean()))
    return tuple(float(x) for x in np.mean(ends, axis=0)) if ends else None  # type: ignore[return-value]


def _tiles(evaluation: Mapping[str, Any], curves: plots.Curves) -> list[tuple[str, str, str]]:
    tiles = []
    for task, shares in ((task, evaluation["gsb"][task]) for task in TASKS if task in (evaluation.get("gsb") or {})):
        low, high = shares["ci95"]
        interval = "good − bad in points, " + f"{points(low)} to {points(high)}".replace(" ", SPACE)
        tiles.append((label(task), points(shares["good"] - shares["bad"]), interval))
    cells = list(_cells(evaluation.get("judge_accuracy")).values())
    if cells:
        detail = f"cells from {percent(min(cells))} to {percent(max(cells))}"
        tiles.append(("judge’s accuracy", percent(float(np.mean(cells))), detail))
    rewards = _reward_change(curves)
    if rewards:
        tiles.append(("judge’s reward", f"{rewards[1]:.2f}", f"at the end; {rewards[0]:.2f} at the start"))
    seconds = evaluation.get("seconds") or {}
    if seconds.get("train") is not None:
        steps = _number_of_steps(curves)
        tiles.append(("training time", _duration(seconds["train"]), f"{steps:,} steps" if steps else ""))
    if evaluation.get("peak_memory_gib") is not None:
        tiles.append(("peak memory", f"{evaluation['peak_memory_gib']:.1f} GiB", "training and evaluation"))
    return tiles


def _accuracy_table(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    accuracy = evaluation.get("judge_accuracy") or {}
    if not _cells(accuracy):
        return None
    details = (evaluation.get("judge") or {}).get("cells", {})
    shown = [task for task in TASKS if accuracy.get(task)]
    rows = []
    for dimension in DIMENSIONS:
        cells: list[dict[str, Any] | None] = []
        for task in shown:
            value = accuracy[task].get(dimension)
            if value is None:
                cells.append(None)
                continue
            ceiling = (evaluation.get("judge_ceiling") or {}).get(task, {}).get(dimension)
            interval = details.get(task, {}).get(dimension, {}).get("ci95")
            cells.append(
                {
                    "value": f"{100 * value:.1f}",
                    "bullet": _bullet(value, interval, ceiling),
                    "interval": f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}" if interval else "",
                    "ceiling": "" if ceiling is None else f"ceiling {100 * ceiling:.1f}",
                }
            )
        if any(cells):
            rows.append((label(dimension), cells))
    return {"tasks": [label(task) for task in shown], "rows": rows}


def _bullet(value: float, interval: Sequence[float] | None, ceiling: float | None) -> Markup:
    """Draw a cell from 40 to 100 %: interval as a bar, accuracy as a dot, chance and ceiling as ticks."""

    def x(share: float) -> float:
        return round(4 + 92 * min(max((share - 0.4) / 0.6, 0), 1), 1)

    parts = [
        '<line x1="4" x2="96" y1="5" y2="5" stroke="var(--grid)" stroke-width="2"/>',
        f'<line x1="{x(0.5)}" x2="{x(0.5)}" y1="1" y2="9" stroke="var(--muted)" stroke-dasharray="2 1.5"/>',
    ]
    if interval:
        low, high = x(interval[0]), x(interval[1])
        parts.append(f'<line x1="{low}" x2="{high}" y1="5" y2="5" stroke="var(--good)" stroke-width="3"/>')
    if ceiling is not None:
        parts.append(f'<line x1="{x(ceiling)}" x2="{x(ceiling)}" y1="0" y2="10" stroke="var(--ink)" stroke-width="2"/>')
    # The drawing stretches to its cell, and a line of no length with round caps stays a round dot.
    parts.append(f'<path d="M{x(value)} 5h0" stroke="var(--good)" stroke-width="8" stroke-linecap="round"/>')
    body = "".join(part.replace("/>", ' vector-effect="non-scaling-stroke"/>') for part in parts)
    return Markup(
        f'<svg class="bullet" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{body}</svg>'
    )


def _orders(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    details = (evaluation.get("judge") or {}).get("cells", {})
    return [
        (
            f"{label(task)} · {label(dimension)}",
            percent(cell["winner_first"]),
            percent(cell["loser_first"]),
            signed(cell["position_bias"], ".3f"),
            str(cell["n"]),
        )
        for task, dimension in CELLS
        if (cell := details.get(task, {}).get(dimension))
    ]


def _calibration(evaluation: Mapping[str, Any]) -> Markup | None:
    overall = (evaluation.get("judge") or {}).get("overall") or {}
    if not overall.get("calibration"):
        return None
    return svg(partial(plots.draw_calibration, bins=overall["calibration"]), "calibration", (3.6, 3.0))


def _gsb(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    shares_of = evaluation.get("gsb")
    if not shares_of:
        return None
    rows = []
    for task, shares in ((task, shares_of[task]) for task in TASKS if task in shares_of):
        low, high = shares["ci95"]
        rows.append(
            {name: f"{100 * shares[name]:.1f}" for name in ("good", "same", "bad")}
            | {
                "task": label(task),
                "difference": points(shares["good"] - shares["bad"]),
                "interval": f"{points(low)} to {points(high)}",
                "mark": _mark(low, high),
                "n": shares["n"],
            }
        )
    size = (4.6, 0.9 + 0.55 * len(rows))
    return {
        "rows": rows,
        "bars": svg(partial(plots.draw_good_same_bad, gsb=shares_of), "shares of good, same and bad", size),
        "difference": svg(partial(plots.draw_difference, evaluation=evaluation), "good minus bad by task", size),
    }


def _scores(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    scores, rows = evaluation.get("truth") or {}, []
    for task, dimension in CELLS:
        if cell := scores.get(task, {}).get(dimension):
            low, high = cell["ci95"]
            rows.append(
                {
                    "cell": f"{label(task)} · {label(dimension)}",
                    "base": f"{100 * cell['base']:.1f}",
                    "policy": f"{100 * cell['policy']:.1f}",
                    "difference": signed(100 * cell["difference"], ".1f"),
                    "interval": f"{signed(100 * low, '.1f')} to {signed(100 * high, '.1f')}",
                    "mark": _mark(low, high),
                }
            )
    return rows


def _preferences(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    views, shares_of = evaluation.get("judge_view") or {}, evaluation.get("gsb") or {}
    return [
        {
            "task": label(task),
            "p_yes": f"{view['p_yes']:.3f}",
            "interval": f"{view['ci95'][0]:.3f} to {view['ci95'][1]:.3f}",
            "difference": points(shares_of[task]["good"] - shares_of[task]["bad"]) if task in shares_of else "–",
            "hacked": percent(view["fooled"]),
            "missed": percent(view["missed"]),
        }
        for task in TASKS
        if (view := views.get(task))
    ]


def _examples(examples: Sequence[ExampleRow]) -> tuple[list[tuple[str, list[dict[str, Any]]]], int]:
    """Group rows by task, taking them from the tasks in turn until the budget is spent; also count those left out."""
    by_task = {task: [row for row in examples if row.task == task] for task in TASKS}
    kept: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    budget = IMAGE_BUDGET
    for turn in range(max((len(rows) for rows in by_task.values()), default=0)):
        for task, rows in by_task.items():
            if turn >= len(rows) or budget <= 0:
                continue
            example = _example(rows[turn])
            budget -= sum(len(uri) for _, uri, _ in example["images"])
            if budget > 0:
                kept[task].append(example)
    shown = [(label(task), rows) for task, rows in kept.items() if rows]
    return shown, len(examples) - sum(len(rows) for _, rows in shown)


def _example(row: ExampleRow) -> dict[str, Any]:
    scores = []
    for dimension in DIMENSIONS:
        if dimension in row.scores:
            before, after = row.scores[dimension]
            p_yes = f"{row.p_yes[dimension]:.2f}" if dimension in row.p_yes else ""
            scores.append((label(dimension), f"{100 * before:.0f}", f"{100 * after:.0f}", p_yes))
    preferred = float(np.mean(list(row.p_yes.values()))) if row.p_yes else 0.5
    return {
        "prompt": row.prompt,
        "verdict": row.verdict,
        "judge_differs": (row.verdict == "bad" and preferred > 0.5) or (row.verdict == "good" and preferred < 0.5),
        "images": [(name, *data_uri(image)) for name, image in row.columns.items()],
        "scores": scores,
    }


def data_uri(image: np.ndarray) -> tuple[str, bool]:
    """Return the image as a data URI, and whether the browser should show its pixels as squares."""
    image = drawable(image)
    if max(image.shape[:2]) < CRISP_BELOW:
        return "data:image/png;base64," + base64.b64encode(png(image)).decode(), True
    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((CRISP_BELOW, CRISP_BELOW), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), False


def _cost(evaluation: Mapping[str, Any], curves: plots.Curves) -> list[tuple[str, str]]:
    seconds = evaluation.get("seconds") or {}
    rows = [
        (f"time, {label(name)}", "not measured" if value is None else _duration(value))
        for name, value in seconds.items()
    ]
    if "perf/step_time_seconds" in curves:
        rows.append(("median step", f"{np.median(curves['perf/step_time_seconds'][1]):.3g} s"))
    if steps := _number_of_steps(curves):
        rows.append(("steps", f"{steps:,}"))
    memory = evaluation.get("peak_memory_gib")
    rows.append(("peak memory", "not measured" if memory is None else f"{memory:.2f} GiB"))
    return rows


def _config_text(config: Mapping[str, Any]) -> str:
    """Write one `path = value` per line, with paths as `--config.path=value` takes them."""
    lines = []

    def walk(node: Any, path: str) -> None:
        if hasattr(node, "items") and len(node) > 0:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            lines.append(f"{path} = {node!r}")

    walk(config.to_dict() if hasattr(config, "to_dict") else config, "")
    return "\n".join(lines)


def svg(draw: Callable[..., None], name: str, size: tuple[float, float] = plots.PANEL) -> Markup:
    return Markup(plots.svg(partial(draw, theme=plots.STAND_IN), label(name), size))


def _cells(table: Mapping[str, Mapping[str, float]] | None) -> dict[tuple[str, str], float]:
    return {cell: table[cell[0]][cell[1]] for cell in CELLS if cell[1] in table.get(cell[0], {})} if table else {}


def _number_of_steps(curves: plots.Curves) -> int:
    return int(max((steps[-1] for steps, _ in curves.values()), default=0))


def _mark(low: float, high: float) -> str:
    return {1: "up", -1: "down", 0: ""}[_side(low, high)]


def percent(share: float) -> str:
    return f"{100 * share:.1f}{SPACE}%"


def points(difference: float) -> str:
    """Format 0.213 as +21; limits that round to zero keep a decimal, since their sign matters."""
    value = 100 * difference
    return signed(value, ".1f" if abs(value) < 1 else ".0f")


def signed(number: float, form: str) -> str:
    text = format(abs(number), form)
    if float(text) == 0:
        return text
    return ("+" if number > 0 else "−") + text


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.1f} min" if hours < 2 else f"{hours:.1f} h"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
