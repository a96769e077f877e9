"""The judge's answers about many images: by a policy and its base, and in annotated pairs."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from onereward_jax import tasks
from onereward_jax.config.schema import JudgeTraining
from onereward_jax.data.preferences.record import ORIGINAL
from onereward_jax.data.source import Source, ground_truth_of
from onereward_jax.errors import UserError
from onereward_jax.evaluation.accuracy import Ballot, Prediction, human_accuracy, judge_accuracy, table
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import Pair, Pairs, Shape, seen_shape
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding, traced_for
from onereward_jax.parallel.mesh import batch_shards
from onereward_jax.training.trainer import check_devices

Text = tuple[str, str]  # task, prompt


def batches_of(total: int, size: int) -> Iterator[np.ndarray]:
    """Yield row numbers in batches of one size; the last batch is padded, so that one compiled program serves all."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


# (parameters, batch) -> log P, (2, B, E, 2)
Ask = Callable[[Any, dict[str, np.ndarray]], jax.Array]


def compiled_ask(judge: Judge, mesh: Mesh | None = None) -> Ask:
    """Compile both orders of a batch into one program per shape; keep it for repeated calls.

    Args:
      mesh: over which the parameters are spread; its devices share a batch. None is one device.
    """
    ask = asking(judge.apply, mesh)
    if mesh is None:
        return ask
    place = lambda batch: hosts.place(batch, batch_sharding(mesh, len(batch["first"])))
    return lambda params, batch: ask(params, place(batch))


def asking(apply: Callable[..., jax.Array], mesh: Mesh | None) -> Any:
    """The jitted program of `compiled_ask`.

    Args:
      apply: `Judge.apply`.
    """
    return jax.jit(traced_for(mesh, lambda params, batch: apply(params, batch, both_orders=True)))


def ask_both_orders(
    judge: Judge,
    texts: Sequence[Text],
    first: np.ndarray,
    second: np.ndarray,
    batch_size: int,
    question_length: int,
    params: Any = None,
    ask: Ask | None = None,
) -> np.ndarray:
    """Ask for P(Yes) in both image orders, float32 (2, S, E), for S texts and uint8 images (S, H, W, 3).

    Args:
      params: parameters to use instead of the judge's own.
      ask: result of an earlier `compiled_ask(judge)`.
    """
    ask = compiled_ask(judge) if ask is None else ask
    params = judge.params if params is None else params
    answers = []
    for rows in batches_of(len(texts), batch_size):
        asked = question_batch(judge, [texts[row][0] for row in rows], [texts[row][1] for row in rows], question_length)
        log_p = ask(params, {"first": first[rows], "second": second[rows], **asked.arrays()})
        answers.append(np.exp(hosts.fetch(log_p)[..., 0]))
    return np.concatenate(answers, axis=1)[:, : len(texts)]


