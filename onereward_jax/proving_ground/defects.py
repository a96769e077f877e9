"""Synthetic defects of graded strength: they validate the scorer and add flaws to training targets.

Every kind lowers one preference dimension, the one a person would mark down. Object removal has only one dimension,
which every kind lowers: `removal_quality`.
"""

import colorsys
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

from onereward_jax.data import masks
from onereward_jax.errors import UserError
from onereward_jax.proving_ground import drawing
from onereward_jax.proving_ground.scene_spec import PALETTE_CHROMA, Scene, chroma, draw

_CREATIVE = ("image_fill", "image_extend", "text_rendering")
_ALL = ("image_fill", "image_extend", "object_removal", "text_rendering")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of defect.

    Attributes:
      dimension: the dimension it lowers (in object removal: `removal_quality`).
      tasks: tasks whose scenes can have it.
      change: (scene, image float32 (H, W, 3) in 0-255, strength, generator) -> changed image.
      needs: what the scene must contain: "object", "word", "drawing" (either), "two sides" (a named one and another)
        or "" (nothing).
    """

    dimension: str
    tasks: tuple[str, ...]
    change: Callable[[Scene, np.ndarray, float, np.random.Generator], np.ndarray]
    needs: str = ""


def apply(
    scene: Scene,
    image: np.ndarray,
    kind: str,
    strength: float,
    generator: np.random.Generator,
    kinds: Mapping[str, Kind] | None = None,
) -> np.ndarray:
    """Add a defect to an image.

    Args:
      image: uint8 (H, W, 3), a right answer to the scene.
      kind: a key of `kinds` that `applicable` lists for the scene.
      strength: from 0, no change, to 1, gross.
      generator: source of randomness; the same seed at another strength gives the same defect, weaker or stronger.
      kinds: by default `KINDS`.

    Returns:
      uint8 (H, W, 3).

    Raises:
      UserError: the kind is unknown or does not apply, or the strength is outside [0, 1].
    """
    kinds = KINDS if kinds is None else kinds
    if kind not in (possible := applicable(scene, kinds)):
        raise UserError(f"defect {kind!r} does not apply to this scene: choose one of {', '.join(possible)}")
    if not 0 <= strength <= 1:
        raise UserError(f"a defect cannot have strength {strength}: give a number between 0 and 1")
    if strength == 0:
        return image
    changed = kinds[kind].change(scene, image.astype(np.float32), strength, generator)
    return np.round(np.clip(changed, 0, 255)).astype(np.uint8)


def applicable(scene: Scene, kinds: Mapping[str, Kind] | None = None) -> tuple[str, ...]:
    """List the kinds of defects, by default of `KINDS`, that this scene's target can have."""
    spec, task = scene.spec, scene.sample.task
    has = {"": True, "object": bool(spec.shape), "word": bool(spec.word), "drawing": bool(spec.shape or spec.word)}
    has["two sides"] = bool(spec.side) and len(_masked_sides(scene)) > 1
    found = (KINDS if kinds is None else kinds).items()
    return tuple(name for name, kind in found if task in kind.tasks and has[kind.needs])


def dimension_of(scene: Scene, kind: str) -> str:
    """Return the dimension that the kind lowers in this scene."""
    return "removal_quality" if scene.sample.task == "object_removal" else KINDS[kind].dimension


def flawed(scene: Scene, generator: np.random.Generator) -> Scene:
    """Return the scene with a random flaw in its target, as in training data of mixed quality."""
    kinds = applicable(scene)
    by_dimension: dict[str, list[str]] = {}
    for kind in kinds:
        by_dimension.setdefault(KINDS[kind].dimension, []).append(kind)
    dimensions = sorted(by_dimension)
    if scene.sample.task == "object_removal" and generator.random() < 0.5:
        kind = "left_over"
    else:
        choices = by_dimension[dimensions[generator.integers(len(dimensions))]]
        kind = choices[generator.integers(len(choices))]
    target = apply(scene, scene.target, kind, generator.uniform(0.35, 1.0), generator)
    return dataclasses.replace(scene, target=target, flaw=kind)


# ---------------------------------------------------------------- the drawing


def redraw(scene: Scene, image: np.ndarray, alpha: np.ndarray, colour: np.ndarray | None = None) -> np.ndarray:
    """Redraw the object or word of a right answer with another coverage or colour."""
    rgb = None if colour is None else tuple(colour.tolist())
    return image + draw(scene.spec, alpha, rgb).astype(np.float32) - draw(scene.spec).astype(np.float32)


