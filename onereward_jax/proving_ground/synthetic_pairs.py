"""Pairs made while the judge trains: right answers with synthetic defects, so that the better image is known.

They teach the judge to see defects: an endless supply, each pair shown once, about one dimension at a time, without
annotator noise. The base model's own mistakes are learnt from annotated preferences.
"""

import numpy as np

from onereward_jax.proving_ground import Scene, defects
from onereward_jax.proving_ground.glyphs import GLYPHS

_ALL = defects.KINDS | GLYPHS
_NUMBERED = tuple(enumerate(_ALL))

# The judge does not see the source image, so it cannot know that the kept part has moved.
_INVISIBLE = ("outside",)

_WEAKEST, _CLEAR = 0.2, 0.3  # smallest visible strength of a defect, and smallest visible difference
_COMPARED_SHARE = 0.4  # share of pairs in which both images have the defect, one of them more
_DISTRACTED_SHARE = 0.5  # share of images with a defect in another dimension as well


def visible_kinds(scene: Scene) -> list[str]:
    """List the kinds of defects that the scene's target can have and that show in the image alone."""
    return [kind for kind in defects.applicable(scene) if kind not in _INVISIBLE]


def synthetic_pair(
    scene: Scene, generator: np.random.Generator, glyphs: bool = False
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Make two answers to a scene, one with a defect that the other lacks or has less of.

    Args:
      glyphs: whether that defect is one of letters and strokes, see `glyphs.GLYPHS`; the scene has a word.

    Returns:
      both images, uint8 (H, W, 3), and {dimension: +1 where the first is better, −1 where the second is} for the
      dimensions in which their defects differ.
    """
    by_dimension: dict[str, list[str]] = {}
    for kind in visible_kinds(scene):
        by_dimension.setdefault(defects.dimension_of(scene, kind), []).append(kind)
    chosen = by_dimension
    if glyphs:
        chosen = {}
        for kind in defects.applicable(scene, GLYPHS):
            chosen.setdefault(GLYPHS[kind].dimension, []).append(kind)
    asked = _pick(sorted(chosen), generator)
    kind = _pick(chosen[asked], generator)
    strong = float(generator.uniform(_CLEAR, 1.0))
    compared = strong > _WEAKEST + _CLEAR and generator.random() < _COMPARED_SHARE
    weak = float(generator.uniform(_WEAKEST, strong - _CLEAR)) if compared else 0.0

    worse, better = {kind: strong}, {kind: weak}
    labels = {asked: 1}
    for strengths, sign in ((worse, 1), (better, -1)):
        others = [dimension for dimension in sorted(by_dimension) if dimension not in labels]
        if others and generator.random() < _DISTRACTED_SHARE:
            dimension = _pick(others, generator)
            distraction = _pick(by_dimension[dimension], generator)
            # Two changes to one drawing undo each other.
            if not (defects.KINDS[distraction].needs and _ALL[kind].needs):
                strengths[distraction] = float(generator.uniform(_WEAKEST, 1.0))
                labels[dimension] = sign
    seed = int(generator.integers(2**31))  # the same defect, weaker and stronger
    images = [_apply_all(scene, strengths, seed) for strengths in (better, worse)]
    if generator.random() < 0.5:
        return images[0], images[1], labels
    return images[1], images[0], {dimension: -sign for dimension, sign in labels.items()}


def _pick(choices: list[str], generator: np.random.Generator) -> str:
    return choices[generator.integers(len(choices))]


def _apply_all(scene: Scene, strengths: dict[str, float], seed: int) -> np.ndarray:
    """Add defects to the target: first to the drawing, then to the hole, then to the whole image."""
    image = scene.target
    for number, kind in (*_NUMBERED[len(defects.KINDS) :], *_NUMBERED[: len(defects.KINDS)]):
        if strengths.get(kind):
            generator = np.random.default_rng((seed, number))
            image = defects.apply(scene, image, kind, strengths[kind], generator, _ALL)
    return image