def judge_views(
    judge: Judge,
    texts: Sequence[Text],
    first: np.ndarray,
    second: np.ndarray,
    batch_size: int,
    question_length: int,
    ask: Ask | None = None,
    params: Any = None,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Ask for P(Yes) of (first, second) and (second, first): for each text, {dimension: P}. See `ask_both_orders`."""
    both = ask_both_orders(judge, texts, first, second, batch_size, question_length, params, ask)
    views: tuple[list, list] = ([], [])
    for order, view in zip(both, views, strict=True):
        for text, p in zip(texts, order, strict=True):
            view.append({d: float(x) for d, x in zip(tasks.dimensions_of(*text), p, strict=False)})
    return views


def longest_question(judge: Judge, texts: Sequence[Text]) -> int:
    """Return the number of tokens of the longest question about the texts."""
    asked = {
        judge.question(task, dimension, prompt)
        for task, prompt in set(texts)
        for dimension in tasks.dimensions_of(task, prompt)
    }
    return judge.encode_questions(sorted(asked))[0].shape[1]


def judge_pairs(
    judge: Judge,
    pairs: Pairs,
    *,
    batch_size: int = 50,
    question_length: int | None = None,
    source: Source | None = None,
    params: Any = None,
    ask: Ask | None = None,
    mesh: Mesh | None = None,
    image_step: int = 0,
) -> list[Prediction]:
    """Ask the judge about every annotated pair, for `judge_accuracy`, batching pairs of one shape.

    Args:
      batch_size: largest batch; a shape with fewer pairs gets a smaller one.
      question_length: tokens of a question; by default those of the longest.
      source: source of the pairs' samples, for its ground truth; without it, `Prediction` does not say whether the
        annotator was right.
      params, ask: see `ask_both_orders`.
      mesh: over which the parameters are spread; its devices share a batch. None is one device.
      image_step: see `pairs.seen_size`; without it, each pair of image sizes compiles a program.

    Raises:
      UserError: an answer is not a number.
    """
    texts = [(pair.task, pair.prompt) for pair in pairs]
    length = question_length or longest_question(judge, texts)
    ask = compiled_ask(judge, mesh) if ask is None else ask
    shards = batch_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    by_shape: dict[Shape, list[int]] = {}
    for number, pair in enumerate(pairs):
        by_shape.setdefault(seen_shape(pair, judge.settings, image_step), []).append(number)
    both: dict[int, np.ndarray] = {}
    truth: dict[int, Any] = {}
    for shape, numbers in by_shape.items():
        for start in range(0, len(numbers), batch_size):  # hold the images of one batch, never of all pairs
            rows = numbers[start : start + batch_size]
            first, second = (np.stack(x) for x in zip(*(pairs.images(pairs[n], shape) for n in rows), strict=True))
            size = min(batch_size, -(-len(numbers) // shards) * shards)
            p = ask_both_orders(judge, [texts[n] for n in rows], first, second, size, length, params, ask)
            both |= {number: p[:, row] for row, number in enumerate(rows)}
            if source is not None:
                samples = [source.sample(pairs[n].notes["scene"], pairs[n].task) for n in rows]
                scores = ground_truth_of(source, "the judge's ceiling").score_images(
                    samples, zip(first, second, strict=True)
                )
                truth |= dict(zip(rows, scores, strict=True))
    predictions: list[Prediction] = []
    for number, column, dimension in annotated(pairs):
        label = pairs[number].labels[dimension]
        as_given, swapped = (float(p) for p in both[number][:, column])
        if not math.isfinite(as_given + swapped):
            raise UserError("the judge's answer is not a number: check the weights for NaN")
        winner_first, loser_first = (as_given, swapped) if label > 0 else (swapped, as_given)
        better = None
        if number in truth:
            lead = truth[number][0][dimension] - truth[number][1][dimension]
            better = None if lead == 0 else bool(lead * label > 0)
        predictions.append((pairs[number].task, dimension, winner_first, loser_first, better))
    return predictions


def annotated(pairs: Pairs) -> Iterator[tuple[int, int, str]]:
    """Yield (pair number, column in its task's dimensions, dimension) of every label, in the order of predictions."""
    for number, pair in enumerate(pairs):
        for column, dimension in enumerate(tasks.dimensions_of(pair.task, pair.prompt)):
            if dimension in pair.labels:
                yield number, column, dimension


def records_of(pairs: Pairs) -> list[Hashable]:
    """Return the record that was voted on of each prediction of `judge_pairs`: predictions of one are correlated."""
    return [_record(pairs[number]) for number, _, _ in annotated(pairs)]


def _record(pair: Pair) -> Hashable:
    """Identify the record that was voted on, of which there may be a record for each annotator."""
    original = pair.notes.get(ORIGINAL)
    return pair.part, original if isinstance(original, str) else pair.row


def ballots_of(pairs: Pairs) -> list[Ballot]:
    """Return the votes on all pairs, those included of which none won, for `human_accuracy`."""
    return [
        (pair.task, dimension, votes, _record(pair))
        for pair in (*pairs, *pairs.drawn)
        for dimension, votes in pair.ballots.items()
    ]


def judge_pairs_by_task(judge_of: Callable[[str], Judge], pairs: Pairs, **options: Any) -> list[Prediction]:
    """Ask about each pair with the judge of its task, in the order of the pairs, with one judge in memory at a time."""

    def answers(task: str) -> list[Prediction]:
        return judge_pairs(judge_of(task), pairs.where(lambda pair: pair.task == task), **options)

    of_task = {task: iter(answers(task)) for task in sorted({pair.task for pair in pairs})}
    return [next(of_task[pairs[number].task]) for number, _, _ in annotated(pairs)]


def held_out_accuracy(config: JudgeTraining, judge: Judge, pairs: Pairs) -> Callable[[Any], dict[str, float]]:
    """Make a function from parameters to held-out accuracy: overall ("accuracy") and per "<task>/<dimension>".

    Where several annotators voted on a pair, "one_annotator" is `human_accuracy` over all.
    """
    humans = human_accuracy(ballots_of(pairs))
    beside = {"one_annotator": humans["overall"]["accuracy"]} if humans else {}
    ask = compiled_ask(judge, check_devices(config))

    def measure(params: Any) -> dict[str, float]:
        predictions = judge_pairs(
            judge,
            pairs,
            batch_size=config.train.batch_size,
            question_length=config.question_length,
            params=params,
            ask=ask,
            image_step=config.judge.image_step,
        )
        found = judge_accuracy(predictions)
        cells = {f"{task}/{name}": x for task, row in table(found).items() for name, x in row.items()}
        return {"accuracy": found["overall"]["accuracy"], **beside, **cells}

    return measure