def _unit(image: np.ndarray) -> float:
    return image.shape[0] / 64


def _wrong_colour(scene, image, strength, generator):
    """Turn the colour, around the colour wheel, into a distant colour of the palette."""
    own = PALETTE_CHROMA[scene.spec.colour]
    others = [n for n, value in PALETTE_CHROMA.items() if np.linalg.norm(value - own) > 0.6]
    other = others[generator.integers(len(others))]
    start, end = (np.array(colorsys.rgb_to_hsv(*drawing.COLOURS[name])) for name in (scene.spec.colour, other))
    end[0] = start[0] + (end[0] - start[0] + 0.5) % 1 - 0.5
    return redraw(scene, image, scene.spec.alpha, np.array(colorsys.hsv_to_rgb(*(start + strength * (end - start)))))


def _reach(shape: str, radius: float, angle: np.ndarray) -> np.ndarray:
    """Return the distance from the centre to the outline in each direction."""
    corners = drawing.outline(shape, radius)
    around = np.arctan2(corners[:, 0], -corners[:, 1]) % (2 * np.pi)
    order = np.argsort(around)
    corners = np.concatenate([corners[order], corners[order][:1]])
    x, y = np.sin(angle), -np.cos(angle)
    best = np.zeros_like(angle)
    for (x0, y0), (x1, y1) in zip(corners[:-1], corners[1:], strict=True):
        dx, dy = x1 - x0, y1 - y0
        across = x * dy - y * dx
        safe = np.where(np.abs(across) < 1e-9, 1.0, across)
        distance = (x0 * dy - y0 * dx) / safe
        along = (x0 * y - y0 * x) / safe
        hit = (np.abs(across) >= 1e-9) & (distance > 0) & (along >= -1e-6) & (along <= 1 + 1e-6)
        best = np.where(hit, np.maximum(best, distance), best)
    return best


def _wrong_shape(scene, image, strength, generator):
    """Morph the outline into another shape's."""
    spec = scene.spec
    others = [shape for shape in drawing.SHAPES if shape != spec.shape]
    other = others[generator.integers(len(others))]
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    reach = (1 - strength) * _reach(spec.shape, spec.radius, angle) + strength * _reach(other, spec.radius, angle)
    points = np.stack([np.sin(angle), -np.cos(angle)], axis=-1) * reach[:, None] + spec.centre
    return redraw(scene, image, drawing.fill_polygon(points, *image.shape[:2]))


def _wrong_size(scene, image, strength, generator):
    """Grow small to large, or shrink large to small."""
    spec = scene.spec
    other = drawing.SIZES["large" if spec.size == "small" else "small"] * _unit(image)
    radius = spec.radius * (other / spec.radius) ** strength
    return redraw(scene, image, drawing.shape_alpha(spec.shape, radius, spec.centre, *image.shape[:2]))


def _missing(scene, image, strength, generator):
    """Fade out the object or word that the prompt names."""
    return redraw(scene, image, scene.spec.alpha * (1 - strength))


def _wrong_side(scene, image, strength, generator):
    """Fade the object out at the named border and in at another part of the hole."""
    spec = scene.spec
    height, width = image.shape[:2]
    near = 8 * _unit(image)
    centres = {
        "left": (near, height / 2), "right": (width - near, height / 2),
        "top": (width / 2, near), "bottom": (width / 2, height - near),
    }  # fmt: skip
    others = [side for side in _masked_sides(scene) if side != spec.side]
    centre = centres[others[generator.integers(len(others))]]
    other = drawing.shape_alpha(spec.shape, spec.radius, centre, height, width) * scene.sample.mask
    return redraw(scene, image, np.maximum(spec.alpha * (1 - strength), other * strength))


def _masked_sides(scene: Scene) -> list[str]:
    mask = scene.sample.mask
    edges = {"left": mask[:, 0], "right": mask[:, -1], "top": mask[0], "bottom": mask[-1]}
    return [side for side in masks.SIDES if edges[side].all()]


