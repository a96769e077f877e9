"""Annotated pairs for the judge, from datasets in either form, in batches of one shape.

A pair's shape is the sizes to which the judge resizes its two images.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from onereward_jax.data.buckets import BucketDraw, Size, common_shapes
from onereward_jax.data.manifest import Manifest
from onereward_jax.data.preferences.ballots import Ballots, count_ballots
from onereward_jax.data.preferences.dataset import BAD_SHARE, Stored, known_records, open_records
from onereward_jax.data.preferences.record import Checked, Record
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.question_batches import MAX_DIMENSIONS
from onereward_jax.judge.vision import ImageSettings, smart_resize
from onereward_jax.parallel import hosts
from onereward_jax.tasks import CELLS, dimensions_of

Shape = tuple[Size, Size]


class Pair(NamedTuple):
    """Two candidates of a record, with labels from the annotators.

    Attributes:
      part, row: index of the dataset, and of the record in it.
      id, task, prompt, notes: the record's fields.
      first, second: indices of the candidates.
      sizes: sizes of both images.
      labels: {dimension: +1 if the first is the winner, −1 if the second}.
      ballots: {dimension: what annotators say about the pair}, where some vote names it.
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
    ballots: dict[str, Ballots]


class Pairs(Sequence[Pair]):
    """Pairs, and the datasets that hold their images.

    Attributes:
      drawn: pairs on which annotators voted and of which none won in any dimension: they have no labels.
    """

    def __init__(self, datasets: Sequence[Stored], pairs: Sequence[Pair], drawn: Sequence[Pair] = ()):
        self._datasets, self._pairs, self.drawn = datasets, pairs, drawn

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        return self._pairs[index]

    def where(self, condition: Callable[[Pair], bool]) -> "Pairs":
        """Return the pairs for which the condition holds."""
        chosen = lambda pairs: [pair for pair in pairs if condition(pair)]
        return Pairs(self._datasets, chosen(self._pairs), chosen(self.drawn))

    def images(self, pair: Pair, shape: Shape | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read both images, uint8 (H, W, 3), resized to `shape` if it is given."""
        dataset = self._datasets[pair.part]
        files = dataset.candidates(pair.row, (pair.first, pair.second))
        images = [read_image(file, dataset.name(pair.row)) for file in files]
        if shape is not None:
            images = [resized(image, size) for image, size in zip(images, shape, strict=True)]
        return images[0], images[1]

    def record(self, pair: Pair) -> Record:
        """Read what the pair's record says; its images may be empty."""
        return self._datasets[pair.part].outline(pair.row)

    def request_image(self, pair: Pair, name: str) -> np.ndarray | None:
        """Read the "image" or the "mask" of the pair's request, uint8 (H, W, 3); None where the record has none."""
        if getattr(self.record(pair), name) is None:
            return None
        dataset = self._datasets[pair.part]
        return read_image(dataset.image(pair.row, name), f"{dataset.name(pair.row)}: {name}")


def read_pairs(
    *directories: Path,
    source: str = "",
    check: Callable[[Checked], None] = lambda found: None,
    bad_share: float = BAD_SHARE,
    workdir: Path | None = None,
) -> Pairs:
    """Read the annotated pairs of several datasets; bad records are reported and skipped.

    What was read of a dataset's images is kept in a manifest beside them: a second start decodes none.

    Args:
      directories: datasets in either form, or made by `onereward make-preferences`.
      source: "planted" or "base" reads only those pairs of `make-preferences`.
      check: raises UserError for a record that can't be used.
      bad_share: the share of each dataset's records that may be bad.
      workdir: where manifests of datasets that can't be written are kept.

    Raises:
      FileNotFoundError, UserError: a directory holds no preferences, or incomplete ones, or too many bad ones; or the
        processes of one command see different ones.
    """
    datasets = [open_records(directory) for directory in directories]
    pairs: list[Pair] = []
    drawn: list[Pair] = []
    for part, records in enumerate(datasets):
        before = len(pairs)
        for found in known_records(records, Manifest.of(records.directory, workdir), check, bad_share):
            if not source or found.record.notes.get("source") == source:
                of_record = _pairs_of(part, found.index, found.record, found.sizes)
                pairs += [pair for pair in of_record if pair.labels]
                drawn += [pair for pair in of_record if not pair.labels]
        if len(pairs) == before:
            raise UserError(
                f"{records.directory} holds no annotated {source + ' ' if source else ''}pair:"
                " give other data, or make some"
            )
    hosts.check_same(lambda: hashlib.sha256(repr(pairs).encode()).hexdigest(), "preferences")
    return Pairs(datasets, pairs, drawn)


def check_record(judge: Judge, question_length: int | None, found: Checked) -> None:
    """Check that the judge can be asked about a record and shown its candidates.

    Args:
      question_length: the largest number of tokens in a question; None for no limit.

    Raises:
      UserError: a question can't be encoded or is too long, or an image is too elongated.
    """
    record = found.record
    for size in found.sizes:
        smart_resize(*size, judge.settings)
    dimensions = dimensions_of(record.task, record.prompt)
    judge.check_questions([judge.question(record.task, name, record.prompt) for name in dimensions], question_length)


def _pairs_of(part: int, row: int, record: Record, sizes: Sequence[Size]) -> list[Pair]:
    """Make one pair, with the labels of all dimensions, for every two candidates with a preference or a vote."""
    labels: dict[tuple[int, int], dict[str, int]] = {}
    for preference in record.pairs:
        first, second = sorted((preference.winner, preference.loser))
        labels.setdefault((first, second), {})[preference.dimension] = 1 if preference.winner == first else -1
    ballots: dict[tuple[int, int], dict[str, Ballots]] = {}
    for (dimension, first, second), count in count_ballots(record).items():
        ballots.setdefault((first, second), {})[dimension] = count
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
            labels.get((first, second), {}),
            ballots.get((first, second), {}),
        )
        for first, second in dict.fromkeys([*labels, *ballots])
    ]


