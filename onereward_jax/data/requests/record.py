"""The record of a request: the first stage of the record that grows, see docs/reference/requests.md."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onereward_jax.data.buckets import Size
from onereward_jax.data.manifest import Stamp
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.errors import UserError, shown
from onereward_jax.images import reading
from onereward_jax.tasks import FIXED_PROMPTS, NEGATIVE_PROMPT, TASKS

# Tasks of a request that names none and brings a prompt and no mask. Their masks may be drawn; what is to be removed,
# or where to write, only a mask says.
ANY_TASK = ("image_fill", "image_extend")


@runtime_checkable
class Stored(Protocol):
    """An image that is no file of its own, such as one in a TFDS dataset; hashable.

    Attributes:
      name: where it is, for messages.
      key, stamp: under which a manifest keeps what was read of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def stamp(self) -> Stamp: ...

    def content(self) -> bytes:
        """The bytes of its file, read now."""
        ...

    def __hash__(self) -> int: ...


Picture = Path | Stored


@dataclasses.dataclass(frozen=True)
class Request:
    """Repaint the masked part of an image.

    Attributes:
      id: unique within its source.
      image: the image file. The part under the mask is hidden from the policy.
      mask: white where to generate, of the image's size; None where it is drawn, or made by `extend`.
      prompt: what the hole should show; empty only for tasks that have a fixed prompt.
      tasks: the tasks that it can be used for, from `tasks.TASKS`.
      negative_prompt: what it should not show; read where there is true guidance.
      target: a right answer, of the image's size: the clean image of a removal pair, the original of a fill whose
        prompt describes it. An image is no target of its own: for a removal it would teach the object back.
      extend: sides to which pixels are added and generated, such as "left=256,right=0".
      notes: any other JSON object.
      group: name of the image; requests of one image are held out together.
      where: its place in the source, for messages.
      size: (height, width), upright and extended; (0, 0) before the image is read.
      digest: of all its files and texts; empty before they are read.
      image_digest: SHA-256 of the image file's bytes, by which an image is known under any name; empty before it is
        read.
    """

    id: str
    image: Picture
    mask: Picture | RunLengths | None = None
    prompt: str = ""
    tasks: tuple[str, ...] = ANY_TASK
    negative_prompt: str = NEGATIVE_PROMPT
    target: Picture | None = None
    extend: str | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    group: str = ""
    where: str = ""
    size: Size = (0, 0)
    digest: str = ""
    image_digest: str = ""

    @property
    def has_mask(self) -> bool:
        return self.mask is not None or self.extend is not None

    def text(self, task: str) -> str:
        """The prompt, or the task's fixed one.

        Raises:
          UserError: it has neither.
        """
        prompt = self.prompt or FIXED_PROMPTS.get(task)
        if prompt is None:
            raise UserError(f"{task} needs a prompt: say what the image should show")
        return prompt

    def check(self, drawn: tuple[str, ...] = ANY_TASK) -> None:
        """Check what shows without its images.

        Args:
          drawn: tasks whose masks may be drawn.

        Raises:
          UserError: a task is unknown, or lacks its prompt or its mask.
        """
        if self.mask is not None and self.extend is not None:
            raise UserError("there are both a mask and sides to extend: give one of them")
        if self.extend is not None:
            reading.parse_sides(self.extend)
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"unknown task {shown(task)}: choose one of {', '.join(TASKS)}")
            if not self.has_mask and task not in drawn:
                raise UserError(f"{task} needs a mask: give one, white where to generate")
            self.text(task)

    def pictures(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Decode image and mask, extended: uint8 (H, W, 3), and uint8 (H, W), 1 = generate, or None if it is drawn.

        Raises:
          FileNotFoundError, UserError: a file is missing or can't be read, or they do not fit together.
        """
        image = read_image(self.image)
        if self.extend is not None:
            return reading.extend(image, reading.parse_sides(self.extend))
        if self.mask is None:
            return image, None
        mask = read_mask(self.mask)
        reading.check_size(image, mask, (name_of(self.image), name_of(self.mask)))
        return image, mask


@dataclasses.dataclass(frozen=True)
class BadRequest:
    """A record that is no request.

    Attributes:
      where: its place in the source.
      error: one sentence.
    """

    where: str
    error: str

    def __str__(self) -> str:
        return self.error if self.where in self.error else f"{self.where}: {self.error}"


def name_of(picture: Picture | RunLengths) -> str:
    """Name a picture in messages."""
    return str(picture) if isinstance(picture, Path) else picture.name


def read_image(picture: Picture) -> np.ndarray:
    """Decode an image: see `images.reading.read_image`."""
    if isinstance(picture, Path):
        return reading.read_image(picture)
    return reading.read_image(picture.content(), picture.name)


def read_mask(mask: Picture | RunLengths) -> np.ndarray:
    """Decode a mask: see `images.reading.read_mask`."""
    if isinstance(mask, RunLengths):
        return mask.mask()
    return reading.read_mask(mask) if isinstance(mask, Path) else reading.read_mask(mask.content(), mask.name)
