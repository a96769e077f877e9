"""Models compared and rated by people: Bradley–Terry ratings, Good–Same–Bad, and the paper's marks (Table 2)."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, RATING, YES_NO, questions_of
from onereward_jax.atomic_files import write_text
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.preferences.dataset import BAD_SHARE
from onereward_jax.errors import UserError, one_line, shown
from onereward_jax.given_files import json_lines, read_bytes
from onereward_jax.intervals import bootstrap_sums, paired_difference_interval, percentile_interval, share_interval

WINNERS = ("model_a", "model_b", "tie", "both_bad")
DRAWS = 500  # resamples of the source images
MEAN_RATING, SCALE = 1000.0, 400 / math.log(10)  # Elo's: 400 points are odds of ten to one
_MAX_TABLE = 2**30  # bytes
_WINNER_OF = {"good": "model_a", "same": "tie", "bad": "model_b"}


class Unconnected(UserError):
    """Models that no comparisons connect, and so have no common scale; the message names two."""


class Comparison(NamedTuple):
    """One person's verdict on two models' images of one request.

    Attributes:
      winner: one of `WINNERS`; "both_bad" counts as a tie.
      task: "" where it is unknown.
      source: what correlated comparisons have in common: their source image.
      record, annotator: what was judged, and by whom; may be empty.
    """

    model_a: str
    model_b: str
    winner: str
    task: str = ""
    source: str = ""
    record: str = ""
    annotator: str = ""


def comparisons_of(answers: Iterable[Answer]) -> list[Comparison]:
    """Return the comparisons in Good–Same–Bad answers; repeats and gold items are left out, and two of one model.

    Raises:
      UserError: a record doesn't say what made its candidates.
    """
    found = []
    for answer in answers:
        if answer.job != GOOD_SAME_BAD or answer.kind != "plain":
            continue
        if len(answer.models) != 2 or not all(answer.models):
            raise UserError(
                f"record {answer.record} does not say which model made which candidate: give sampling.model of both"
            )
        if answer.models[0] == answer.models[1]:
            continue
        source = answer.source or f"record {answer.record}"
        winner = _WINNER_OF[str(answer.verdict)]
        found.append(Comparison(*answer.models, winner, answer.task, source, answer.record, answer.annotator))
    return found


def comparisons_of_choices(answers: Iterable[Answer]) -> dict[str, list[Comparison]]:
    """Return the comparisons in votes for the best and the worst, by dimension: the best's model won over the worst's.

    Two candidates of one model, or of one that the record doesn't name, compare nothing; "no difference" is a tie of
    two candidates, and of more says nothing of two models.
    """
    found: dict[str, list[Comparison]] = defaultdict(list)
    for answer in answers:
        if answer.job != BEST_WORST or answer.kind != "plain":
            continue
        ends = [end for end in (answer.best, answer.worst) if end is not None and end < len(answer.models)]
        models = [answer.models[end] for end in ends] if ends else list(answer.models)
        if len(models) == 2 and all(models) and models[0] != models[1]:
            first, second = models
            winner, source = "model_a" if ends else "tie", answer.source or f"record {answer.record}"
            one = Comparison(first, second, winner, answer.task, source, answer.record, answer.annotator)
            found[answer.question].append(one)
    return dict(found)


# ------------------------------------------------------------------------------------------------ tables of comparisons


def write_table(path: Path, comparisons: Iterable[Comparison]) -> None:
    """Write comparisons as CSV (.csv) or JSON lines (.jsonl).

    Raises:
      UserError: the name has another ending.
    """
    rows = [comparison._asdict() for comparison in comparisons]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".csv":
        written = io.StringIO()
        writer = csv.DictWriter(written, Comparison._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = written.getvalue()
    else:
        raise UserError(f"{path} is neither .csv nor .jsonl: give a table one of these endings")
    write_text(path, text)


def read_table(path: Path, bad_share: float = BAD_SHARE) -> list[Comparison]:
    """Read comparisons from CSV or JSON lines with model_a, model_b and winner, as LMArena publishes them.

    Of other columns `task`, `source`, `record` and `annotator` are read, where they are text.

    Raises:
      FileNotFoundError, UserError: it can't be read, holds none, or too many bad ones.
    """
    skipped = Skipped("comparisons", str(path), bad_share)
    found: list[Comparison] = []
    total = 0
    for where, read in _rows(path):
        total += 1
        try:
            found.append(_comparison(read(), total))
        except UserError as error:
            skipped.add(f"{where}: {error}")
    skipped.end(total)
    if not found:
        raise UserError(f"{path} holds no comparison: give a table with model_a, model_b and winner")
    return found


def _rows(path: Path) -> Iterable[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        return ((line.where, line.fields) for line in json_lines(path))
    if path.suffix != ".csv":
        raise UserError(f"{path} is neither .csv nor .jsonl: give a table of one of these forms")
    text = read_bytes(path, _MAX_TABLE).decode("utf-8-sig", errors="replace")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({one_line(str(error))}): write it again") from None
    return ((f"{path}, row {number}", lambda row=row: row) for number, row in enumerate(rows, 1))


def _comparison(row: Mapping[str, Any], number: int) -> Comparison:
    text = {name: row.get(name) for name in Comparison._fields}
    for name in ("model_a", "model_b"):
        if not isinstance(text[name], str) or not text[name]:
            raise UserError(f"{name} is {shown(text[name])}: give a model's name")
    if text["model_a"] == text["model_b"]:
        raise UserError("model_b is model_a: compare two")
    if str(text["winner"]).startswith("tie"):  # LMArena's "tie (bothbad)"
        text["winner"] = "tie"
    if text["winner"] not in WINNERS:
        raise UserError(f"winner is {shown(text['winner'])}: give one of {', '.join(WINNERS)}")
    plain = {name: value for name, value in text.items() if isinstance(value, str)}
    return Comparison(**({"source": f"row {number}"} | {name: x for name, x in plain.items() if x}))


# ------------------------------------------------------------------------------------------------ ratings


def bradley_terry(comparisons: Sequence[Comparison], draws: int = DRAWS) -> list[dict[str, Any]]:
    """Rate models by the Bradley–Terry model, P(a beats b) = 1 / (1 + 10^((r_b − r_a) / 400)).

    A tie is half a win for each. Every two models that were compared get one tie more, so that one that always won has
    a rating, too.

    Args:
      draws: resamples of the source images for the intervals.

    Returns:
      [{"model", "rating" (their mean is 1000), "ci95", "n" (comparisons), "wins" (share, ties half)}], best first.

    Raises:
      UserError: choix is not installed.
      Unconnected: some models were never compared with the others, even through third ones.
    """
    try:
        from choix import ilsr_pairwise_dense
    except ImportError:
        raise UserError("ratings need the package choix: install it by pip install 'onereward-jax[annotate]'") from None
    models = sorted({model for comparison in comparisons for model in comparison[:2]})
    number = {model: place for place, model in enumerate(models)}
    sources = {source: place for place, source in enumerate(dict.fromkeys(one.source for one in comparisons))}
    wins = np.zeros((len(sources), len(models), len(models)))
    for one in comparisons:
        a, b, at = number[one.model_a], number[one.model_b], sources[one.source]
        share = {"model_a": 1.0, "model_b": 0.0}.get(one.winner, 0.5)
        wins[at, a, b] += share
        wins[at, b, a] += 1 - share
    total = wins.sum(axis=0)
    compared = (total + total.T) > 0
    _check_connected(compared, models)

    def rate(won: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        logits = ilsr_pairwise_dense(won + compared / 2, initial_params=start, max_iter=10_000)
        return MEAN_RATING + SCALE * (logits - logits.mean())

    rating = rate(total)
    start = (rating - MEAN_RATING) / SCALE
    resampled = bootstrap_sums(wins.reshape(len(wins), -1), draws).reshape(-1, len(models), len(models))
    drawn = np.array([rate(won, start) for won in resampled]).reshape(-1, len(models))
    rows = [
        {
            "model": model,
            "rating": float(rating[place]),
            "ci95": percentile_interval(drawn[:, place]),
            "n": round(float(total[place].sum() + total[:, place].sum())),
            "wins": float(total[place].sum() / (total[place].sum() + total[:, place].sum())),
        }
        for place, model in enumerate(models)
    ]
    return sorted(rows, key=lambda row: -row["rating"])


def _check_connected(compared: np.ndarray, models: Sequence[str]) -> None:
    """Raises: Unconnected: the graph of comparisons falls apart."""
    reached, new = {0}, [0]
    while new:
        new = [int(b) for a in new for b in np.flatnonzero(compared[a]) if b not in reached]
        reached |= set(new)
    if apart := [model for place, model in enumerate(models) if place not in reached]:
        raise Unconnected(
            f"{apart[0]} and {models[0]} can't be rated on one scale, since no comparisons connect them: compare one of"
            " the models of each group"
        )


def good_same_bad(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Count verdicts for every two models, of each task and of all.

    Returns:
      [{"model_a", "model_b", "task" ("all" for all), "good" (for model_a), "same", "bad" (counts), "n", "difference"
      (share of good minus share of bad), "ci95" (comparisons of one source image count as one draw)}].
    """
    groups: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for one in comparisons:
        lead = {"model_a": 1, "model_b": -1}.get(one.winner, 0)
        first, second, lead = (
            (one.model_a, one.model_b, lead) if one.model_a < one.model_b else (one.model_b, one.model_a, -lead)
        )
        for task in dict.fromkeys(("all", one.task or "all")):
            groups[first, second, task].append((lead, one.source))
    rows = []
    for (first, second, task), verdicts in sorted(groups.items()):
        leads = [lead for lead, _ in verdicts]
        rows.append(
            {
                "model_a": first,
                "model_b": second,
                "task": task,
                "good": leads.count(1),
                "same": leads.count(0),
                "bad": leads.count(-1),
                "n": len(leads),
                "difference": sum(leads) / len(leads),
                "ci95": list(paired_difference_interval(leads, [source for _, source in verdicts])),
            }
        )
    return rows