def _misspelt(scene, image, strength, generator):
    """Turn more and more letters into wrong ones."""
    spec = scene.spec
    count = len(spec.word)
    centres = drawing.letter_centres(count, spec.radius, spec.centre)
    order = generator.permutation(count)
    alpha = np.zeros_like(spec.alpha)
    for rank, index in enumerate(order):
        letter = spec.word[index]
        others = [other for other in drawing.ALPHABET if other != letter]
        wrong = others[generator.integers(len(others))]
        share = float(np.clip(strength * count - rank, 0, 1))
        right_alpha = drawing.letter_alpha(letter, spec.radius, centres[index], *image.shape[:2])
        wrong_alpha = drawing.letter_alpha(wrong, spec.radius, centres[index], *image.shape[:2])
        alpha = np.maximum(alpha, right_alpha * (1 - share) + wrong_alpha * share)
    return redraw(scene, image, alpha)


def _distorted(scene, image, strength, generator):
    """Make the outline ragged; let the strokes of letters wobble and break."""
    unit = _unit(image)
    word = bool(scene.spec.word)
    wavelength, amplitude, bite = 1.4, 0.95, 0.75
    if not word:  # from a ragged edge to a blob
        wavelength = generator.uniform(1.2, 2.2)
        amplitude, bite = 1.0 + 0.5 * wavelength, 0.9
    fields = [_smooth_noise(image.shape[:2], wavelength * unit, generator) for _ in range(3)]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    rows += strength * amplitude * unit * fields[0]
    columns += strength * amplitude * unit * fields[1]
    alpha = ndimage.map_coordinates(scene.spec.alpha, [rows, columns], order=1, mode="constant")
    alpha *= 1 - strength * bite * np.clip(fields[2] - 0.6, 0, 1)
    return redraw(scene, image, alpha.astype(np.float32))


def _smooth_noise(shape: tuple[int, int], sigma: float, generator: np.random.Generator) -> np.ndarray:
    field = ndimage.gaussian_filter(generator.normal(size=shape).astype(np.float32), sigma, mode="wrap")
    return field / field.std()


# ---------------------------------------------------------------- the photograph in the hole


