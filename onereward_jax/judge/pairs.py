"""Annotated pairs for the judge, of datasets in either form, and batches of pictures of many sizes.

A batch holds pairs of one shape: the sizes at which the judge sees both pictures.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from onereward_jax.data.buckets import BucketDraw, Size, common_shapes
from onereward_jax.data.preferences.dataset import BAD_SHARE, Records, good_records, open_records
from onereward_jax.data.preferences.record import Record
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from onereward_jax.judge.batches import MAX_DIMENSIONS
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.vision import ImageSettings, smart_resize
from onereward_jax.tasks import CELLS, dimensions_of

Shape = tuple[Size, Size]


class Pair(NamedTuple):
    """Two candidates of a record and what annotators said of them.

    Attributes:
      part, row: which of the datasets, and which of its records.
      id, task, prompt, notes: of the record.
      first, second: which of its candidates.
      sizes: of both.
      labels: {dimension: +1 if the first is the winner, −1 if the second}.
    """

    part: int
    row: int
    id: str
    task: str
    prompt: str
    notes: Mapping[str, Any]
    first: int
    second: int
    sizes: Shape
    labels: dict[str, int]


class Pairs(Sequence[Pair]):
    """Pairs, and the datasets in which their pictures lie."""

    def __init__(self, datasets: Sequence[Records], pairs: Sequence[Pair]):
        self._datasets, self._pairs = datasets, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        return self._pairs[index]

    def where(self, chosen: Callable[[Pair], bool]) -> "Pairs":
        """Those of the pairs that are chosen."""
        return Pairs(self._datasets, [pair for pair in self._pairs if chosen(pair)])

    def images(self, pair: Pair, shape: Shape | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Both pictures, uint8 (H, W, 3), resized to `shape` if it is given."""
        dataset = self._datasets[pair.part]
        candidates = dataset[pair.row].candidates
        pictures = [read_image(candidates[i].image, dataset.name(pair.row)) for i in (pair.first, pair.second)]
        if shape is not None:
            pictures = [resized(picture, size) for picture, size in zip(pictures, shape, strict=True)]
        return pictures[0], pictures[1]


def read_pairs(
    *directories: Path, source: str = "", check: Callable[[Record], None] = lambda record: None, bad_share=BAD_SHARE
) -> Pairs:
    """The pairs of datasets that were annotated in any dimension; bad records are named and left out.

    Args:
      directories: in either form, or of `onereward make-preferences`.
      source: "planted" or "base" reads only those pairs of `make-preferences`.
      check: raises UserError for a record that can't be used.
      bad_share: of each dataset's records, that may be bad.

    Raises:
      FileNotFoundError, UserError: a directory holds no preferences, or not all of them; or too many bad ones.
    """
    datasets = [open_records(directory) for directory in directories]
    pairs: list[Pair] = []
    for part, records in enumerate(datasets):
        before = len(pairs)
        for found in good_records(records, check, bad_share):
            if not source or found.record.notes.get("source") == source:
                pairs += _pairs_of(part, found.index, found.record, found.sizes)
        if len(pairs) == before:
            raise UserError(
                f"{records.directory} holds no {source + ' ' if source else ''}pair that was annotated:"
                " name other data, or make some"
            )
    return Pairs(datasets, pairs)


def check_record(judge: Judge, question_length: int | None, record: Record) -> None:
    """
    Args:
      question_length: tokens that there is room for; None: any number.

    Raises:
      UserError: the judge can't be asked about the record.
    """
    for dimension in dimensions_of(record.task, record.prompt):
        judge.encode_questions([judge.question(record.task, dimension, record.prompt)], question_length)


def _pairs_of(part: int, row: int, record: Record, sizes: Sequence[Size]) -> list[Pair]:
    """One pair for every two candidates that some dimension set apart; all its dimensions together."""
    labels: dict[tuple[int, int], dict[str, int]] = {}
    for preference in record.pairs:
        first, second = sorted((preference.winner, preference.loser))
        labels.setdefault((first, second), {})[preference.dimension] = 1 if preference.winner == first else -1
    return [
        Pair(
            part,
            row,
            record.id,
            record.task,
            record.prompt,
            record.notes,
            first,
            second,
            (sizes[first], sizes[second]),
            given,
        )
        for (first, second), given in labels.items()
    ]


def label_row(task: str, prompt: str, labels: dict[str, int]) -> np.ndarray:
    """(E,) labels in the order of the task's dimensions: +1, −1, or 0 where the annotator saw no difference."""
    row = [labels.get(dimension, 0) for dimension in dimensions_of(task, prompt)]
    return np.asarray(row + [0] * (MAX_DIMENSIONS - len(row)), np.int32)