def label_row(task: str, prompt: str, labels: dict[str, int]) -> np.ndarray:
    """Return labels (E,) in the order of the task's dimensions: +1, −1, or 0 where the annotator saw no difference."""
    row = [labels.get(dimension, 0) for dimension in dimensions_of(task, prompt)]
    return np.asarray(row + [0] * (MAX_DIMENSIONS - len(row)), np.int32)


def text_free(task: str, prompt: str) -> np.ndarray:
    """Return (E,), 0 for the dimension whose question contains the prompt, and so its colour names, otherwise 1."""
    dimensions = dimensions_of(task, prompt)
    return np.asarray([int(d != "text_alignment") for d in dimensions] + [1] * (MAX_DIMENSIONS - len(dimensions)))


def class_balance(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Count the annotated pairs of every cell: {task: {dimension: count}}."""
    balance: dict[str, dict[str, int]] = {}
    for task, dimension in CELLS:
        balance.setdefault(task, {})[dimension] = 0
    for pair in pairs:
        for dimension in pair.labels:
            balance[pair.task][dimension] += 1
    return balance


# --------------------------------------------------------------------------------------------------------- shapes


def seen_size(size: Size, settings: ImageSettings, step: int = 0) -> Size:
    """Return the size to which the judge resizes an image, its sides rounded to multiples of `step` pixels.

    Rounding leaves fewer distinct sizes; step 0 does not round.
    """
    height, width = smart_resize(*size, settings)
    return (max(round(height / step), 1) * step, max(round(width / step), 1) * step) if step else (height, width)


def seen_shape(pair: Pair, settings: ImageSettings, step: int = 0) -> Shape:
    """Return `seen_size` of both images."""
    return seen_size(pair.sizes[0], settings, step), seen_size(pair.sizes[1], settings, step)


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 (H, W, 3) to (height, width, 3) as the official processor does, with PIL's bicubic filter."""
    if image.shape[:2] == size:
        return image
    return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BICUBIC))


def _distance(shape: Shape, other: Shape) -> float:
    sides = zip((*shape[0], *shape[1]), (*other[0], *other[1]), strict=True)
    return sum(abs(math.log(a / b)) for a, b in sides)


class PairDraw:
    """Draws pairs for batches of one shape each (the sizes of both images), see `data.buckets`."""

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
          weights: {task: weight}.
          balanced: draw a dimension of the task first, uniformly, then a pair that is annotated in it.
        """
        self._pairs, self._balanced = pairs, balanced
        asked = pairs.where(lambda pair: weights.get(pair.task, 0) > 0)
        # Both orders of a pair are asked anyway, so the larger size comes first.
        self._seen = functools.partial(seen_shape, settings=settings, step=step)
        ordered = [max(shape, shape[::-1]) for shape in map(self._seen, asked)]
        # A shape with fewer pairs than a batch would fill it with copies.
        shown = common_shapes(ordered, batch_size, _distance)
        self._annotated: dict[tuple[Shape, str], dict[str, list[Pair]]] = {}
        for pair, shape in zip(asked, ordered, strict=True):
            annotated = self._annotated.setdefault((shown[shape], pair.task), {})
            for dimension in pair.labels:
                annotated.setdefault(dimension, []).append(pair)
        items = ((shown[shape], pair.task, pair) for pair, shape in zip(asked, ordered, strict=True))
        self._draw: BucketDraw[Shape, Pair] = BucketDraw(items, batch_size, weights)
        self.shapes = self._draw.shapes

    def shape(self, seed: int, index: int) -> Shape:
        """Return the shape of the batch that contains sample `index` of the run."""
        return self._draw.shape(seed, index)

    def draw(
        self, generator: np.random.Generator, seed: int, index: int, task: str
    ) -> tuple[np.ndarray, np.ndarray, Pair, int, str]:
        """Draw a pair.

        Args:
          generator: the sample's random generator.
          seed, index: the run's seed, and the sample's global index.
          task: the task that the mixture drew.

        Returns:
          both images as shown; their pair; −1 if the pair's second image is shown first, otherwise 1; and the dimension
          drawn, or "" if not `balanced`.
        """
        shape, task, pair = self._draw.draw(generator, seed, index, task)
        dimension = ""
        if self._balanced:
            annotated = self._annotated[shape, task]
            dimension = sorted(annotated)[generator.integers(len(annotated))]
            pair = annotated[dimension][generator.integers(len(annotated[dimension]))]
        if shape[0] == shape[1]:
            swapped = bool(generator.random() >= 0.5)  # so that the order carries no information
        else:
            seen = self._seen(pair)
            swapped = _distance(seen, shape) > _distance(seen[::-1], shape)
        first, second = self._pairs.images(pair, shape[::-1] if swapped else shape)
        return (second, first, pair, -1, dimension) if swapped else (first, second, pair, 1, dimension)