def marks(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Average marks by task, model and criterion, as the paper's Table 2; yes and no are 1 and 0.

    Returns:
      [{"task", "model", "criterion", "scale": [lowest, highest], "mean", "ci95" (marks of one source image are
      correlated), "n"}], in the order of tasks and criteria.
    """
    scales = {}
    groups: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for answer in answers:
        if answer.job != RATING or answer.kind != "plain" or answer.mark is None or answer.candidate is None:
            continue
        for question in questions_of(RATING, answer.task, answer.prompt or "a prompt"):
            scales[answer.task, question.name] = question.scale or YES_NO
        model = answer.models[answer.candidate] if answer.candidate < len(answer.models) else ""
        key = (answer.task, model or "unknown", answer.question)
        groups[key].append((answer.mark, answer.source or f"record {answer.record}"))
    order = {key: place for place, key in enumerate(scales)}
    rows = []
    for task, model, criterion in sorted(groups, key=lambda key: (order.get((key[0], key[2]), 0), key[1])):
        low, high = scales.get((task, criterion), YES_NO)
        values = np.array([mark for mark, _ in groups[task, model, criterion]], np.float64)
        sources = [source for _, source in groups[task, model, criterion]]
        interval = share_interval(np.clip((values - low) / (high - low), 0, 1), sources)
        rows.append(
            {
                "task": task,
                "model": model,
                "criterion": criterion,
                "scale": [low, high],
                "mean": float(values.mean()),
                "ci95": [low + (high - low) * x for x in interval],
                "n": len(values),
            }
        )
    return rows
