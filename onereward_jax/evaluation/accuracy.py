"""How often the judge prefers the winner of a held-out pair (the paper's Table 1)."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from onereward_jax.data.preferences.ballots import Ballots
from onereward_jax.errors import UserError
from onereward_jax.intervals import paired_difference_interval, share_interval, wilson_interval
from onereward_jax.tasks import CELLS

# A judge's answers about an annotated pair: task, dimension, P(Yes | winner, loser), P(Yes | loser, winner), and
# whether the annotator's winner is better by ground truth (None: unknown).
Prediction = tuple[str, str, float, float, bool | None]

# What several annotators say about a pair: task, dimension, votes, and the group of correlated ballots that it belongs
# to, such as its record.
Ballot = tuple[str, str, Ballots, Hashable]

CALIBRATION_BINS = 10


def judge_accuracy(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Measure the judge's accuracy, position bias and calibration, per task × dimension and overall.

    The judge prefers the first image when P(Yes) > ½; exactly ½ counts half. "accuracy" is the mean over both orders.
    "ceiling" is the share of pairs whose annotated winner has the higher ground-truth score: the accuracy of the ground
    truth itself against these noisy labels. "truth_accuracy" is the judge's accuracy against the ground truth.

    Returns:
      {"cells": {task: {dimension: summary}}, "overall": summary | {"calibration": [bin, ...]}}, of plain numbers:
      summary = {"n", "accuracy", "ci95", "winner_first", "loser_first", "both_orders" (the decision by the mean of both
      probabilities), "ceiling", "truth_accuracy" (None without ground truth), "position_bias" (mean P(Yes) over
      both orders − ½: positive favours the first image), "calibration_error"};
      bin = {"lower", "upper", "n", "predicted", "observed"}. Without predictions: no cells, and "overall" is None.

    Raises:
      UserError: a cell does not exist, or a probability is not in [0, 1].
    """
    by_cell: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if (prediction[0], prediction[1]) not in CELLS:
            raise UserError(f"{prediction[0]} × {prediction[1]} is no cell of onereward_jax.tasks.CELLS")
        if not (0 <= prediction[2] <= 1 and 0 <= prediction[3] <= 1):
            raise UserError(
                f"P(Yes) of {prediction[0]} × {prediction[1]} is not in [0, 1]: {prediction[2]}, {prediction[3]}"
            )
        by_cell[prediction[0], prediction[1]].append(prediction)

    cells: dict[str, dict[str, Any]] = {}
    for task, dimension in CELLS:
        if (task, dimension) in by_cell:
            cells.setdefault(task, {})[dimension] = _summary(by_cell[task, dimension])
    everything = [prediction for group in by_cell.values() for prediction in group]
    if not everything:
        return {"cells": {}, "overall": None}
    return {"cells": cells, "overall": _summary(everything) | {"calibration": _calibration(everything)}}


