"""Report of `onereward evaluate-judge`: accuracy and calibration of judges on the same pairs, and their differences."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onereward_jax.evaluation.report import plots
from onereward_jax.evaluation.report.plots import label
from onereward_jax.evaluation.report.run_report import SPACE, percent, points, signed, svg, write_page

NAMES = {"model": "judge", "untuned": "untuned", "old": "old judge", "one_a_task": "one per task"}


def write_judge_report(directory: Path, found: Mapping[str, Any], facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write directory/report.html, and its figures as PNG files in directory/figures.

    Args:
      found: results of `accuracy.judge_accuracy` under "model" and, where evaluated, "untuned", "old" and "one_a_task";
        "differences": {name of another judge: `accuracy.accuracy_difference` of the model and that judge}; and, where
        several annotators voted on a pair, "annotators": result of `accuracy.human_accuracy`.
      facts: further rows of the table of settings, name and value.
    """
    judges = {_name(key, found): found[key] for key in NAMES if key in found}
    differences = {NAMES[key]: difference for key, difference in found.get("differences", {}).items()}
    first = next(iter(judges))
    cells, humans = [*plots.cells_of(judges), None], found.get("annotators")
    reliability = partial(plots.draw_reliability, judges=judges)
    accuracy = partial(plots.draw_judges, judges=judges, humans=humans)
    compared = {
        f"{first} − {name}": partial(plots.draw_judge_difference, difference=difference)
        for name, difference in differences.items()
    }
    context = {
        "title": "Accuracy of the judge" if len(judges) == 1 else "Judges compared",
        "result": " ".join([_sentence(judges), *(_difference(first, name, d) for name, d in differences.items())]),
        "names": list(judges),
        "compared": list(compared),
        "humans": bool(humans),
        "rows": [_row(cell, judges, differences) | _human(cell, humans) for cell in cells],
        "accuracy": svg(accuracy, "accuracy of every cell", (5.4, 5.2)),
        "differences": [(name, svg(draw, name, (5.4, 4.2))) for name, draw in compared.items()],
        "calibration": svg(reliability, "calibration", (3.8, 3.4)),
        "details": [_details(*judge, cell) for cell in cells for judge in judges.items()],
        "facts": list(facts),
    }
    write_page(directory / "report.html", "judge_report.html.jinja", context)
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    drawings = {"judges": [("", accuracy)], "calibration": [("", reliability)]}
    if compared:
        drawings["judge_difference"] = list(compared.items())
    for name, panels in drawings.items():
        themed = [(title, partial(draw, theme=plots.PRINT)) for title, draw in panels]
        plots.save_png(figures / f"{name}.png", themed, plots.PRINT, columns=2)


def _name(key: str, found: Mapping[str, Any]) -> str:
    if key == "model" and "old" in found:
        return "new judge"
    return "one judge" if key == "model" and "one_a_task" in found else NAMES[key]


def _cell(found: Mapping[str, Any], cell: tuple[str, str] | None) -> Mapping[str, Any]:
    """Return the summary of a cell, or of all pairs if the cell is None."""
    return found["overall"] if cell is None else found["cells"][cell[0]][cell[1]]


def _title(cell: tuple[str, str] | None) -> str:
    return "all" if cell is None else f"{label(cell[0])} · {label(cell[1])}"


def _row(cell: Any, judges: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    shown = [_cell(found, cell) for found in judges.values()]
    apart = [_cell(found, cell) for found in differences.values()]
    return {
        "cell": _title(cell),
        "n": shown[0]["n"],
        "accuracy": [(f"{100 * x['accuracy']:.1f}", _interval(x, ".0f")) for x in shown],
        "differences": [
            (
                signed(100 * x["difference"], ".1f"),
                _interval(x, "+.1f"),
                "up" if x["ci95"][0] > 0 else "down" if x["ci95"][1] < 0 else "",
            )
            for x in apart
        ],
    }


def _human(cell: Any, humans: Mapping[str, Any] | None) -> dict[str, Any]:
    found = None
    if humans:
        found = humans["overall"] if cell is None else humans["cells"].get(cell[0], {}).get(cell[1])
    return {"human": (f"{100 * found['accuracy']:.1f}", _interval(found, ".0f"), found["n"]) if found else None}


def _interval(summary: Mapping[str, Any], form: str) -> str:
    low, high = (100 * x for x in summary["ci95"])
    return f"{low:{form}} to {high:{form}}".replace("-", "−")


def _details(name: str, found: Mapping[str, Any], cell: Any) -> tuple[str, ...]:
    x = _cell(found, cell)
    return (
        _title(cell),
        name,
        percent(x["winner_first"]),
        percent(x["loser_first"]),
        percent(x["both_orders"]),
        signed(x["position_bias"], ".3f"),
        f"{x['calibration_error']:.3f}",
    )


def _sentence(judges: Mapping[str, Any]) -> str:
    accuracies = [
        f"{name} {percent(found['overall']['accuracy'])} (95{SPACE}% interval {_interval(found['overall'], '.1f')})"
        for name, found in judges.items()
    ]
    number = next(iter(judges.values()))["overall"]["n"]
    return f"Share of {number} annotated pairs judged correctly, mean of both image orders: {', '.join(accuracies)}."


def _difference(first: str, other: str, difference: Mapping[str, Any]) -> str:
    overall = difference["overall"]
    low, high = overall["ci95"]
    certain: dict[str, list[str]] = {"more": [], "less": []}
    for task, dimensions in difference["cells"].items():
        for dimension, x in dimensions.items():
            if x["ci95"][0] > 0 or x["ci95"][1] < 0:
                certain["more" if x["difference"] > 0 else "less"].append(f"{label(task)} · {label(dimension)}")
    cells = sum(len(dimensions) for dimensions in difference["cells"].values())
    text = (
        f"{first} − {other}: {points(overall['difference'])} points, paired 95{SPACE}% interval {points(low)} to"
        f" {points(high)}; of {cells} cells it is clearly more often right in {len(certain['more'])}, less often in"
        f" {len(certain['less'])}"
    )
    named = [*certain["more"], *certain["less"]]
    return f"{text} ({', '.join(named)})." if named else f"{text}."
