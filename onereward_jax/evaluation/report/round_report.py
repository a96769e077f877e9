"""Report of `onereward round`: an old and a new judge on held-out pairs, and what the old one had missed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onereward_jax.evaluation.missed import Answer, model_of, worst_found
from onereward_jax.evaluation.report.judge_report import write_judge_report
from onereward_jax.evaluation.report.plots import label
from onereward_jax.evaluation.report.run_report import SPACE, data_uri, percent, points, write_page
from onereward_jax.images.grid import mask_overlay
from onereward_jax.judge.pairs import Pairs
from onereward_jax.tasks import CELLS

SHOWN = 3  # pairs of a cell whose images are shown
SETS = {"round": "Held-out pairs of this round", "earlier": "Held-out pairs of the earlier data"}


def write_round_report(
    directory: Path,
    found: Mapping[str, Any],
    pairs: Pairs,
    answers: Sequence[Answer],
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write directory/report.html with images, and directory/<set>/report.html, as of `onereward evaluate-judge`.

    Args:
      found: {"round": of the round's held-out pairs, "earlier": of those of earlier data, where there are any}: each
        what `write_judge_report` takes, under "model" and "old", and `missed.count_kinds` under "kinds". The round's
        also has `missed.policy_preferred` under "policy_preferred".
      pairs, answers: of the round.
      facts: rows of the table of settings, name and value.
    """
    for name, of_set in found.items():
        write_judge_report(directory / name, of_set, facts)
    shown = worst_found(answers, SHOWN)
    context = {
        "title": "A round of the preference loop",
        "result": _sentence(found["round"]),
        "sets": [(SETS[name], name, _accuracies(of_set), _kinds(of_set["kinds"])) for name, of_set in found.items()],
        "preferred": _preferred(found["round"].get("policy_preferred")),
        "missed": [(_title(cell), [_example(pairs, a) for a in of_cell]) for cell, of_cell in _by_cell(shown)],
        "found": sum(answer.kind == "found" for answer in answers),
        "shown": len(shown),
        "facts": list(facts),
    }
    write_page(directory / "report.html", "round_report.html.jinja", context)


def _title(cell: tuple[str, str]) -> str:
    return f"{label(cell[0])} · {label(cell[1])}"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"


def _sentence(found: Mapping[str, Any]) -> str:
    old, new = (found[name]["overall"] for name in ("old", "model"))
    difference = found["differences"]["old"]["overall"]
    low, high = (points(x) for x in difference["ci95"])
    text = (
        f"On {new['n']} held-out pairs of this round the old judge is right in {percent(old['accuracy'])}, the new one"
        f" in {percent(new['accuracy'])}: {points(difference['difference'])} points, paired 95{SPACE}% interval {low}"
        f" to {high}."
    )
    if humans := found.get("annotators"):
        text += f" One annotator agrees with the others in {percent(humans['overall']['accuracy'])}."
    return text


def _accuracies(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a set's table: old, new, their difference, one annotator, for all pairs."""
    rows = []
    for name, key in (("old judge", "old"), ("new judge", "model")):
        overall = found[key]["overall"]
        rows.append({"name": name, "value": percent(overall["accuracy"]), "interval": _interval(*overall["ci95"])})
    difference = found["differences"]["old"]["overall"]
    interval = " to ".join(points(x) for x in difference["ci95"])
    rows.append({"name": "new − old", "value": points(difference["difference"]), "interval": interval})
    if humans := found.get("annotators"):
        overall = humans["overall"]
        value = f"{percent(overall['accuracy'])}"
        rows.append({"name": "one annotator", "value": value, "interval": _interval(*overall["ci95"])})
    return rows


def _kinds(counts: Mapping[str, Any]) -> list[tuple[str, dict[str, int]]]:
    return [(_title(cell), counts[cell[0]][cell[1]]) for cell in CELLS if cell[1] in counts.get(cell[0], {})]


def _preferred(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not found:
        return None
    rows = [
        (name, percent(found[key]["share"]), _interval(*found[key]["ci95"]))
        for name, key in (("annotators", "annotators"), ("old judge", "old"), ("new judge", "new"))
    ]
    return {"n": found["n"], "rows": rows}


def _by_cell(answers: Sequence[Answer]) -> list[tuple[tuple[str, str], list[Answer]]]:
    of_cell = {cell: [a for a in answers if (a.pair.task, a.dimension) == cell] for cell in CELLS}
    return [(cell, members) for cell, members in of_cell.items() if members]


def _example(pairs: Pairs, answer: Answer) -> dict[str, Any]:
    first, second = pairs.images(answer.pair)
    winner, loser = (first, second) if answer.winner == answer.pair.first else (second, first)
    image, mask = (pairs.request_image(answer.pair, name) for name in ("image", "mask"))
    images = []
    if image is not None:
        images.append(("request", mask_overlay(image, mask[..., 0]) if mask is not None else image))
    made_by = [model_of(pairs, answer.pair, end) for end in (answer.winner, answer.loser)]
    images += [("preferred", winner), ("not preferred", loser)]
    return {
        "prompt": answer.pair.prompt,
        "record": answer.pair.id,
        "images": [(name, *data_uri(shown)) for name, shown in images],
        "made_by": [name or "unknown" for name in made_by],
        "old": f"{answer.old:.2f}",
        "new": f"{answer.new:.2f}",
    }
