"""Synthetic defects of letters and strokes, graded as those of `defects`: what models make of words they can't write.

They are apart from `defects.KINDS`, so that the data made of those stay what they are. As there, a letter that is
missing, doubled or in the wrong place makes the text wrong; a stroke that is missing, broken or blurred, its structure.
"""

import numpy as np
from scipy import ndimage

from onereward_jax.proving_ground import drawing
from onereward_jax.proving_ground.defects import Kind, redraw
from onereward_jax.proving_ground.scene_spec import Scene

_TEXT = ("text_rendering",)


def _letters(scene: Scene) -> list[np.ndarray]:
    """The coverage of every letter by itself."""
    spec = scene.spec
    centres = drawing.letter_centres(len(spec.word), spec.radius, spec.centre)
    shape = spec.alpha.shape
    pairs = zip(spec.word, centres, strict=True)
    return [drawing.letter_alpha(letter, spec.radius, centre, *shape) for letter, centre in pairs]


def _joined(alphas: list[np.ndarray]) -> np.ndarray:
    return np.maximum.reduce(alphas)


def _missing_letter(scene, image, strength, generator):
    """Fade out up to half of the letters, one after the other."""
    alphas = _letters(scene)
    count = max(1, len(alphas) // 2)
    for rank, index in enumerate(generator.permutation(len(alphas))[:count]):
        alphas[index] = alphas[index] * (1 - float(np.clip(strength * count - rank, 0, 1)))
    return redraw(scene, image, _joined(alphas))


def _doubled_letter(scene, image, strength, generator):
    """Write a letter twice, all of them smaller, so that the word is as wide as it was."""
    spec = scene.spec
    place = int(generator.integers(len(spec.word)))
    word = spec.word[: place + 1] + spec.word[place:]
    widths = [drawing.word_size(count, 1.0)[0] for count in (len(spec.word), len(word))]
    height = spec.radius * widths[0] / widths[1]
    doubled = drawing.word_alpha(word, height, spec.centre, *spec.alpha.shape)
    return redraw(scene, image, spec.alpha * (1 - strength) + doubled * strength)


def _swapped_letters(scene, image, strength, generator):
    """Let two neighbours that differ change places."""
    spec = scene.spec
    places = [n for n in range(len(spec.word) - 1) if spec.word[n] != spec.word[n + 1]]
    place = places[generator.integers(len(places))]
    word = spec.word[:place] + spec.word[place + 1] + spec.word[place] + spec.word[place + 2 :]
    swapped = drawing.word_alpha(word, spec.radius, spec.centre, *spec.alpha.shape)
    return redraw(scene, image, spec.alpha * (1 - strength) + swapped * strength)


def _missing_stroke(scene, image, strength, generator):
    """Fade out a third of the strokes of more and more letters."""
    spec = scene.spec
    centres = drawing.letter_centres(len(spec.word), spec.radius, spec.centre)
    alphas = _letters(scene)
    for rank, index in enumerate(generator.permutation(len(alphas))):
        count = len(drawing.segments_of(spec.word[index]))
        length = max(1, round(count / 3))
        start = int(generator.integers(count - length + 1))
        left_out = frozenset(range(start, start + length))
        less = drawing.letter_alpha(spec.word[index], spec.radius, centres[index], *spec.alpha.shape, left_out)
        share = float(np.clip(strength * len(alphas) - rank, 0, 1))
        alphas[index] = alphas[index] * (1 - share) + less * share
    return redraw(scene, image, _joined(alphas))


def _broken_strokes(scene, image, strength, generator):
    """Cut gaps into the strokes of every letter, wider and wider."""
    spec = scene.spec
    centres = drawing.letter_centres(len(spec.word), spec.radius, spec.centre)
    rows, columns = np.indices(spec.alpha.shape) + 0.5
    kept = np.ones(spec.alpha.shape, np.float32)
    for letter, centre in zip(spec.word, centres, strict=True):
        segments = drawing.segments_of(letter)
        for _ in range(2):
            first, second = segments[generator.integers(len(segments))]
            along = generator.uniform(0.3, 0.7)
            point = (first[0] + along * (second[0] - first[0]), first[1] + along * (second[1] - first[1]))
            x, y = drawing.on_letter(point, spec.radius, centre)
            distance = np.hypot(columns - x, rows - y)
            kept = np.minimum(kept, np.clip(distance - 0.19 * strength * spec.radius + 0.5, 0, 1))
    return redraw(scene, image, (spec.alpha * kept).astype(np.float32))


def _blurred_letters(scene, image, strength, generator):
    """Let the strokes run into each other."""
    sigma = 0.2 * strength * scene.spec.radius
    return redraw(scene, image, ndimage.gaussian_filter(scene.spec.alpha, sigma) * scene.sample.mask)


GLYPHS: dict[str, Kind] = {
    "missing_letter": Kind("text_alignment", _TEXT, _missing_letter, "word"),
    "doubled_letter": Kind("text_alignment", _TEXT, _doubled_letter, "word"),
    "swapped_letters": Kind("text_alignment", _TEXT, _swapped_letters, "word"),
    "missing_stroke": Kind("structure", _TEXT, _missing_stroke, "word"),
    "broken_strokes": Kind("structure", _TEXT, _broken_strokes, "word"),
    "blurred_letters": Kind("structure", _TEXT, _blurred_letters, "word"),
}
