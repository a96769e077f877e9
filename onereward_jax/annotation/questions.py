"""What annotators are asked: three jobs, and the questions of each for a task."""

import dataclasses

from onereward_jax.tasks import dimensions_of

BEST_WORST, GOOD_SAME_BAD, RATING = JOBS = ("best_worst", "good_same_bad", "rating")

YES_NO = (0, 1)
FIVE = (1, 5)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a request's candidates.

    Attributes:
      name: a dimension for `best_worst`, "overall" for `good_same_bad`, a criterion of the paper for `rating`.
      label: its name for people.
      help: one sentence that says what to look at.
      scale: (lowest, highest) mark for `rating`: `YES_NO` or `FIVE`; None for comparisons.
    """

    name: str
    label: str
    help: str
    scale: tuple[int, int] | None = None


_DIMENSIONS = {
    "text_alignment": ("Text alignment", "Does the repainted part show what the prompt says?"),
    "consistency": ("Consistency", "Do texture, light and style continue those of the image around it?"),
    "structure": ("Structure", "Are shapes, limbs, letters and edges formed as they should be?"),
    "aesthetics": ("Aesthetics", "Which would you rather look at?"),
    "removal_quality": ("Removal quality", "Is the object gone, with its shadow, and nothing put in its place?"),
}

# The paper's marks (section 4): yes or no, or 1 to 5.
_RATINGS = {
    "usability": ("Usable", "Could you hand it to a client as it is?", YES_NO),
    "text_rendering": ("Text is right", "Does the text read letter by letter as the prompt says?", YES_NO),
    "removal_quality": ("Removed cleanly", _DIMENSIONS["removal_quality"][1], YES_NO),
    "text_alignment": ("Text alignment", _DIMENSIONS["text_alignment"][1], FIVE),
    "texture_consistency": ("Texture", "Do grain, sharpness and light continue those around it?", FIVE),
    "style_consistency": ("Style", "Is it of the same style as the image around it?", FIVE),
    "structure": ("Structure", _DIMENSIONS["structure"][1], FIVE),
    "aesthetics": ("Aesthetics", "How good does it look?", FIVE),
}


def questions_of(job: str, task: str, prompt: str | None = None) -> tuple[Question, ...]:
    """Return what annotators are asked about a request, in order.

    Args:
      job: one of `JOBS`.
      task: one of `tasks.TASKS`.
      prompt: the request's; extensions without a prompt of their own have no text alignment.
    """
    dimensions = dimensions_of(task, prompt)
    if job == BEST_WORST:
        return tuple(Question(name, *_DIMENSIONS[name]) for name in dimensions)
    if job == GOOD_SAME_BAD:
        return (Question("overall", "Overall", "Which of the two would you choose?"),)
    asked = ["usability"]
    if task == "object_removal":
        asked += ["removal_quality"]
    else:
        asked += ["text_rendering"] * (task == "text_rendering") + ["text_alignment"] * ("text_alignment" in dimensions)
        asked += ["texture_consistency", "style_consistency", "structure", "aesthetics"]
    return tuple(Question(name, *_RATINGS[name]) for name in asked)
