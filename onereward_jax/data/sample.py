"""The record that every data source yields and every policy reads."""

import dataclasses

import numpy as np

from onereward_jax import tasks


@dataclasses.dataclass(frozen=True)
class Sample:
    """One request: repaint the masked part of an image.

    Attributes:
      image: source, uint8 (H, W, 3). What lies under the mask is hidden from the policy.
      mask: uint8 (H, W), 1 = generate, 0 = keep.
      prompt: what the hole should show; the fixed prompts are in `tasks`.
      task: one of `tasks.TASKS`.
      id: unique within its source, and stable from run to run.
    """

    image: np.ndarray
    mask: np.ndarray
    prompt: str
    task: str
    id: str

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[-1] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"sample {self.id!r}: image is {self.image.dtype} {self.image.shape}: give uint8 (height, width, 3)"
            )
        if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.uint8:
            raise ValueError(
                f"sample {self.id!r}: mask is {self.mask.dtype} {self.mask.shape}: "
                f"give uint8 {self.image.shape[:2]} with 1 where to generate"
            )
        if self.task not in tasks.TASKS:
            raise ValueError(f"sample {self.id!r}: unknown task {self.task!r}: choose one of {', '.join(tasks.TASKS)}")

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The preference dimensions this sample is judged on."""
        return tasks.dimensions_of(self.task, self.prompt)
