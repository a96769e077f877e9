"""Tasks, preference dimensions and fixed prompts.

This file imports nothing from the project.
Source: OneReward (arXiv 2508.21066), section 3.
"""

import importlib
import re
import warnings
from typing import Any

from onereward_jax.errors import UserError

TASKS = ("image_fill", "image_extend", "object_removal", "text_rendering")

DIMENSIONS = ("text_alignment", "consistency", "structure", "aesthetics", "removal_quality")

REMOVAL_PROMPT = "remove"
EXTEND_PROMPT = "high-definition, perfect composition"
NEGATIVE_PROMPT = "nsfw"
# Prompts of the tasks that the user describes no content for.
FIXED_PROMPTS = {"object_removal": REMOVAL_PROMPT, "image_extend": EXTEND_PROMPT}

_QUOTED = re.compile(r"[\"“”„«»「」『』]([^\"“”„«»「」『』]+)[\"“”„«»「」『』]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)")

_CREATIVE_DIMENSIONS = ("text_alignment", "consistency", "structure", "aesthetics")
_TASK_DIMENSIONS = {
    "image_fill": _CREATIVE_DIMENSIONS,
    "image_extend": _CREATIVE_DIMENSIONS,
    "object_removal": ("removal_quality",),
    "text_rendering": _CREATIVE_DIMENSIONS,
}

# Every (task, dimension) cell, in the order in which tables and plots show them.
CELLS = tuple((task, dimension) for task in TASKS for dimension in _TASK_DIMENSIONS[task])


def dimensions_of(task: str, prompt: str | None = None) -> tuple[str, ...]:
    """Return the preference dimensions of a task.

    Args:
      task: one of `TASKS`.
      prompt: the sample's prompt; `None` returns all dimensions of the task. For `image_extend`, an
        empty prompt or the fixed `EXTEND_PROMPT` means "without a prompt": no `text_alignment`.

    Raises:
      UserError: the task is unknown.
    """
    if task not in _TASK_DIMENSIONS:
        raise UserError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    dimensions = _TASK_DIMENSIONS[task]
    if task == "image_extend" and prompt is not None and prompt in ("", EXTEND_PROMPT):
        return tuple(d for d in dimensions if d != "text_alignment")
    return dimensions


def quoted_texts(prompt: str) -> list[str]:
    """Return what a prompt has in quotation marks, such as the text that is to be rendered."""
    return [first or second for first, second in _QUOTED.findall(prompt)]


def __getattr__(name: str) -> Any:
    """What stood here in an earlier release."""
    if name not in ("QUESTION_TEMPLATE", "QUESTION_WITH_PROMPT_TEMPLATE", "question"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"onereward_jax.tasks.{name} is now onereward_jax.questions.{name}", stacklevel=2)
    return getattr(importlib.import_module("onereward_jax.questions"), name)
