"""The parts of a scene, the wording of its prompt, and the drawing of its target."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from onereward_jax import tasks
from onereward_jax.data import masks
from onereward_jax.data.sample import Sample
from onereward_jax.proving_ground import drawing

SIDE_PHRASES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """The hidden ground truth of a scene, read by the scorer and the defects, never by a model in training.

    Attributes:
      photo: name of the photograph.
      background: uint8 (H, W, 3), the crop without any drawing.
      alpha: float32 (H, W), coverage of the object or word, in the target (or, for removal, in the source).
      shape, colour, size, side, word: what is drawn; "" where it does not apply.
      radius: the object's radius, or the word's letter height, in pixels; 0 without a drawing.
      centre: (x, y) of the drawing, pixels.
      names_colour: the prompt names the colour.
      names_size: the prompt names the size.
    """

    photo: str
    background: np.ndarray
    alpha: np.ndarray
    shape: str = ""
    colour: str = ""
    size: str = ""
    side: str = ""
    word: str = ""
    radius: float = 0.0
    centre: tuple[float, float] = (0.0, 0.0)
    names_colour: bool = False
    names_size: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A request and its ground truth.

    Attributes:
      sample: what the policy sees.
      target: uint8 (H, W, 3), a right answer; or one with a synthetic defect, see `ProvingGround`.
      spec: the hidden truth.
      flaw: name of the flaw, "" for a right answer.
    """

    sample: Sample
    target: np.ndarray
    spec: Spec
    flaw: str = ""


def chroma(image: np.ndarray) -> np.ndarray:
    """Convert RGB in [0, 1] to red minus green and blue minus yellow, (..., 2); zero for grey."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return np.stack([red - green, blue - (red + green) / 2], axis=-1)


PALETTE_CHROMA = {name: chroma(np.asarray(rgb, np.float32) / 255) for name, rgb in drawing.COLOURS.items()}


def shape_prompt(colour: str, shape: str, size: str = "", side: str = "") -> str:
    """ "a small red circle", "a red circle on the left"."""
    words = ["a", *([size] if size else []), colour, shape, *([SIDE_PHRASES[side]] if side else [])]
    return " ".join(words)


def word_prompt(word: str, colour: str = "") -> str:
    """'the word "SUN"', 'the word "SUN" in red'."""
    return f'the word "{word}"' + (f" in {colour}" if colour else "")


def all_prompts() -> Iterator[str]:
    """Yield every prompt that a scene can have, and the fixed and negative ones: the corpus for a tokenizer."""
    yield tasks.REMOVAL_PROMPT
    yield tasks.EXTEND_PROMPT
    yield tasks.NEGATIVE_PROMPT
    for colour in drawing.COLOURS:
        for shape in drawing.SHAPES:
            for size in drawing.SIZES:
                yield shape_prompt(colour, shape, size)
            for side in masks.SIDES:
                yield shape_prompt(colour, shape, side=side)
    for word in drawing.WORDS:
        for colour in ("", *drawing.COLOURS):
            yield word_prompt(word, colour)


def draw(
    spec: Spec,
    alpha: np.ndarray | None = None,
    colour: tuple[float, ...] | None = None,
    background: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the scene's object or word over its background; the arguments override parts of the spec."""
    background = spec.background if background is None else background
    alpha = spec.alpha if alpha is None else alpha
    colour = drawing.COLOURS[spec.colour] if colour is None else colour
    shade = drawing.shading(spec.centre, spec.radius, *background.shape[:2])
    return drawing.paste(background, alpha, colour, shade)
