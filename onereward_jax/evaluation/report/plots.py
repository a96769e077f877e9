"""Figures of the report, as SVG inside the page and as PNG files.

In the page the colours are CSS variables, so that one drawing serves light and dark mode: matplotlib draws with
stand-in colours, which `svg` replaces by the variables. No pyplot, no global state.
"""

import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onereward_jax.given_files import json_lines
from onereward_jax.tasks import CELLS, TASKS, dimensions_of

Curve = tuple[np.ndarray, np.ndarray]  # steps, values, both (N,)
Curves = dict[str, Curve]
Lines = dict[str, list[Curve]]  # group -> a curve for each of its runs

# Okabe & Ito's palette, safe for colour-blind readers; dashes tell the lines apart without any colour.
PRINT = {
    "ink": "#24292f",
    "muted": "#6b7280",
    "grid": "#e3e5e8",
    "text_alignment": "#0072b2",
    "consistency": "#d55e00",
    "structure": "#009e73",
    "aesthetics": "#b0578d",
    "removal_quality": "#0072b2",
    "good": "#0072b2",
    "same": "#c9cdd2",
    "bad": "#d55e00",
    "judge": "#b0578d",
    "image_fill": "#0072b2",
    "image_extend": "#d55e00",
    "object_removal": "#009e73",
    "text_rendering": "#b0578d",
}
# Colours that no figure uses otherwise; `svg` writes var(--name) instead.
STAND_IN = {name: f"#0102{number:02x}" for number, name in enumerate(PRINT)}
DASHES: dict[str, Any] = {
    "text_alignment": "-",
    "consistency": (0, (5, 1.5)),
    "structure": (0, (1.5, 1.5)),
    "aesthetics": (0, (6, 1.5, 1.5, 1.5)),
    "removal_quality": "-",
    "image_fill": "-",
    "image_extend": (0, (5, 1.5)),
    "object_removal": (0, (1.5, 1.5)),
    "text_rendering": (0, (6, 1.5, 1.5, 1.5)),
}

PANEL = (4.6, 2.9)  # inches: legible on a phone, two abreast on a desktop
POINTS = 160  # on a smoothed line
RAW_POINTS = 300
BANDWIDTH = 0.03  # of the smoothing, as a share of the run


def label(name: str) -> str:
    """Turn image_fill into "image fill"."""
    return name.replace("_", " ")


def read_curves(metrics_jsonl: str | Path | None) -> Curves:
    """Read every metric of the file as key -> (steps, values), both (N,), steps ascending.

    Skips truncated lines (the run was killed while it wrote) and values that are not finite numbers; when a step occurs
    twice, the later line counts. A missing file gives no curves.
    """
    if metrics_jsonl is None or not Path(metrics_jsonl).exists():
        return {}
    points: dict[str, dict[float, float]] = {}
    for line in json_lines(metrics_jsonl):
        try:
            record = json.loads(line.content)  # and not line.fields(), since one metric may be NaN beside others
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not _is_number(record.get("step")):
            continue
        for key, value in record.items():
            if key != "step" and _is_number(value):
                points.setdefault(key, {})[record["step"]] = value
    curves = {}
    for key, values in points.items():
        steps = sorted(values)
        curves[key] = np.array(steps, np.float64), np.array([values[step] for step in steps], np.float64)
    return curves


def smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gaussian-weighted local mean at `POINTS` steps; the weight falls off over `BANDWIDTH` of the run."""
    where = np.linspace(steps[0], steps[-1], min(POINTS, len(steps)))
    width = max(BANDWIDTH * (steps[-1] - steps[0]), 1e-9)
    # Only distances beyond the nearest point's matter: subtracting it avoids 0/0 when all weights underflow.
    distance = ((where[:, None] - steps[None]) / width) ** 2 / 2
    weights = np.exp(distance.min(axis=1, keepdims=True) - distance)
    return where, weights @ values / weights.sum(axis=1)


def reward_key(task: str, dimension: str) -> str:
    return f"rewards/{task}/{dimension}"


def has_rewards(curves: Curves, task: str) -> bool:
    return any(reward_key(task, dimension) in curves for dimension in dimensions_of(task))


def reward_limits(curves: Curves) -> tuple[float, float]:
    """Return one range for all tasks' panels, which holds all smoothed lines, ½, and most raw points."""
    lows, highs = [0.45], [0.55]
    for task, dimension in CELLS:
        if (key := reward_key(task, dimension)) in curves:
            lows.append(float(np.percentile(curves[key][1], 5)))
            highs.append(float(np.percentile(curves[key][1], 95)))
            smoothed = smooth(*curves[key])[1]
            lows.append(float(smoothed.min()))
            highs.append(float(smoothed.max()))
    return max(0.0, min(lows) - 0.03), min(1.0, max(highs) + 0.03)


