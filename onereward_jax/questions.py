"""The words of the question that the judge answers with Yes or No.

Source: OneReward (arXiv 2508.21066), section 3, leaves the wording open (it is printed inside a figure), so ours is a
template that a configuration may replace.
"""

import string
from collections.abc import Collection

from onereward_jax.errors import UserError, shown_name
from onereward_jax.tasks import dimensions_of

# {task}, {dimension} and {prompt} are filled in; the two images come before the question, so
# all dimensions share one prefix.
QUESTION_TEMPLATE = "Task: {task}. Is the first image better than the second in {dimension}? Answer Yes or No."
QUESTION_WITH_PROMPT_TEMPLATE = (
    'Task: {task}. Is the first image better than the second in {dimension} for "{prompt}"? Answer Yes or No.'
)

# Tokens of a question, its prompt and the answer's start included; fill models read 512 tokens of a prompt.
LONGEST = 1024


def check_template(template: object, words: Collection[str]) -> None:
    """Check a template that a user wrote: a text whose braces hold some of the words, and nothing else.

    Raises:
      UserError: it is something else.
    """
    known = ", ".join(f"{{{word}}}" for word in words)
    try:
        if not isinstance(template, str):
            raise ValueError("it is no text")
        for _, word, how, conversion in string.Formatter().parse(template):
            if word is not None and (word not in words or how or conversion):
                raise ValueError(f"{{{shown_name(word, 40)}}} is none of them")
    except ValueError as error:  # Formatter's own too: a lone brace
        raise UserError(f"a question template is a text with some of {known}, and {error}: correct it") from None


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
