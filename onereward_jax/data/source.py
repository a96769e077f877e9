"""Sources of samples for training and evaluation, optionally with a ground truth.

Examples are the proving ground (`proving_ground.ProvingGround`) and a user's own requests (`data.requests`).
A new source is a class with the members of `Source`; `proving_ground.source.open_source` opens the configured one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from onereward_jax.data.buckets import Size
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.tasks import NEGATIVE_PROMPT

ENDLESS = 1 << 48  # samples: no run sees as many


class GroundTruth(Protocol):
    """Scores images from knowledge of how the samples were made."""

    def score_images(
        self, samples: Sequence[Sample], images: Iterable[Iterable[np.ndarray]]
    ) -> list[list[dict[str, float]]]:
        """Score several images for each sample.

        Args:
          samples: S samples from this source.
          images: S rows of uint8 (H, W, 3), answers to the row's sample.

        Returns:
          S rows of {dimension: score in [0, 1]} over the sample's dimensions, in the order of the images.
        """
        ...


class Outline(NamedTuple):
    """A sample without its images; `size` is (height, width)."""

    id: str
    prompt: str
    size: Size


class Source(Protocol):
    """Samples by task and number.

    By default, a subclass is endless and has no ground truth.

    Attributes:
      tasks: the tasks that have samples, from `tasks.TASKS`.
      sizes: (height, width) of the samples, known before any is decoded; a batch has one size.
      ground_truth: None if only a judge can say how good an answer is.
      credits: makers and licences of the images, one line each, for reports.
      prompts: every prompt that a sample may have; None if they are not known before the samples are made.
      negative_prompts: likewise.
      target_share: about the share of the samples that have a target.
    """

    tasks: tuple[str, ...]
    sizes: tuple[Size, ...]
    ground_truth: GroundTruth | None = None
    credits: tuple[str, ...] = ()
    prompts: Sequence[str] | None = None
    negative_prompts: Sequence[str] = (NEGATIVE_PROMPT,)
    target_share: float = 1.0

    def sample(self, index: int, task: str) -> Sample:
        """Make sample number `index` of a task, deterministically and from any thread.

        A source of several sizes may return a sample of another task if none of `task` has the batch's size.

        Args:
          index: from 0 to `len(self) - 1`.
          task: one of `self.tasks`.
        """
        ...

    def outline(self, index: int, task: str) -> Outline:
        """What is known of `sample(index, task)`; a source that knows it without decoding an image overrides this."""
        sample = self.sample(index, task)
        height, width = sample.mask.shape
        return Outline(sample.id, sample.prompt, (height, width))

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON values that identify these samples, together with the settings in `config.data`."""
        ...

    def __len__(self) -> int:
        """Number of samples per task, at most; `ENDLESS` if every index is valid."""
        return ENDLESS

    def count(self, task: str) -> int:
        """Number of samples of a task."""
        return len(self)


def samples_from(source: Source, task: str, first: int, count: int) -> list[Sample]:
    """Make `count` samples of a task from number `first` on, or as many as there are."""
    return [source.sample(index, task) for index in range(first, min(first + count, source.count(task)))]


def ground_truth_of(source: Source, purpose: str) -> GroundTruth:
    """Return the source's ground truth.

    Args:
      purpose: the subject of the error message.

    Raises:
      UserError: the source has no ground truth.
    """
    if source.ground_truth is None:
        raise UserError(f"{purpose} needs a ground truth, which these data lack: use the proving ground")
    return source.ground_truth
