"""Report of `onereward agreement`: how far annotators agree on every question, and each of them with the rest."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from onereward_jax.errors import printable
from onereward_jax.evaluation.report import plots
from onereward_jax.evaluation.report.plots import label
from onereward_jax.evaluation.report.run_report import SPACE, svg, write_page

_NOTHING = "–"
_MAX_SHOWN = 40  # annotators in the figure, those with the most items; the tables have all


def table(found: Mapping[str, Any]) -> str:
    """Show the result of `agreement.measure` as text."""
    width = max([len(_name(row, found)) for row in found["questions"]] + [8]) + 2
    lines = [f"{'question':<{width}}alpha  95 %            agreement  95 %            units  annotators"]
    for row in found["questions"]:
        lines.append(
            f"{_name(row, found):<{width}}{_number(row['alpha']):<7}{_interval(row['alpha_ci95']):<16}"
            f"{_number(row['agreement']):<11}{_interval(row['agreement_ci95']):<16}{row['units']:<7}{row['annotators']}"
        )
    width = max([len(printable(name)) for name in found["annotators"]] + [9]) + 2
    lines += ["", f"{'annotator':<{width}}items  with the rest  with themselves  gold  seconds, quartiles  defects"]
    for name, person in found["annotators"].items():
        lines.append(
            f"{printable(name):<{width}}{person['items']:<7}{_number(person['with_rest']):<15}"
            f"{_number(person['self_agreement']):<17}{_number(person['gold_right']):<6}{_seconds(person):<20}"
            f"{person['points']}"
        )
    return "\n".join(lines)


def write_agreement_report(directory: Path, found: Mapping[str, Any], facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write directory/report.html, and its figure as directory/figures/agreement.png.

    Args:
      found: result of `agreement.measure` with intervals.
      facts: further rows of the table of settings, name and value.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name, that the font doesn't have
        _write(directory, found, facts)


def _write(directory: Path, found: Mapping[str, Any], facts: Sequence[tuple[str, str]]) -> None:
    panels = [("alpha", partial(draw_questions, found=found, key="alpha"))]
    panels.append(("two annotators", partial(draw_questions, found=found, key="agreement")))
    panels.append(("each with the rest", partial(draw_annotators, found=found)))
    size = (4.6, 1.3 + 0.3 * max(len(found["questions"]), min(len(found["annotators"]), _MAX_SHOWN), 3))
    context = {
        "title": "Agreement of annotators",
        "result": _sentence(found),
        "panels": [(title, svg(draw, title, size)) for title, draw in panels],
        "questions": [
            (
                _name(row, found),
                (_number(row["alpha"]), _interval(row["alpha_ci95"])),
                (_number(row["agreement"]), _interval(row["agreement_ci95"])),
                row["units"],
                row["annotators"],
            )
            for row in found["questions"]
        ],
        "annotators": [
            (
                name,
                person["items"],
                (_number(person["with_rest"]), f"n = {person['with_rest_n']}"),
                (_number(person["self_agreement"]), f"n = {person['self_n']}"),
                (_number(person["gold_right"]), f"n = {person['gold_n']}"),
                _seconds(person),
                person["points"],
            )
            for name, person in found["annotators"].items()
        ],
        "facts": list(facts),
    }
    write_page(directory / "report.html", "agreement_report.html.jinja", context)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    themed = [(title, partial(draw, theme=plots.PRINT)) for title, draw in panels]
    plots.save_png(directory / "figures" / "agreement.png", themed, plots.PRINT, columns=3, size=size)


def draw_questions(axes: Axes, found: Mapping[str, Any], key: str, theme: Mapping[str, str]) -> None:
    """Draw a figure of every question, with its interval."""
    rows = found["questions"]
    low = 0.0
    for place, row in enumerate(rows):
        if (interval := row[f"{key}_ci95"]) is not None:
            axes.plot(interval, [place, place], color=theme["judge"], linewidth=2)
            low = min(low, interval[0])
        if row[key] is not None:
            axes.plot([row[key]], [place], "o", color=theme["judge"], markersize=5)
            low = min(low, row[key])
    _rows(axes, [_name(row, found) for row in rows])
    if low < 0:
        axes.axvline(0, color=theme["muted"], linewidth=0.8, dashes=(2, 2))
    axes.set_xlim(1.05 * low, 1.02)
    axes.set_xlabel("Krippendorff’s alpha" if key == "alpha" else "share of units")


def draw_annotators(axes: Axes, found: Mapping[str, Any], theme: Mapping[str, str]) -> None:
    """Draw each annotator's agreement with the rest, and with themselves."""
    most = sorted(found["annotators"].items(), key=lambda item: -item[1]["items"])[:_MAX_SHOWN]
    people = {name: person for name, person in found["annotators"].items() if name in dict(most)}
    marks = (("with_rest", "o", "judge", "with the rest"), ("self_agreement", "s", "good", "with themselves"))
    for key, mark, colour, text in (*marks, ("gold_right", "^", "bad", "gold items right")):
        known = [(person[key], place) for place, person in enumerate(people.values()) if person[key] is not None]
        if known:
            shares, places = zip(*known, strict=True)
            axes.plot(shares, places, mark, color=theme[colour], markersize=5, label=text)
    _rows(axes, list(people))
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share")
    if axes.lines:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.2, columnspacing=0.8)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    cut = [name if len(name) <= 24 else f"{name[:23]}…" for name in map(printable, names)]
    axes.set_yticks(range(len(cut)), [name.replace("$", r"\$") for name in cut])
    axes.set_ylim(max(len(cut), 1) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _name(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Call a question by its name, and by its job where several jobs ask it."""
    jobs = {other["job"] for other in found["questions"]}
    return printable(label(row["question"])) + (f" ({label(row['job'])})" if len(jobs) > 1 else "")


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}".replace("-", "−")


def _interval(values: Sequence[float] | None) -> str:
    return _NOTHING if values is None else f"{values[0]:.2f} to {values[1]:.2f}".replace("-", "−")


def _seconds(person: Mapping[str, Any]) -> str:
    return _NOTHING if person["seconds"] is None else " / ".join(f"{x:.1f}" for x in person["seconds"])


def _sentence(found: Mapping[str, Any]) -> str:
    people = len(found["annotators"])
    text = f"{found['items']} items answered by {people} annotator{'s' * (people != 1)}"
    if found["seconds"]:
        text += f", {found['seconds'][1]:.1f}{SPACE}s each (median), {found['per_hour']:.0f} an hour"
    return f"{text}; {found['points']} defects clicked."
