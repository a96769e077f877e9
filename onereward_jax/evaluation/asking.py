"""The judge's answers about many pictures: of a policy and its base, and of annotated pairs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from onereward_jax import tasks
from onereward_jax.data.proving_ground import ProvingGround
from onereward_jax.data.proving_ground.parallel import score_all
from onereward_jax.evaluation.accuracy import Record
from onereward_jax.judge.batches import question_batch
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.preferences import read_pairs

Text = tuple[str, str]  # task, prompt


def batches_of(total: int, size: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of one size: the last one is filled up, so that one compiled program serves all."""
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1)


def ask_both_orders(
    judge: Judge,
    texts: Sequence[Text],
    first: np.ndarray,
    second: np.ndarray,
    batch_size: int,
    question_length: int,
) -> np.ndarray:
    """P(Yes) in both orders, float32 (2, S, E), for S texts and uint8 images (S, H, W, 3)."""
    apply = jax.jit(lambda params, batch: judge.apply(params, batch, both_orders=True))
    answers = []
    for rows in batches_of(len(texts), batch_size):
        batch = question_batch(judge, [texts[row][0] for row in rows], [texts[row][1] for row in rows], question_length)
        log_p = apply(judge.params, {"first": first[rows], "second": second[rows], **batch})
        answers.append(np.exp(np.asarray(log_p[..., 0])))
    return np.concatenate(answers, axis=1)[:, : len(texts)]


def judge_views(
    judge: Judge, texts: Sequence[Text], first: np.ndarray, second: np.ndarray, batch_size: int, question_length: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """P(Yes) of (first, second) and of (second, first): for each text, {dimension: P}."""
    both = ask_both_orders(judge, texts, first, second, batch_size, question_length)
    views: tuple[list, list] = ([], [])
    for order, view in zip(both, views, strict=True):
        for text, p in zip(texts, order, strict=True):
            view.append({d: float(x) for d, x in zip(tasks.dimensions_of(*text), p, strict=False)})
    return views


def longest_question(judge: Judge, texts: Sequence[Text]) -> int:
    """Tokens of the longest question about any of the texts."""
    asked = {
        judge.question(task, dimension, prompt)
        for task, prompt in set(texts)
        for dimension in tasks.dimensions_of(task, prompt)
    }
    return judge.encode_questions(sorted(asked))[0].shape[1]


def preference_records(
    judge: Judge,
    directory: Path,
    *,
    batch_size: int = 50,
    question_length: int | None = None,
    source: str = "",
    ground: ProvingGround | None = None,
) -> list[Record]:
    """What the judge says of every annotated pair of a directory of `make_preferences`, for `judge_accuracy`.

    Args:
      question_length: tokens of a question; the longest one's if None.
      source: "planted" or "base" takes only those parts.
      ground: of the pairs' scenes, to know the truth; without it, whether the annotator was right stays unknown.

    Raises:
      UserError: the directory holds no preferences, or not all of them.
    """
    candidates, pairs = read_pairs(directory, source=source)
    texts = [(pair.task, pair.prompt) for pair in pairs]
    first, second = (
        np.stack([candidates[pair.part][pair.row, which(pair)] for pair in pairs])
        for which in (lambda pair: pair.first, lambda pair: pair.second)
    )
    both = ask_both_orders(judge, texts, first, second, batch_size, question_length or longest_question(judge, texts))
    truth: list | None = None
    if ground is not None:
        scenes = [ground.scene(pair.scene, pair.task) for pair in pairs]
        truth = score_all(scenes, zip(first, second, strict=True))
    records: list[Record] = []
    for number, pair in enumerate(pairs):
        for column, dimension in enumerate(tasks.dimensions_of(pair.task, pair.prompt)):
            label = pair.labels.get(dimension)
            if label is None:
                continue
            as_given, swapped = (float(p) for p in both[:, number, column])
            winner_first, loser_first = (as_given, swapped) if label > 0 else (swapped, as_given)
            better = None
            if truth is not None:
                lead = truth[number][0][dimension] - truth[number][1][dimension]
                better = None if lead == 0 else bool(lead * label > 0)
            records.append((pair.task, dimension, winner_first, loser_first, better))
    return records