def draw_rewards(axes: Axes, curves: Curves, task: str, theme: Mapping[str, str]) -> None:
    """Draw the judge's P(Yes) in each dimension of a task against the step (the paper's Fig. 6)."""
    axes.axhline(0.5, color=theme["muted"], linewidth=0.8, dashes=(2, 2))
    for dimension in dimensions_of(task):
        if reward_key(task, dimension) not in curves:
            continue
        steps, values = curves[reward_key(task, dimension)]
        shown = np.unique(np.linspace(0, len(steps) - 1, min(RAW_POINTS, len(steps))).astype(int))
        axes.plot(steps[shown], values[shown], color=theme[dimension], linewidth=0.7, alpha=0.18)
        where, smoothed = smooth(steps, values)
        style = DASHES[dimension]
        axes.plot(where, smoothed, color=theme[dimension], linewidth=1.9, linestyle=style, label=label(dimension))
    axes.set_ylim(*reward_limits(curves))
    axes.set_xlabel("step")
    axes.set_ylabel("P(Yes)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=2.4, columnspacing=1.2)


def ground_truth_key(task: str) -> str:
    return f"evaluation/{task}/truth_gain"


def has_ground_truth(curves: Curves) -> bool:
    return any(ground_truth_key(task) in curves for task in TASKS)


def draw_ground_truth(axes: Axes, curves: Curves, theme: Mapping[str, str]) -> None:
    """Draw the policy's ground-truth gain over the base against the step: a line per task, from 0 at the start."""
    axes.axhline(0, color=theme["muted"], linewidth=0.8, dashes=(2, 2))
    for task in TASKS:
        if ground_truth_key(task) in curves:
            steps, gains = from_zero(*curves[ground_truth_key(task)])
            axes.plot(steps, gains, color=theme[task], linewidth=1.9, linestyle=DASHES[task], label=label(task))
    axes.set_xlabel("step")
    axes.set_ylabel("ground truth, policy − base")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=2.4, columnspacing=1.2)


def from_zero(steps: np.ndarray, values: np.ndarray) -> Curve:
    """Prepend the point (0, 0) to a curve: at the start the policy is the base."""
    return np.concatenate([[0.0], steps]), np.concatenate([[0.0], values])


def draw_lines(axes: Axes, lines: Lines, level: float, title: str, theme: Mapping[str, str]) -> None:
    """Draw runs against the step, a colour per group: each run as a thin line, their mean as a thick one.

    Args:
      level: height of a dotted line that marks "no gain".
      title: title of the vertical axis.
    """
    axes.axhline(level, color=theme["muted"], linewidth=0.8, dashes=(2, 2))
    colours = [theme[name] for name in ("good", "bad", "judge", "structure")]
    for number, (group, curves) in enumerate(lines.items()):
        colour = colours[number % len(colours)]
        for steps, values in curves:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.45)
        where = max((steps for steps, _ in curves), key=len)
        mean = np.mean([np.interp(where, steps, values) for steps, values in curves], axis=0)
        style = ("-", (0, (5, 1.5)))[number % 2]
        axes.plot(where, mean, color=colour, linewidth=2.1, linestyle=style, label=group)
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    if lines:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=2.4, columnspacing=1.2)


def draw_training(axes: Axes, curves: Curves, key: str, title: str, theme: Mapping[str, str]) -> None:
    """Draw one training metric against the step."""
    steps, values = curves[key]
    shown = np.unique(np.linspace(0, len(steps) - 1, min(RAW_POINTS, len(steps))).astype(int))
    axes.plot(steps[shown], values[shown], color=theme["good"], linewidth=0.7, alpha=0.25)
    axes.plot(*smooth(steps, values), color=theme["good"], linewidth=1.9)
    if values.min() >= 0:
        axes.set_ylim(0, float(np.percentile(values, 98)) * 1.15 or 1)
    axes.set_xlabel("step")
    axes.set_title(title, loc="left")