def _in_hole(scene: Scene, image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Replace the photograph inside the hole, behind the drawing."""
    drawn = scene.spec.alpha if scene.sample.task != "object_removal" else np.zeros_like(scene.spec.alpha)
    weight = (scene.sample.mask * (1 - drawn))[..., None]
    return image + weight * (background - scene.spec.background)


def _seam(scene, image, strength, generator):
    """Give the photograph in the hole another brightness and tint than its surroundings."""
    background = scene.spec.background.astype(np.float32)
    tint = generator.normal(0, 0.35, 3)
    level = background.mean()
    sign = 1.0 if level < 90 else -1.0 if level > 165 else generator.choice([-1.0, 1.0])
    return _in_hole(scene, image, background + strength * 52 * (sign + tint - tint.mean()))


def _grain(scene, image, strength, generator):
    """Remove the grain of the photograph in the hole: an airbrushed patch."""
    background = scene.spec.background.astype(np.float32)
    sigma = (0.4 + 2.0 * strength) * _unit(image)
    soft = ndimage.gaussian_filter(background, (sigma, sigma, 0))
    return _in_hole(scene, image, background + min(1.0, 3 * strength) * (soft - background))


def _harsh(scene, image, strength, generator):
    """Oversharpen the photograph in the hole."""
    background = scene.spec.background.astype(np.float32)
    sigma = 1.6 * _unit(image)
    fine = background - ndimage.gaussian_filter(background, (sigma, sigma, 0))
    gain = 1.4 if scene.spec.word else 0.9  # a word covers most of the photograph
    return _in_hole(scene, image, background + gain * strength * fine)


def _outside(scene, image, strength, generator):
    """Move the part of the image that should have been kept."""
    angle = generator.uniform(0, 2 * np.pi)
    shift = strength * 3.0 * _unit(image) * np.array([np.sin(angle), np.cos(angle)])
    moved = ndimage.shift(image, (*shift, 0), order=1, mode="reflect")
    keep = scene.sample.mask[..., None].astype(bool)
    return np.where(keep, image, moved)


def _checkerboard(scene, image, strength, generator):
    """Add a checkerboard, as decoders leave it."""
    unit = max(1, round(_unit(image)))
    rows, columns = np.indices(image.shape[:2]) // unit
    pattern = np.where((rows + columns) % 2 == 0, 1.0, -1.0)[..., None]
    return image + strength * 30 * pattern * scene.sample.mask[..., None]


def _smear(scene, image, strength, generator):
    """Smear the photograph in the hole along one direction into streaks."""
    background = scene.spec.background.astype(np.float32)
    length = (1 + 16 * strength) * _unit(image)
    inside = scene.sample.mask.astype(bool)
    luma = background.mean(axis=-1)
    axis = int(np.argmax([(np.gradient(luma, axis=axis)[inside] ** 2).mean() for axis in (0, 1)]))  # across the edges
    streaks = ndimage.uniform_filter1d(background, max(3, round(length)), axis=axis, mode="reflect")
    grain, grain_left = (_fine(plane, _unit(image))[inside].std() for plane in (background, streaks))
    gain = np.clip(grain / max(grain_left, 1e-3), 1, 5)  # as strong as the grain they replace
    fine = streaks - ndimage.gaussian_filter(streaks, (3.0 * _unit(image), 3.0 * _unit(image), 0))
    return _in_hole(scene, image, background + strength**0.5 * (streaks + (gain - 1) * fine - background))


def _fine(image: np.ndarray, unit: float) -> np.ndarray:
    luma = image.mean(axis=-1)
    return ndimage.gaussian_filter(luma, 0.6 * unit) - ndimage.gaussian_filter(luma, 1.6 * unit)


def _left_over(scene, image, strength, generator):
    """Leave the object in, fainter or unchanged."""
    return image + strength * (scene.sample.image.astype(np.float32) - scene.spec.background)


# ---------------------------------------------------------------- the whole image


def _exposure(scene, image, strength, generator):
    """Make the image too dark or too bright."""
    dark = image.mean() > generator.uniform(70, 160)
    return image * (1 - 0.5 * strength) if dark else 255 * (image / 255) ** (1 / (1 + 1.3 * strength))


def _contrast(scene, image, strength, generator):
    """Flatten the contrast."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (1 - 0.75 * strength) * (image - mean)


def _cast(scene, image, strength, generator):
    """Add a colour cast."""
    angle = generator.uniform(0, 2 * np.pi)
    tint = np.array([np.cos(angle), np.cos(angle + 2.1), np.cos(angle - 2.1)])
    return image + strength * 42 * tint


def _saturation(scene, image, strength, generator):
    """Oversaturate the colours, more so in a scene with little colour."""
    grey = image @ np.array([0.3, 0.59, 0.11], np.float32)
    strong = np.abs(chroma(scene.spec.background / 255.0)).mean() > 0.1
    factor = 1 + (1.1 if strong else 3.5) * strength
    return grey[..., None] + factor * (image - grey[..., None])


def _noise(scene, image, strength, generator):
    """Add sensor noise."""
    return image + strength * 24 * generator.normal(size=image.shape)


KINDS: dict[str, Kind] = {
    "wrong_colour": Kind("text_alignment", ("image_fill", "image_extend"), _wrong_colour, "object"),
    "wrong_shape": Kind("text_alignment", ("image_fill", "image_extend"), _wrong_shape, "object"),
    "wrong_size": Kind("text_alignment", ("image_fill",), _wrong_size, "object"),
    "missing": Kind("text_alignment", _CREATIVE, _missing, "drawing"),
    "wrong_side": Kind("text_alignment", ("image_extend",), _wrong_side, "two sides"),
    "misspelt": Kind("text_alignment", ("text_rendering",), _misspelt, "word"),
    "seam": Kind("consistency", _ALL, _seam),
    "grain": Kind("consistency", _ALL, _grain),
    "outside": Kind("consistency", _ALL, _outside),
    "distorted": Kind("structure", _CREATIVE, _distorted, "drawing"),
    "checkerboard": Kind("structure", _ALL, _checkerboard),
    "smear": Kind("structure", ("image_fill", "image_extend", "object_removal"), _smear),
    "harsh": Kind("aesthetics", _ALL, _harsh),
    "exposure": Kind("aesthetics", _CREATIVE, _exposure),
    "contrast": Kind("aesthetics", _CREATIVE, _contrast),
    "cast": Kind("aesthetics", _CREATIVE, _cast),
    "saturation": Kind("aesthetics", _CREATIVE, _saturation),
    "noise": Kind("aesthetics", _CREATIVE, _noise),
    "left_over": Kind("removal_quality", ("object_removal",), _left_over),
}