def accuracy_difference(
    predictions: Sequence[Prediction], others: Sequence[Prediction], groups: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Measure how much more often one judge is right than another about the same pairs, mean over both orders.

    Args:
      predictions, others: predictions of the two judges, in the same order.
      groups: group of correlated predictions that each belongs to, see `judge_predictions.records_of`; by default all
        are independent.

    Returns:
      {"cells": {task: {dimension: summary}}, "tasks": {task: summary}, "overall": summary}, with summary = {"n",
      "difference", "ci95" (paired)}. Without predictions: no cells, no tasks, and "overall" is None.

    Raises:
      UserError: the predictions are about different pairs.
    """
    if [prediction[:2] for prediction in predictions] != [prediction[:2] for prediction in others]:
        raise UserError("the two judges were not asked the same questions")
    groups = range(len(predictions)) if groups is None else groups
    differences = _right(predictions) - _right(others)

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        of_rows = differences[list(rows)]
        interval = paired_difference_interval(of_rows, [groups[row] for row in rows])
        return {"n": len(rows), "difference": float(of_rows.mean()), "ci95": list(interval)}

    by_cell: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, prediction in enumerate(predictions):
        by_cell[prediction[0], prediction[1]].append(row)
    cells: dict[str, dict[str, Any]] = {}
    by_task: dict[str, list[int]] = defaultdict(list)
    for task, dimension in CELLS:
        if rows := by_cell.get((task, dimension)):
            cells.setdefault(task, {})[dimension] = summary(rows)
            by_task[task] += rows
    return {
        "cells": cells,
        "tasks": {task: summary(rows) for task, rows in by_task.items()},
        "overall": summary(range(len(predictions))) if predictions else None,
    }


def human_accuracy(ballots: Iterable[Ballot]) -> dict[str, Any] | None:
    """Measure how often a single annotator agrees with the majority of the others: what a judge can hope to reach.

    Each annotator is asked in turn about the pairs that the others label, as data are labelled: by votes that name the
    pair, of which a draw is no label. The answer is what the annotator's own vote implies, whichever candidates it
    names: were only those asked who name the same two, agreement would look better than it is. A vote that does not
    order the pair counts half, as a judge's P(Yes) of exactly ½ does.

    Returns:
      {"cells": {task: {dimension: summary}}, "overall": summary}, with summary = {"n" (annotators asked), "accuracy",
      "ci95" (ballots of one group are correlated)}; None if no two annotators have voted on a pair.

    Raises:
      UserError: a cell does not exist.
    """
    by_cell: dict[tuple[str, str], list[tuple[float, Hashable]]] = defaultdict(list)
    for task, dimension, votes, group in ballots:
        if (task, dimension) not in CELLS:
            raise UserError(f"{task} × {dimension} is no cell of onereward_jax.tasks.CELLS")
        lead = votes.first - votes.second
        shares = [0.5] * (votes.neither if lead else 0)
        for side, named, implied in ((1, votes.first, votes.implied_first), (-1, votes.second, votes.implied_second)):
            for of_others, asked in ((lead - side, named), (lead, implied)):
                shares += [float(of_others * side > 0)] * (asked if of_others else 0)
        if shares:
            by_cell[task, dimension] += [(share, group) for share in shares]

    def summary(asked: Sequence[tuple[float, Hashable]]) -> dict[str, Any]:
        shares, groups = zip(*asked, strict=True)
        return {"n": len(asked), "accuracy": float(np.mean(shares)), "ci95": list(share_interval(shares, groups))}

    cells: dict[str, dict[str, Any]] = {}
    for task, dimension in CELLS:
        if of_cell := by_cell.get((task, dimension)):
            cells.setdefault(task, {})[dimension] = summary(of_cell)
    everything = [answer for of_cell in by_cell.values() for answer in of_cell]
    return {"cells": cells, "overall": summary(everything)} if everything else None


def table(accuracy: dict[str, Any], key: str = "accuracy") -> dict[str, dict[str, float]]:
    """Pick one number per cell, {task: {dimension: x}}, leaving out cells without it."""
    numbers = {
        task: {dimension: cell[key] for dimension, cell in dimensions.items() if cell[key] is not None}
        for task, dimensions in accuracy["cells"].items()
    }
    return {task: dimensions for task, dimensions in numbers.items() if dimensions}


def _answers(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return P(Yes) with the winner first, and with the loser first."""
    winner_first, loser_first = np.array([prediction[2:4] for prediction in predictions], np.float64).reshape(-1, 2).T
    return winner_first, loser_first


def _right(predictions: Sequence[Prediction]) -> np.ndarray:
    """Return the share of orders in which the judge prefers the winner; an answer of exactly ½ counts half."""
    winner_first, loser_first = _answers(predictions)
    return (_above(winner_first, 0.5) + 1 - _above(loser_first, 0.5)) / 2


def _summary(predictions: list[Prediction]) -> dict[str, Any]:
    winner_first, loser_first = _answers(predictions)
    right_winner_first, right_loser_first = _above(winner_first, 0.5), 1 - _above(loser_first, 0.5)
    right = _right(predictions)
    known = np.array([prediction[4] is not None for prediction in predictions])
    label_is_true = np.array([bool(prediction[4]) for prediction in predictions])[known]
    truly_right = np.where(label_is_true, right[known], 1 - right[known])
    bins = _calibration(predictions)
    return {
        "n": len(predictions),
        "accuracy": float(right.mean()),
        "ci95": list(wilson_interval(float(right.sum()), len(predictions))),
        "winner_first": float(right_winner_first.mean()),
        "loser_first": float(right_loser_first.mean()),
        "both_orders": float(_above(winner_first, loser_first).mean()),
        "ceiling": float(label_is_true.mean()) if known.any() else None,
        "truth_accuracy": float(truly_right.mean()) if known.any() else None,
        "position_bias": float((winner_first + loser_first).mean() / 2 - 0.5),
        "calibration_error": sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins)
        / sum(b["n"] for b in bins),
    }


def _above(values: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.where(values == threshold, 0.5, values > threshold)


def _calibration(predictions: list[Prediction]) -> list[dict[str, float]]:
    """For each bin of P(Yes), compare its mean with how often the first image had won."""
    predicted = np.array([probability for prediction in predictions for probability in prediction[2:4]], np.float64)
    won = np.tile([1.0, 0.0], len(predictions))
    index = np.minimum((predicted * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "lower": number / CALIBRATION_BINS,
            "upper": (number + 1) / CALIBRATION_BINS,
            "n": int((index == number).sum()),
            "predicted": float(predicted[index == number].mean()),
            "observed": float(won[index == number].mean()),
        }
        for number in range(CALIBRATION_BINS)
        if (index == number).any()
    ]