def draw_good_same_bad(axes: Axes, gsb: Mapping[str, Any], theme: Mapping[str, str]) -> None:
    """Draw the shares of good, same and bad, a bar per task (the paper's Fig. 7)."""
    tasks = [task for task in TASKS if task in gsb]
    for row, task in enumerate(tasks):
        left = 0.0
        for name in ("good", "same", "bad"):
            share = gsb[task][name]
            first = row == 0
            axes.barh(row, share, left=left, height=0.56, color=theme[name], label=name if first else None, linewidth=0)
            if share >= 0.08:
                colour = theme["ink"] if name == "same" else "#ffffff"
                axes.text(
                    left + share / 2, row, f"{100 * share:.0f} %", ha="center", va="center", color=colour, fontsize=9
                )
            left += share
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    _task_rows(axes, tasks)
    axes.grid(visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handlelength=1, handleheight=1)


def draw_difference(axes: Axes, evaluation: Mapping[str, Any], theme: Mapping[str, str]) -> None:
    """Draw good − bad in points with its 95 % interval, and beside it the judge's preference on the same scale.

    A mean P(policy better) of p is drawn as the net preference 2p − 1.
    """
    gsb, views = evaluation.get("gsb", {}), evaluation.get("judge_view") or {}
    tasks = [task for task in TASKS if task in gsb]
    axes.axvline(0, color=theme["ink"], linewidth=0.9)
    offset = 0.15 if any(task in views for task in tasks) else 0.0
    for row, task in enumerate(tasks):
        difference = gsb[task]["good"] - gsb[task]["bad"]
        marks = [(row - offset, difference, gsb[task]["ci95"], "good", "o", "ground truth: good − bad")]
        if task in views:
            view = views[task]
            interval = [2 * limit - 1 for limit in view["ci95"]]
            marks.append((row + offset, 2 * view["p_yes"] - 1, interval, "judge", "D", "judge: 2 P(Yes) − 1"))
        for y, value, interval, colour, marker, text in marks:
            axes.plot([100 * x for x in interval], [y, y], color=theme[colour], linewidth=2, solid_capstyle="butt")
            axes.plot([100 * value], [y], marker, color=theme[colour], markersize=6, label=text if row == 0 else None)
    reach = max([0.1, *(abs(x) for line in axes.lines[1:] for x in np.asarray(line.get_xdata()) / 100)])
    axes.set_xlim(-108 * reach, 108 * reach)
    axes.set_xlabel("points, policy against base")
    _task_rows(axes, tasks)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.2, columnspacing=1.2)


def draw_accuracy(axes: Axes, evaluation: Mapping[str, Any], theme: Mapping[str, str]) -> None:
    """Draw the judge's accuracy in every cell, with its interval and the ceiling set by label noise."""
    accuracy, ceiling = evaluation.get("judge_accuracy", {}), evaluation.get("judge_ceiling", {})
    details = (evaluation.get("judge") or {}).get("cells", {})
    cells = [(task, dimension) for task, dimension in CELLS if dimension in accuracy.get(task, {})]
    axes.axvline(50, color=theme["muted"], linewidth=0.9, dashes=(2, 2))
    for row, (task, dimension) in enumerate(cells):
        interval = details.get(task, {}).get(dimension, {}).get("ci95")
        if interval:
            axes.plot([100 * x for x in interval], [row, row], color=theme["good"], linewidth=2)
        axes.plot([100 * accuracy[task][dimension]], [row], "o", color=theme["good"], label=None if row else "accuracy")
        if dimension in ceiling.get(task, {}):
            best = 100 * ceiling[task][dimension]
            text = None if row else "ceiling"
            axes.plot([best], [row], "|", color=theme["ink"], markersize=11, markeredgewidth=1.6, label=text)
    _cell_rows(axes, cells)
    axes.set_xlim(min(45.0, *(100 * accuracy[task][dimension] - 8 for task, dimension in cells)), 100)
    axes.set_xlabel("% of held-out pairs")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_calibration(axes: Axes, bins: list[dict[str, float]], theme: Mapping[str, str]) -> None:
    """Draw how often the first image had won against P(Yes); a point's area is its number of answers."""
    _draw_reliability(axes, bins, theme["judge"], theme)


def _draw_reliability(
    axes: Axes, bins: list[dict[str, float]], colour: str, theme: Mapping[str, str], **style: Any
) -> None:
    axes.plot([0, 1], [0, 1], color=theme["muted"], linewidth=0.9, dashes=(2, 2))
    predicted, observed = [b["predicted"] for b in bins], [b["observed"] for b in bins]
    most = max(b["n"] for b in bins)
    axes.plot(predicted, observed, color=colour, linewidth=1.4, **style)
    axes.scatter(predicted, observed, [12 + 90 * b["n"] / most for b in bins], color=colour, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="judge's P(Yes)", ylabel="share that had won")


