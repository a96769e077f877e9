"""What anything is trained on or evaluated with: a source of samples, and perhaps a ground truth about them.

The proving ground is one (`proving_ground.ProvingGround`), a folder of captioned images another (`data.captioned`).
A new one is a class with the members of `Source`; `proving_ground.source.open_source` opens what a configuration names.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from onereward_jax.data.buckets import Size
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError

ENDLESS = 1 << 48  # samples: no run sees as many


class GroundTruth(Protocol):
    """Scores images as only the maker of the samples can."""

    def score_images(
        self, samples: Sequence[Sample], images: Iterable[Iterable[np.ndarray]]
    ) -> list[list[dict[str, float]]]:
        """Score several images of each sample.

        Args:
          samples: of this source, S of them.
          images: S rows of uint8 (H, W, 3), answers to the sample of the row.

        Returns:
          S rows of {dimension: score in [0, 1]}, of the sample's dimensions, in the order of the images.
        """
        ...


class Source(Protocol):
    """Samples by task and number.

    A class that derives from this one is endless and has no ground truth, unless it says otherwise.

    Attributes:
      tasks: of which there are samples, some of `tasks.TASKS`.
      sizes: (height, width) that samples have, known before any is decoded; those of one batch have the same.
      ground_truth: None where nobody knows how good an answer is but a judge.
      credits: makers and licences of the images, a line each, for reports.
    """

    tasks: tuple[str, ...]
    sizes: tuple[Size, ...]
    ground_truth: GroundTruth | None = None
    credits: tuple[str, ...] = ()

    def sample(self, index: int, task: str) -> Sample:
        """Make sample number `index` of a task: the same for the same arguments, from any thread.

        A source of several sizes may give a sample of another task where none of `task` has the size of the batch.

        Args:
          index: from 0 to `len(self) - 1`.
          task: one of `self.tasks`.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that, beside the settings in `config.data`, tell these samples from others."""
        ...

    def __len__(self) -> int:
        """Samples of a task; `ENDLESS` where any index will do."""
        return ENDLESS


def samples_from(source: Source, task: str, first: int, count: int) -> list[Sample]:
    """`count` samples of a task from number `first` on, or as many as there are."""
    return [source.sample(index, task) for index in range(first, min(first + count, len(source)))]


def ground_truth_of(source: Source, purpose: str) -> GroundTruth:
    """
    Args:
      purpose: what needs it, the subject of the error's sentence.

    Raises:
      UserError: the source has none.
    """
    if source.ground_truth is None:
        raise UserError(f"{purpose} needs a ground truth, which these data have not: use the proving ground")
    return source.ground_truth