def text_free(task: str, prompt: str) -> np.ndarray:
    """(E,), 1 for the task's dimensions in which the prompt, and so the names of colours in it, plays no part."""
    dimensions = dimensions_of(task, prompt)
    return np.asarray([int(d != "text_alignment") for d in dimensions] + [1] * (MAX_DIMENSIONS - len(dimensions)))


def class_balance(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """{task: {dimension: annotated pairs}} of all cells, those without a pair too."""
    balance: dict[str, dict[str, int]] = {}
    for task, dimension in CELLS:
        balance.setdefault(task, {})[dimension] = 0
    for pair in pairs:
        for dimension in pair.labels:
            balance[pair.task][dimension] += 1
    return balance


# --------------------------------------------------------------------------------------------------------- shapes


def seen_size(size: Size, settings: ImageSettings, step: int = 0) -> Size:
    """The size at which the judge sees a picture, its sides then rounded to multiples of `step` pixels (0: they are
    not), so that pictures of many sizes share few."""
    height, width = smart_resize(*size, settings)
    return (max(round(height / step), 1) * step, max(round(width / step), 1) * step) if step else (height, width)


def seen_shape(pair: Pair, settings: ImageSettings, step: int = 0) -> Shape:
    """`seen_size` of both pictures."""
    return seen_size(pair.sizes[0], settings, step), seen_size(pair.sizes[1], settings, step)


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3), as the official processor resizes: PIL's bicubic filter."""
    if image.shape[:2] == size:
        return image
    return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BICUBIC))


def _distance(shape: Shape, other: Shape) -> float:
    sides = zip((*shape[0], *shape[1]), (*other[0], *other[1]), strict=True)
    return sum(abs(math.log(a / b)) for a, b in sides)


class PairDraw:
    """Draws pairs for batches of one shape each: the sizes of both pictures, see `data.buckets`."""

    def __init__(
        self,
        pairs: Pairs,
        settings: ImageSettings,
        step: int,
        batch_size: int,
        weights: Mapping[str, float],
        balanced: bool = False,
    ):
        """
        Args:
          weights: of the tasks.
          balanced: of the batch's shape, a dimension of the task is drawn first, each as likely, then a pair that is
            annotated in it.
        """
        self._pairs, self._balanced = pairs, balanced
        asked = pairs.where(lambda pair: weights.get(pair.task, 0) > 0)
        # Both orders of a pair are asked in any case: of two sizes, the larger stands first.
        self._seen = functools.partial(seen_shape, settings=settings, step=step)
        ordered = [max(shape, shape[::-1]) for shape in map(self._seen, asked)]
        # Fewer pairs than a batch would fill it with copies of one another.
        shown = common_shapes(ordered, batch_size, _distance)
        self._annotated: dict[tuple[Shape, str], dict[str, list[Pair]]] = {}
        for pair, shape in zip(asked, ordered, strict=True):
            of_task = self._annotated.setdefault((shown[shape], pair.task), {})
            for dimension in pair.labels:
                of_task.setdefault(dimension, []).append(pair)
        items = ((shown[shape], pair.task, pair) for pair, shape in zip(asked, ordered, strict=True))
        self._draw: BucketDraw[Shape, Pair] = BucketDraw(items, batch_size, weights)
        self.shapes = self._draw.shapes

    def shape(self, seed: int, index: int) -> Shape:
        """Of the batch in which sample `index` of the run is."""
        return self._draw.shape(seed, index)

    def draw(
        self, generator: np.random.Generator, seed: int, index: int, task: str
    ) -> tuple[np.ndarray, np.ndarray, Pair, int, str]:
        """Both pictures as they are shown, their pair, −1 where the pair's second stands first, otherwise 1, and the
        dimension that was drawn, "" if none was.

        Args:
          generator: of the sample.
          seed, index: of the run, and of the sample in it.
          task: as the mixture drew it.
        """
        shape, task, pair = self._draw.draw(generator, seed, index, task)
        dimension = ""
        if self._balanced:
            annotated = self._annotated[shape, task]
            dimension = sorted(annotated)[generator.integers(len(annotated))]
            pair = annotated[dimension][generator.integers(len(annotated[dimension]))]
        if shape[0] == shape[1]:
            turned = bool(generator.random() >= 0.5)  # which of the two stands first says nothing
        else:
            mine = self._seen(pair)
            turned = _distance(mine, shape) > _distance(mine[::-1], shape)
        first, second = self._pairs.images(pair, shape[::-1] if turned else shape)
        return (second, first, pair, -1, dimension) if turned else (first, second, pair, 1, dimension)