# Colour, marker and line style of the first, second and third judge.
JUDGE_STYLES = (("good", "o", "-"), ("bad", "D", (0, (5, 1.5))), ("structure", "s", (0, (1.5, 1.5))))


def draw_judges(
    axes: Axes,
    judges: Mapping[str, Mapping[str, Any]],
    theme: Mapping[str, str],
    humans: Mapping[str, Any] | None = None,
) -> None:
    """Draw the accuracy of several judges in every cell, side by side, with intervals.

    Args:
      judges: name -> result of `accuracy.judge_accuracy`.
      humans: result of `accuracy.human_accuracy`, drawn as a line across each cell.
    """
    cells = cells_of(judges)
    axes.axvline(50, color=theme["muted"], linewidth=0.9, dashes=(2, 2))
    least = 45.0
    for place, (name, found) in enumerate(judges.items()):
        colour, mark, _ = JUDGE_STYLES[place]
        for row, (task, dimension) in enumerate(cells):
            cell = found["cells"][task][dimension]
            y = row + 0.26 * (place - (len(judges) - 1) / 2)
            axes.plot([100 * x for x in cell["ci95"]], [y, y], color=theme[colour], linewidth=2)
            text = None if row else name
            axes.plot([100 * cell["accuracy"]], [y], mark, color=theme[colour], markersize=5, label=text)
            least = min(least, 100 * cell["ci95"][0] - 2)
    text = "one annotator"
    for row, (task, dimension) in enumerate(cells):
        if human := (humans or {"cells": {}})["cells"].get(task, {}).get(dimension):
            at = [100 * human["accuracy"]] * 2
            axes.plot(at, [row - 0.4, row + 0.4], color=theme["ink"], linewidth=1, label=text, clip_on=False)
            least, text = min(least, 100 * human["accuracy"] - 2), ""
    _cell_rows(axes, cells)
    axes.set_xlim(least, 100)
    axes.set_xlabel("% of held-out pairs")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(judges) + bool(humans))


def draw_judge_difference(axes: Axes, difference: Mapping[str, Any], theme: Mapping[str, str]) -> None:
    """Draw how much more often one judge is right than another, in points, with paired intervals.

    Args:
      difference: result of `accuracy.accuracy_difference`.
    """
    cells = [(task, dimension) for task, dimension in CELLS if dimension in difference["cells"].get(task, {})]
    axes.axvline(0, color=theme["muted"], linewidth=0.9, dashes=(2, 2))
    reach = 5.0
    for row, (task, dimension) in enumerate(cells):
        cell = difference["cells"][task][dimension]
        axes.plot([100 * x for x in cell["ci95"]], [row, row], color=theme["judge"], linewidth=2)
        axes.plot([100 * cell["difference"]], [row], "o", color=theme["judge"], markersize=5)
        reach = max(reach, *(100 * abs(x) for x in cell["ci95"]))
    _cell_rows(axes, cells)
    axes.set_xlim(-1.05 * reach, 1.05 * reach)
    axes.set_xlabel("points of accuracy")


def draw_reliability(axes: Axes, judges: Mapping[str, Mapping[str, Any]], theme: Mapping[str, str]) -> None:
    """Draw the calibration of several judges, name -> result of `accuracy.judge_accuracy`."""
    for place, (name, found) in enumerate(judges.items()):
        colour, _, line = JUDGE_STYLES[place]
        _draw_reliability(axes, found["overall"]["calibration"], theme[colour], theme, linestyle=line, label=name)
    axes.legend(loc="upper left")


