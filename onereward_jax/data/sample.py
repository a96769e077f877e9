"""The request that every source yields and every policy answers."""

import dataclasses
from typing import Any

import numpy as np

from onereward_jax import tasks
from onereward_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sample:
    """One request: repaint the masked part of an image.

    Attributes:
      image: source, uint8 (H, W, 3). The part under the mask is hidden from the policy.
      mask: uint8 (H, W), 1 = generate, 0 = keep.
      prompt: what the hole should show; the fixed prompts are in `tasks`.
      task: one of `tasks.TASKS`.
      id: unique within its source, and stable from run to run.
      target: a right answer, uint8 (H, W, 3), for flow matching; None where there is none.
      negative_prompt: what the hole should not show; read where there is true guidance.
    """

    image: np.ndarray
    mask: np.ndarray
    prompt: str
    task: str
    id: str
    target: np.ndarray | None = None
    negative_prompt: str = tasks.NEGATIVE_PROMPT

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[-1] != 3 or self.image.dtype != np.uint8:
            raise UserError(
                f"sample {self.id!r}: image is {self.image.dtype} {self.image.shape}: give uint8 (height, width, 3)"
            )
        if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.uint8:
            raise UserError(
                f"sample {self.id!r}: mask is {self.mask.dtype} {self.mask.shape}: "
                f"give uint8 {self.image.shape[:2]} with 1 where to generate"
            )
        if self.target is not None and (self.target.shape, self.target.dtype) != (self.image.shape, np.uint8):
            raise UserError(
                f"sample {self.id!r}: target is {self.target.dtype} {self.target.shape}: give uint8 {self.image.shape}"
            )
        if self.task not in tasks.TASKS:
            raise UserError(f"sample {self.id!r}: unknown task {self.task!r}: choose one of {', '.join(tasks.TASKS)}")

    def arrays(self, *names: str) -> dict[str, Any]:
        """Return the named fields for stacking into a batch, with text as NumPy strings.

        Raises:
          UserError: `target` is named, and there is none.
        """
        fields = {name: getattr(self, name) for name in names}
        if "target" in fields and self.target is None:
            raise UserError("these data have no targets to learn from: use other data")
        return {name: np.str_(value) if isinstance(value, str) else value for name, value in fields.items()}

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The preference dimensions this sample is judged on."""
        return tasks.dimensions_of(self.task, self.prompt)
