"""An annotator's answer, as it is kept: what the store returns and what agreement, pairs and ratings are made of."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

Verdict = Literal["good", "same", "bad"]
# plain: an item of the data; repeat: one that the annotator had before; gold: one whose right answer is known.
Kind = Literal["plain", "repeat", "gold"]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One annotator's answer to one question about one record.

    Candidates are numbered as in the record, whatever the order in which they were shown.

    Attributes:
      record: id of the record.
      task: one of `tasks.TASKS`.
      prompt: the record's.
      job: one of `questions.JOBS`.
      question: name of the question, see `questions.questions_of`.
      annotator: name.
      kind: see `Kind`.
      seconds: from the item's being shown to the answer.
      at: seconds since the epoch, by the server's clock.
      best, worst: `best_worst`: candidates; both None for "no difference".
      verdict: `good_same_bad`: of the first candidate against the second; None for other jobs.
      candidate, mark: `rating`: a candidate and its mark; None for other jobs.
      models: what made each candidate, "" where the record doesn't say.
      source: digest of the source image, "" without one: records that share it are never split.
      reason: the annotator's words, or "".
      points: (candidate, x, y) of defects clicked on; x and y in [0, 1] from the left and the top.
    """

    record: str
    task: str
    prompt: str
    job: str
    question: str
    annotator: str
    kind: Kind = "plain"
    seconds: float = 0.0
    at: float = 0.0
    best: int | None = None
    worst: int | None = None
    verdict: Verdict | None = None
    candidate: int | None = None
    mark: int | None = None
    models: tuple[str, ...] = ()
    source: str = ""
    reason: str = ""
    points: tuple[tuple[int, float, float], ...] = ()


# What many answers have in common, text or tuples of texts.
_REPEATED = ("record", "task", "prompt", "job", "question", "annotator", "kind", "models", "source")


def sharing(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yield the same answers with one copy of every text that they repeat, since millions of them are held at once."""
    kept: dict[Any, Any] = {}
    for answer in answers:
        for name in _REPEATED:
            value = getattr(answer, name)
            # The value is an equal one: nobody sees a frozen answer change.
            object.__setattr__(answer, name, kept.setdefault(value, value))
        yield answer
