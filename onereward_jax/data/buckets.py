"""Aspect-ratio bucketing: batches of one static shape from images of many sizes.

Every shape compiles a program of its own, so few shapes are kept.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Size = tuple[int, int]  # height, width
Shape = TypeVar("Shape", bound=Hashable)
Item = TypeVar("Item")


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """List sizes with at most about the area of a square of `resolution` pixels, as in SDXL (arXiv 2307.01952, 2.3).

    Args:
      step: every side is a multiple of it.
      max_aspect: the largest ratio of the longer side to the shorter.
    """
    sizes = {(resolution, resolution)}
    for width in range(step, round(resolution * max_aspect) + step, step):
        height = resolution**2 // width // step * step
        if height and max(height, width) <= max_aspect * min(height, width):
            sizes |= {(height, width), (width, height)}
    return tuple(sorted(sizes))


def aspect_distance(size: Size, other: Size) -> float:
    """Measure how much has to be cropped: |log| of the ratio of two aspects."""
    return abs(math.log(size[0] / size[1] * other[1] / other[0]))


def common_shapes(shapes: Sequence[Shape], least: int, distance: Callable[[Shape, Shape], float]) -> dict[Shape, Shape]:
    """Map each shape to itself if at least `least` items have it, otherwise to the nearest such shape.

    If no shape has that many items, all map to the most frequent one.
    """
    counts: dict[Shape, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    kept = [shape for shape, count in counts.items() if count >= least] or [max(counts, key=lambda s: counts[s])]
    return {shape: shape if shape in kept else min(kept, key=lambda other: distance(shape, other)) for shape in counts}


class BucketDraw(Generic[Shape, Item]):
    """Draws items for batches of one shape each.

    The shape is drawn per batch; tasks and items are drawn within it so that, over many batches, every task has its
    weight and all items of a task are equally likely. With one shape, the task is the one that the mixture drew.

    Attributes:
      shapes: the shapes of batches.
    """

    def __init__(self, items: Iterable[tuple[Shape, str, Item]], batch_size: int, weights: Mapping[str, float]):
        """
        Args:
          items: (shape, task, item); an item may occur under several tasks.
          weights: {task: weight}.
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
            shape: {task: weights[task] * len(members) / totals[task] for task, members in by_task.items()}
            for shape, by_task in self._members.items()
        }

    def shape(self, seed: int, index: int) -> Shape:
        """Return the shape of the batch that contains sample `index` of the run."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        p = [sum(self._p[shape].values()) for shape in self.shapes]
        generator = np.random.default_rng((seed, index // self._batch_size, 1))
        return self.shapes[generator.choice(len(p), p=np.asarray(p) / sum(p))]

    def draw(self, generator: np.random.Generator, seed: int, index: int, task: str) -> tuple[Shape, str, Item]:
        """Draw shape, task and item for a sample.

        Args:
          generator: the sample's random generator.
          seed, index: the run's seed, and the sample's global index.
          task: the task that the mixture drew.
        """
        shape = self.shape(seed, index)
        if len(self.shapes) > 1:
            tasks = list(self._p[shape])
            p = np.asarray(list(self._p[shape].values()))
            task = tasks[generator.choice(len(tasks), p=p / p.sum())]
        members = self._members[shape][task]
        return shape, task, members[generator.integers(len(members))]
