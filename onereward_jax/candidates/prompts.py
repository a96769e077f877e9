"""Prompts of a JSON-lines file beside requests, and the names by which other files know a request's image."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.requests.record import Request
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import json_lines
from onereward_jax.tasks import TASKS, quoted_texts

FILE_NOTE = "file"  # in the notes of a request that `select` wrote: the name of its image in the source


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, and the task that it is for; None: any that can use it."""

    text: str
    task: str | None = None

    def serves(self, task: str) -> bool:
        """Whether a request of the task would have it. What is no text in quotation marks is not to be rendered, and a
        removal has its fixed prompt unless a line says otherwise."""
        if self.task is not None:
            return task == self.task
        return task in ("image_fill", "image_extend") or (task == "text_rendering" and bool(quoted_texts(self.text)))


class Prompts:
    """Prompts of a JSON-lines file, `{"id" or "image": ..., "prompt": ..., "task": ...}`, by the name of an image."""

    def __init__(self, file: Path | None = None, bad_share: float = 0.0):
        """
        Raises:
          OSError, UserError: it can't be read, or too many lines are bad.
        """
        self._of: dict[str, list[Prompt]] = {}
        if file is None:
            return
        skipped, total = Skipped("prompts", str(file), bad_share), 0
        for line in json_lines(file):
            total += 1
            try:
                name, prompt = _prompt_of(line.fields())
            except UserError as error:
                skipped.add(f"{line.where}: {error}")
            else:
                self._of.setdefault(name, []).append(prompt)
        skipped.end(total)

    def of(self, request: Request) -> list[Prompt]:
        """Return the prompts of a request: those of the file, or else its own."""
        for name in names_of(request):
            if name in self._of:
                return self._of[name]
        return [Prompt(request.prompt)] if request.prompt else []


def _prompt_of(fields: Mapping[str, Any]) -> tuple[str, Prompt]:
    names = [name for name in ("id", "image") if fields.get(name) is not None]
    if len(names) != 1 or not isinstance(name := fields[names[0]], str) or not name:
        raise UserError("it names no image: write id, or image")
    text, task = fields.get("prompt"), fields.get("task")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"prompt is {shown(text)}: write a text")
    if task is not None and task not in TASKS:
        raise UserError(f"unknown task {shown(task)}: choose one of {', '.join(TASKS)}")
    return name, Prompt(text.strip(), task)


def names_of(request: Request) -> list[str]:
    """The names that a request's image may have in another file, the likeliest first: then their last parts."""
    given = [name for name in (request.id, request.notes.get(FILE_NOTE), request.group) if isinstance(name, str)]
    return [name for name in dict.fromkeys([*given, *map(os.path.basename, given)]) if name]
