"""Rates models by people's verdicts: Bradley–Terry ratings, Good–Same–Bad counts, and marks as in the paper's Table 2.

Reads a table of model_a, model_b and winner (CSV or JSON lines; winner is model_a, model_b, tie or both_bad), or votes.
Votes for the best and the worst rate models in each dimension. Intervals are of 95 %; verdicts on one source image
count as one draw.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onereward_jax.cli.arguments import local_path, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--table", type=path, metavar="FILE", help="table of verdicts, .csv or .jsonl")
    given.add_argument(
        "--votes",
        type=path,
        metavar="PATH",
        help="database of votes, the directory that holds votes.sqlite, or exported answers (.jsonl)",
    )
    parser.add_argument("--json", type=local_path, metavar="FILE", help="a JSON file for all figures")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.annotation.ratings import (
        comparisons_of,
        comparisons_of_choices,
        good_same_bad,
        marks,
        read_table,
    )
    from onereward_jax.annotation.votes import read_answers
    from onereward_jax.atomic_files import check_writable, write_json
    from onereward_jax.errors import UserError

    if args.json:
        check_writable(Path(args.json).parent)
    answers = read_answers(Path(args.votes)) if args.votes else []
    comparisons = read_table(Path(args.table)) if args.table else comparisons_of(answers)
    by_dimension = comparisons_of_choices(answers)
    rated, not_rated = _rated({"overall": comparisons} | by_dimension)
    found = {
        "ratings": rated.pop("overall", []),
        "ratings_by_dimension": rated,
        "good_same_bad": good_same_bad(comparisons),
        "marks": marks(answers),
    }
    for name, sentence in not_rated.items():
        print(f"not rated: {name}: {sentence}", file=sys.stderr)
    if not any(found.values()) and not_rated:
        raise UserError(next(iter(not_rated.values())))
    if not any(found.values()):
        raise UserError(
            f"{args.votes} holds no Good-Same-Bad verdicts, no marks, and no choices between models: have people"
            " give some"
        )
    print("\n\n".join(show(found[name]) for name, show in _TABLES.items() if found[name]))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.json), found | {"not_rated": not_rated})


def _rated(comparisons: dict[str, list]) -> tuple[dict[str, list], dict[str, str]]:
    """Rate models by each list of comparisons that connects them; of the others say why not."""
    from onereward_jax.annotation.ratings import Unconnected, bradley_terry

    rated, not_rated = {}, {}
    for name, chosen in comparisons.items():
        try:
            if chosen:
                rated[name] = bradley_terry(chosen)
        except Unconnected as error:
            not_rated[name] = str(error)
    return rated, not_rated


def _name(model: str) -> str:
    from onereward_jax.errors import printable

    return printable(model, 60)


def _ratings(rows: list) -> str:
    lines = [f"{'model':<28}rating  95 %            wins   comparisons"]
    for row in rows:
        low, high = row["ci95"]
        interval = f"{low:.0f} to {high:.0f}"
        lines.append(f"{_name(row['model']):<28}{row['rating']:<8.0f}{interval:<16}{row['wins']:<7.2f}{row['n']}")
    return "\n".join(lines)


def _by_dimension(found: dict) -> str:
    return "\n\n".join(f"{dimension}, best over worst\n{_ratings(rows)}" for dimension, rows in found.items())


def _good_same_bad(rows: list) -> str:
    lines = [f"{'models':<40}{'task':<16}good   same   bad    good - bad  95 %"]
    for row in rows:
        low, high = row["ci95"]
        models = f"{_name(row['model_a'])} vs {_name(row['model_b'])}"
        lines.append(
            f"{models:<40}{row['task']:<16}{row['good']:<7}{row['same']:<7}{row['bad']:<7}{row['difference']:+.3f}"
            f"      {low:+.2f} to {high:+.2f}"
        )
    return "\n".join(lines)


def _marks(rows: list) -> str:
    lines = [f"{'task':<16}{'model':<28}{'criterion':<22}mean    95 %              marks"]
    for row in rows:
        share = row["scale"] == [0, 1]
        mean, low, high = (f"{100 * x:.1f} %" if share else f"{x:.2f}" for x in (row["mean"], *row["ci95"]))
        interval = f"{low} to {high}"
        lines.append(
            f"{row['task']:<16}{_name(row['model']):<28}{row['criterion']:<22}{mean:<8}{interval:<18}{row['n']}"
        )
    return "\n".join(lines)


_TABLES: dict[str, Callable[[Any], str]] = {
    "ratings": _ratings,
    "ratings_by_dimension": _by_dimension,
    "good_same_bad": _good_same_bad,
    "marks": _marks,
}
