"""Pairs made while the judge trains: right answers with planted defects, whose better one is known from the planting.

They are what the judge learns to see from: without end, each shown once, each about one dimension at a time, and
without an annotator's noise. What the base model gets wrong is learnt from annotated preferences, see `preferences`.
"""

import numpy as np

from onereward_jax.proving_ground import Scene, defects

# The judge sees no source: that the kept part has moved is nothing that it could know.
_UNSEEN = ("outside",)

_WEAKEST, _CLEAR = 0.2, 0.3  # strength of a defect that is seen, and of a difference that is
_COMPARED_SHARE = 0.4  # of the pairs: both have the defect, one more of it
_DISTRACTED_SHARE = 0.5  # of the images: has a defect of another dimension as well


def visible_kinds(scene: Scene) -> list[str]:
    """Kinds of defects that can be planted into the scene's target and seen in the picture alone."""
    return [kind for kind in defects.applicable(scene) if kind not in _UNSEEN]


def plant_pair(scene: Scene, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Two answers to a scene, of which one has a defect that the other lacks or has less of.

    Returns:
      both images, uint8 (H, W, 3), and {dimension: +1 where the first is better, −1 where the second is}, of the
      dimensions in which they differ by what was planted.
    """
    by_dimension: dict[str, list[str]] = {}
    for kind in visible_kinds(scene):
        by_dimension.setdefault(defects.dimension_of(scene, kind), []).append(kind)
    asked = _pick(sorted(by_dimension), generator)
    kind = _pick(by_dimension[asked], generator)
    strong = float(generator.uniform(_CLEAR, 1.0))
    compared = strong > _WEAKEST + _CLEAR and generator.random() < _COMPARED_SHARE
    weak = float(generator.uniform(_WEAKEST, strong - _CLEAR)) if compared else 0.0

    worse, better = {kind: strong}, {kind: weak}
    labels = {asked: 1}
    for planted, sign in ((worse, 1), (better, -1)):
        others = [dimension for dimension in sorted(by_dimension) if dimension not in labels]
        if others and generator.random() < _DISTRACTED_SHARE:
            dimension = _pick(others, generator)
            distraction = _pick(by_dimension[dimension], generator)
            # Two changes of one drawing undo each other.
            if not (defects.KINDS[distraction].needs and defects.KINDS[kind].needs):
                planted[distraction] = float(generator.uniform(_WEAKEST, 1.0))
                labels[dimension] = sign
    seed = int(generator.integers(2**31))  # the same defect, weaker and stronger
    images = [_plant_all(scene, planted, seed) for planted in (better, worse)]
    if generator.random() < 0.5:
        return images[0], images[1], labels
    return images[1], images[0], {dimension: -sign for dimension, sign in labels.items()}


def _pick(choices: list[str], generator: np.random.Generator) -> str:
    return choices[generator.integers(len(choices))]


def _plant_all(scene: Scene, planted: dict[str, float], seed: int) -> np.ndarray:
    """The target with defects: first of the drawing, then of the hole, then of the whole picture."""
    image = scene.target
    for number, kind in enumerate(defects.KINDS):
        if planted.get(kind):
            image = defects.plant(scene, image, kind, planted[kind], np.random.default_rng((seed, number)))
    return image
