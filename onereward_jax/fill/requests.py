"""Requests to fill pictures, as the command line and JSONL files name them: which image, mask, prompt and output."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax import tasks
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import Line, json_lines, path_beside
from onereward_jax.images import reading

_FIELDS = ("image", "mask", "prompt", "negative_prompt", "task", "extend")


@dataclasses.dataclass(frozen=True)
class Request:
    """One picture to fill.

    Attributes:
      image, mask: picture files; without a mask, `extend` adds pixels at the sides of the image and marks them.
      prompt: None asks for the task's fixed one. task: one of `tasks.TASKS`; None is image_fill, or image_extend with
        `extend`.
      extend: such as "left=256,right=0".
      name: of the request, for messages.
      error: what is wrong with it, if it could not even be read.
    """

    image: Path
    mask: Path | None = None
    prompt: str | None = None
    negative_prompt: str = tasks.NEGATIVE_PROMPT
    task: str | None = None
    extend: str | None = None
    name: str = ""
    error: str = ""

    def text(self) -> str:
        """The prompt.

        Raises:
          UserError: there is none, and the task has no fixed one; the task is unknown, or its mask is not given once.
        """
        if self.error:
            raise UserError(self.error)
        task = self.task or ("image_extend" if self.extend else "image_fill")
        if task not in tasks.TASKS:
            raise UserError(f"unknown task {shown(task)}: choose one of {', '.join(tasks.TASKS)}")
        if self.extend is not None:
            reading.parse_sides(self.extend)
        if (self.mask is None) == (self.extend is None):
            given = "both a mask and sides to extend" if self.mask else "neither a mask nor sides to extend"
            raise UserError(f"there are {given}: give one of --mask and --extend")
        prompt = self.prompt or tasks.FIXED_PROMPTS.get(task)
        if prompt is None:
            raise UserError(f"{task} needs a prompt: say what the picture should show")
        return prompt

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and mask uint8 (H, W), 1 = generate.

        Raises:
          FileNotFoundError, UserError: a file is missing or can't be read, or they do not fit together.
        """
        image = reading.read_image(self.image)
        if self.extend is not None:
            return reading.extend(image, reading.parse_sides(self.extend))
        assert self.mask is not None, "a request has a mask or sides to extend"
        mask = reading.read_mask(self.mask)
        reading.check_size(image, mask, (str(self.image), str(self.mask)))
        return image, mask


def read_requests(image: Path, mask: Path | None, inside_only: bool = False, **given: Any) -> list[Request]:
    """The requests of a picture, of a folder of pictures, or of a JSONL file.

    A folder's pictures have the masks of the same names in the folder `mask`, or all the one mask. A line of a JSONL
    file has image, mask, prompt, negative_prompt, task, extend, of which it may leave out what is `given`; paths in it
    are relative to it.

    Args:
      inside_only: a path in a JSONL file that leads out of the file's folder makes its line a bad one.

    Raises:
      OSError: the JSONL file or the folder can't be read.
      UserError: there is no request. (A line that is none is a request with an error.)
    """
    if image.suffix == ".jsonl":
        requests = [_of_line(line, image.parent, inside_only, {"mask": mask} | given) for line in json_lines(image)]
        if not requests:
            raise UserError(f"{image} holds no request: write one a line, with image, mask, prompt and task")
        return requests
    if not image.is_dir():
        return [Request(image, mask, name=str(image), **given)]
    files = reading.files_in(image)
    if not files:
        raise UserError(f"{image} holds no images ({', '.join(reading.SUFFIXES)}): give another folder")
    if mask is None or not mask.is_dir():
        return [Request(file, mask, name=str(file), **given) for file in files]
    masks = {file.stem: file for file in reading.files_in(mask)}
    return [Request(file, masks.get(file.stem, mask / file.name), name=str(file), **given) for file in files]


def _of_line(line: Line, folder: Path, inside_only: bool, given: dict[str, Any]) -> Request:
    try:
        fields = line.fields()
        if not isinstance(fields.get("image"), str):
            raise UserError("it names no image: write its path into image")
        wrong = [key for key, value in fields.items() if key not in _FIELDS or not isinstance(value, str)]
        if wrong:
            raise UserError(f"{shown(wrong[0])} is none of {', '.join(_FIELDS)}, or no text: correct it")
        paths: dict[str, Any] = {
            key: path_beside(folder, fields[key], inside_only) for key in ("image", "mask") if key in fields
        }
    except UserError as error:
        return Request(Path(line.where), name=line.where, error=str(error))
    if "extend" in fields:
        given = given | {"mask": None}
    return Request(**(given | fields | paths), name=line.where)


def output_files(requests: Sequence[Request], out: Path, number: int) -> list[list[Path]]:
    """The PNG files of each request's pictures: `out` itself, or in the folder `out` a file of the image's name."""
    taken: set[str] = set()
    files = []
    for request in requests:
        file = out
        if out.suffix != ".png":
            stem = name = request.image.stem
            number_of_stem = 1
            while name in taken:
                number_of_stem += 1
                name = f"{stem}-{number_of_stem}"
            taken.add(name)
            file = out / f"{name}.png"
        files.append([file] if number == 1 else [file.with_name(f"{file.stem}_{n}.png") for n in range(number)])
    return files
