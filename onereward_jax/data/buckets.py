"""Batches of one static shape, of pictures of many: every shape compiles a program of its own, so few are kept."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Size = tuple[int, int]  # height, width
Shape = TypeVar("Shape", bound=Hashable)
Item = TypeVar("Item")


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """Sizes of about the area of a square of `resolution` pixels, and not above it, as SDXL's training has them
    (arXiv 2307.01952, 2.3).

    Args:
      step: every side is a multiple of it.
      max_aspect: of the longer side to the shorter.
    """
    sizes = {(resolution, resolution)}
    for width in range(step, round(resolution * max_aspect) + step, step):
        height = resolution**2 // width // step * step
        if height and max(height, width) <= max_aspect * min(height, width):
            sizes |= {(height, width), (width, height)}
    return tuple(sorted(sizes))


def aspect_distance(size: Size, other: Size) -> float:
    """How much has to be cut off: |log| of the ratio of two aspects."""
    return abs(math.log(size[0] / size[1] * other[1] / other[0]))


def common_shapes(shapes: Sequence[Shape], least: int, distance: Callable[[Shape, Shape], float]) -> dict[Shape, Shape]:
    """Each shape -> the one in which it is shown: itself, if `least` items have it, or else the nearest that they have.

    Where no shape has that many, the most frequent one takes all.
    """
    counts: dict[Shape, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    kept = [shape for shape, count in counts.items() if count >= least] or [max(counts, key=lambda s: counts[s])]
    return {shape: shape if shape in kept else min(kept, key=lambda other: distance(shape, other)) for shape in counts}


class BucketDraw(Generic[Shape, Item]):
    """Draws items for batches of one shape each.

    Which shape, is drawn for the batch; tasks and items are drawn within it so that, over many batches, every task has
    its weight and every item of a task the same chance. With one shape, the task is the one that the mixture drew.

    Attributes:
      shapes: of the batches.
    """

    def __init__(self, items: Iterable[tuple[Shape, str, Item]], batch_size: int, weights: Mapping[str, float]):
        """
        Args:
          items: with their shape and task; an item may be there under several tasks.
          weights: of the tasks.
        """
        self._batch_size = batch_size
        self._members: dict[Shape, dict[str, list[Item]]] = {}
        totals: dict[str, int] = {}
        for shape, task, item in items:
            self._members.setdefault(shape, {}).setdefault(task, []).append(item)
            totals[task] = totals.get(task, 0) + 1
        self.shapes = tuple(self._members)
        # P(shape, task) = P(task) · P(shape | task).
        self._p = {
            shape: {task: weights[task] * len(of_task) / totals[task] for task, of_task in by_task.items()}
            for shape, by_task in self._members.items()
        }

    def shape(self, seed: int, index: int) -> Shape:
        """Of the batch in which sample `index` of the run is."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        p = [sum(self._p[shape].values()) for shape in self.shapes]
        generator = np.random.default_rng((seed, index // self._batch_size, 1))
        return self.shapes[generator.choice(len(p), p=np.asarray(p) / sum(p))]

    def draw(self, generator: np.random.Generator, seed: int, index: int, task: str) -> tuple[Shape, str, Item]:
        """Shape, task and item of a sample.

        Args:
          generator: of the sample.
          seed, index: of the run, and of the sample in it.
          task: as the mixture drew it.
        """
        shape = self.shape(seed, index)
        if len(self.shapes) > 1:
            tasks = list(self._p[shape])
            p = np.asarray(list(self._p[shape].values()))
            task = tasks[generator.choice(len(tasks), p=p / p.sum())]
        members = self._members[shape][task]
        return shape, task, members[generator.integers(len(members))]
