"""The vocabulary: tasks, preference dimensions, fixed prompts and the judge's question.

This file imports nothing from the project.
Source: OneReward (arXiv 2508.21066), section 3; the wording of the question is left open
there (it is printed inside a figure), so ours is a template that a config may replace.
"""

from onereward_jax.errors import UserError

TASKS = ("image_fill", "image_extend", "object_removal", "text_rendering")

DIMENSIONS = ("text_alignment", "consistency", "structure", "aesthetics", "removal_quality")

REMOVAL_PROMPT = "remove"
EXTEND_PROMPT = "high-definition, perfect composition"
NEGATIVE_PROMPT = "nsfw"
# Prompts of the tasks that the user describes no content for.
FIXED_PROMPTS = {"object_removal": REMOVAL_PROMPT, "image_extend": EXTEND_PROMPT}

_CREATIVE_DIMENSIONS = ("text_alignment", "consistency", "structure", "aesthetics")
_TASK_DIMENSIONS = {
    "image_fill": _CREATIVE_DIMENSIONS,
    "image_extend": _CREATIVE_DIMENSIONS,
    "object_removal": ("removal_quality",),
    "text_rendering": _CREATIVE_DIMENSIONS,
}

# Every (task, dimension) cell, in the order in which tables and plots show them.
CELLS = tuple((task, dimension) for task in TASKS for dimension in _TASK_DIMENSIONS[task])

# {task}, {dimension} and {prompt} are filled in; the two images come before the question, so
# all dimensions share one prefix.
QUESTION_TEMPLATE = "Task: {task}. Is the first image better than the second in {dimension}? Answer Yes or No."
QUESTION_WITH_PROMPT_TEMPLATE = (
    'Task: {task}. Is the first image better than the second in {dimension} for "{prompt}"? Answer Yes or No.'
)


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


def question(
    task: str,
    dimension: str,
    prompt: str | None = None,
    template: str = QUESTION_TEMPLATE,
    template_with_prompt: str = QUESTION_WITH_PROMPT_TEMPLATE,
) -> str:
    """Return the question q = Φ(task, dimension, prompt); only `text_alignment` uses the prompt.

    Raises:
      UserError: the dimension does not belong to the task, or `text_alignment` has no prompt.
    """
    dimensions = dimensions_of(task)
    if dimension not in dimensions:
        raise UserError(f"{task} is not judged on {dimension!r}: choose one of {', '.join(dimensions)}")
    words = {"task": task.replace("_", " "), "dimension": dimension.replace("_", " ")}
    if dimension != "text_alignment":
        return template.format(**words)
    if not prompt:
        raise UserError(
            f"text_alignment for {task} needs the prompt that the image should follow: give one, or choose another"
            " dimension"
        )
    return template_with_prompt.format(prompt=prompt, **words)