def cells_of(judges: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the cells in which the judges were asked, the same for all."""
    found = next(iter(judges.values()))["cells"]
    return [(task, dimension) for task, dimension in CELLS if dimension in found.get(task, {})]


def _cell_rows(axes: Axes, cells: Sequence[tuple[str, str]]) -> None:
    axes.set_yticks(range(len(cells)), [f"{label(task)} · {label(dimension)}" for task, dimension in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def figure(draw: Callable[[Axes], None], theme: Mapping[str, str], size: tuple[float, float] = PANEL) -> Figure:
    """Draw one panel in the style of the report; `draw` adds the data."""
    with mpl.rc_context(_style(theme)):
        result = Figure(figsize=size, layout="constrained")
        draw(result.subplots())
    return result


def svg(draw: Callable[[Axes], None], title: str, size: tuple[float, float] = PANEL) -> str:
    """Return the panel as an <svg> element for the page; a screen reader reads out `title`."""
    drawing = figure(draw, STAND_IN, size)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Group ids repeat from figure to figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"/>', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for name, colour in STAND_IN.items():
        text = text.replace(colour, f"var(--{name})")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg role="img" aria-label="{escaped}" viewBox="\1">', text)


def save_figures(directory: str | Path, metrics_jsonl: str | Path | None, evaluation: Mapping[str, Any]) -> list[Path]:
    """Write the report's main figures as PNG files, leaving out those without data.

    reward_curves.png, ground_truth_while_training.png, judge_accuracy.png, good_same_bad.png,
    judge_and_ground_truth.png, calibration.png, training.png.

    Returns:
      the files written.
    """
    directory, curves, theme = Path(directory), read_curves(metrics_jsonl), PRINT
    directory.mkdir(parents=True, exist_ok=True)
    panels: dict[str, list[tuple[str, Callable[[Axes], None]]]] = {
        "reward_curves": [
            (label(task), partial(draw_rewards, curves=curves, task=task, theme=theme))
            for task in TASKS
            if has_rewards(curves, task)
        ],
        "ground_truth_while_training": [("", partial(draw_ground_truth, curves=curves, theme=theme))]
        if has_ground_truth(curves)
        else [],
        "training": [
            ("", partial(draw_training, curves=curves, key=key, title=title, theme=theme))
            for key, title in TRAINING_CURVES.items()
            if key in curves
        ],
    }
    if any(evaluation.get("judge_accuracy", {}).values()):
        panels["judge_accuracy"] = [("", partial(draw_accuracy, evaluation=evaluation, theme=theme))]
    if evaluation.get("gsb"):
        panels["good_same_bad"] = [("", partial(draw_good_same_bad, gsb=evaluation["gsb"], theme=theme))]
        panels["judge_and_ground_truth"] = [("", partial(draw_difference, evaluation=evaluation, theme=theme))]
    overall = (evaluation.get("judge") or {}).get("overall")
    if overall:
        panels["calibration"] = [("", partial(draw_calibration, bins=overall["calibration"], theme=theme))]
    return [
        save_png(directory / f"{name}.png", drawings, theme, columns=3 if name == "training" else 2)
        for name, drawings in panels.items()
        if drawings
    ]


TRAINING_CURVES = {
    "learning/loss": "loss",
    "learning/grad_norm": "gradient norm",
    "perf/step_time_seconds": "seconds a step",
}


# Panel sizes, inches, of figures with these names; all others have PANEL.
PANEL_SIZES = {
    "judge_accuracy": (6.4, 4.2),
    "calibration": (3.4, 3.0),
    "judges": (6.4, 5.6),
    "judge_difference": (6.4, 4.2),
}


def save_png(
    path: Path,
    panels: Sequence[tuple[str, Callable[[Axes], None]]],
    theme: Mapping[str, str],
    columns: int,
    size: tuple[float, float] | None = None,
) -> Path:
    """Write panels, each a title and a drawing function, into one PNG with `columns` columns.

    Args:
      size: of a panel, inches; by default that of figures with the path's name.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = size or PANEL_SIZES.get(path.stem, PANEL)
    with mpl.rc_context(_style(theme)):
        image = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
        grid = image.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, draw) in zip(grid, panels, strict=False):
            draw(axes)
            if title:
                # Above the legend, which stands above the axes.
                axes.set_title(title, loc="left", fontweight="bold", pad=34)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        image.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _task_rows(axes: Axes, tasks: list[str]) -> None:
    axes.set_yticks(range(len(tasks)), [label(task).replace(" ", "\n", 1) for task in tasks])
    axes.set_ylim(max(len(tasks), 1) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def _style(theme: Mapping[str, str]) -> dict[Any, Any]:
    return {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "text.color": theme["ink"],
        "axes.titlecolor": theme["ink"],
        "axes.labelcolor": theme["muted"],
        "axes.edgecolor": theme["muted"],
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": theme["muted"],
        "ytick.color": theme["muted"],
        "xtick.labelcolor": theme["muted"],
        "ytick.labelcolor": theme["ink"],
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
