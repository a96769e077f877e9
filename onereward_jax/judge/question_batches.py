"""Batches of questions for the judge."""

from collections.abc import Sequence

import numpy as np

from onereward_jax.judge.judge import Judge
from onereward_jax.judge.scorer import Questions
from onereward_jax.tasks import CELLS, TASKS, dimensions_of

MAX_DIMENSIONS = max(len(dimensions_of(task)) for task in TASKS)


def question_batch(judge: Judge, tasks: Sequence[str], prompts: Sequence[str], length: int) -> Questions:
    """Tokenise the questions of every sample, padded to the largest number of dimensions.

    Args:
      length: S, tokens per question; static, so that one compiled program serves every batch.

    Returns:
      NumPy arrays; padding has length 0, weight 0 and cell −1.

    Raises:
      UserError: a question is longer than `length`.
    """
    cells = np.full((len(tasks), MAX_DIMENSIONS), -1, np.int32)
    texts: list[str | None] = []
    for row, (task, prompt) in enumerate(zip(tasks, prompts, strict=True)):
        dimensions = dimensions_of(task, prompt)
        cells[row, : len(dimensions)] = [CELLS.index((task, dimension)) for dimension in dimensions]
        texts += [judge.question(task, dimension, prompt) for dimension in dimensions]
        texts += [None] * (MAX_DIMENSIONS - len(dimensions))
    ids, lengths = judge.encode_questions(texts, length)
    return Questions(
        ids=ids.reshape(len(tasks), MAX_DIMENSIONS, length),
        lengths=lengths.reshape(len(tasks), MAX_DIMENSIONS),
        weights=(cells >= 0).astype(np.float32),
        cell=cells,
    )


def ask_only(batch: dict[str, np.ndarray], asked: np.ndarray) -> dict[str, np.ndarray]:
    """Keep K of the E questions of every sample, so that the others cost nothing.

    Args:
      batch: arrays (B, E, ...).
      asked: (B, K), indices of the questions to keep.

    Returns:
      arrays (B, K, ...).
    """
    take = lambda x: np.take_along_axis(x, asked.reshape(*asked.shape, *[1] * (x.ndim - 2)), axis=1)
    return {name: take(value) for name, value in batch.items()}
