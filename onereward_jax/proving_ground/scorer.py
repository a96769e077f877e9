"""The truth about an image: how well it answers a scene, per preference dimension.

The scorer knows the scene's hidden truth (`Spec`): neither judge nor policy ever sees it. Each dimension is a
product of factors in [0, 1], and each factor is a bell, exp(-(excess / scale)²), of how far one measurement lies
beyond what the photograph itself would show:

  text_alignment   the named thing is there, in the named colour, shape, size and place; the word is spelt right
  consistency      no seam at the mask's border; colour and grain of the hole's photograph agree with the
                   surroundings; what was to be kept was kept
  structure        outline or strokes are well-formed, whatever they show; no checkerboard, streaks or void
  aesthetics       exposure, contrast, colour cast, saturation and noise of the picture; an even object
  removal_quality  the object is gone and the hole passes as photograph

The dimensions are kept apart by construction: a tone change of the whole picture is estimated on the kept pixels,
charged to aesthetics and undone before anything else is measured; consistency compares the hole with the image's own
surroundings; structure asks whether the form is any clean form, text alignment whether it is the named one.

All is measured at 64x64, to which images of other sizes are averaged.
"""

import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from onereward_jax.data import masks
from onereward_jax.errors import UserError
from onereward_jax.proving_ground import drawing
from onereward_jax.proving_ground.spec import PALETTE_CHROMA, Scene, chroma

SIDE = 64  # pixels: everything is measured at this size

# ---------------------------------------------------------------- the verdict between two images

# Fixed before any model was trained, and not to be moved. The margin is on the mean over a scene's dimensions: .04 is
# one dimension of four falling by .16, or removal quality, the only one of its scenes, by .04. What a person would not
# tell apart stays below it (a target blurred by .8 pixels or with noise of 4 grey levels moves by less than .02, and a
# defect of a fifth of the gross strength by about as much); most kinds at half the gross strength move it by more.
TIE_MARGIN = 0.04

Verdict = Literal["good", "same", "bad"]


def compare(scene: Scene, image_a: np.ndarray, image_b: np.ndarray) -> Verdict:
    """Is `image_a` better than `image_b` by truth: "good", "same" or "bad".

    The means of `score` over the scene's dimensions are compared, each dimension counting alike; a difference of at
    most `TIE_MARGIN` is "same".
    """
    return verdict(score(scene, image_a), score(scene, image_b))


def verdict(scores_a: Mapping[str, float], scores_b: Mapping[str, float]) -> Verdict:
    """`compare` for scores that are already there."""
    difference = overall(scores_a) - overall(scores_b)
    if abs(difference) <= TIE_MARGIN:
        return "same"
    return "good" if difference > 0 else "bad"


def overall(scores: Mapping[str, float]) -> float:
    """One number for an image: the mean over its dimensions."""
    return float(np.mean(list(scores.values())))


# ---------------------------------------------------------------- the score


def score(scene: Scene, image: np.ndarray) -> dict[str, float]:
    """Scores in [0, 1] for the dimensions of the scene's task and prompt, higher is better.

    Args:
      image: (H, W, 3) of the scene's size; uint8, or floats in [0, 1] (values beyond are clipped).

    Raises:
      UserError: the image has another size or holds numbers that are not finite.
    """
    truth = _truth(scene)
    picture = _at_scoring_size(_as_float(scene, image))
    look = _look(truth, picture)
    values: dict[str, float] = {}
    photograph = _photograph(truth, look)
    for dimension in scene.sample.dimensions:
        if dimension == "text_alignment":
            value = look.form.alignment
        elif dimension == "consistency":
            value = photograph.consistency
        elif dimension == "structure":
            value = look.form.structure * photograph.structure
        elif dimension == "aesthetics":
            value = _aesthetics(truth, picture, look)
        else:
            value = _removal_quality(truth, picture, look, photograph)
        values[dimension] = float(np.clip(value, 0.0, 1.0))
    return values


def _bell(excess: float, tolerance: float, scale: float) -> float:
    """1 up to the tolerance, then falling smoothly."""
    return float(np.exp(-((max(0.0, excess - tolerance) / scale) ** 2)))


def _ramp(value: float, low: float, high: float) -> float:
    """0 at low, 1 at high, a smooth step between."""
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3 - 2 * t)


def _sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(value, -30, 30))))


def _as_float(scene: Scene, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.shape != scene.sample.image.shape:
        raise UserError(f"image {image.shape} for a scene of {scene.sample.image.shape}: give the scene's size")
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise UserError("the image holds NaN or infinity: check what generated it")
    return np.clip(image, 0, 1)


def _at_scoring_size(picture: np.ndarray) -> np.ndarray:
    """Float (H, W) or (H, W, 3) averaged to `SIDE`."""
    if picture.shape[0] == SIDE:
        return picture
    if picture.ndim == 2:
        resized = Image.fromarray(picture.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(resized, np.float32)
    return np.stack([_at_scoring_size(picture[..., channel]) for channel in range(3)], axis=-1)


# ---------------------------------------------------------------- what of the truth can be prepared

_LUMA = np.array([0.3, 0.59, 0.11], np.float32)
_TO_OPPONENT = np.stack([_LUMA, [1, -1, 0], [-0.5, -0.5, 1]], axis=-1).astype(np.float32)
_TO_CHROMA = np.ascontiguousarray(_TO_OPPONENT[:, 1:])
_FROM_OPPONENT = np.linalg.inv(_TO_OPPONENT)
_BIN = 0.03  # of the table over chroma
_BINS = 76
_OWN_COLOUR = 0.3  # chroma this close to the object's is never taken for photograph


class _Truth(NamedTuple):
    """A scene at scoring size, with all that depends on it alone; planes are (64, 64) or (64, 64, channels)."""

    scene: Scene
    background: np.ndarray  # the photograph, RGB
    opponent: np.ndarray  # its luma and chroma
    soft: np.ndarray  # the same, blurred
    softer: tuple[np.ndarray, np.ndarray]  # means and deviations of the kept part, more blurred
    band: np.ndarray  # its fine structure, squared
    hole: np.ndarray  # bool
    near_hole: np.ndarray  # bool, the hole and two pixels around it
    kept: np.ndarray  # bool, at least a pixel away from the hole
    ring: np.ndarray  # bool, kept and near the hole
    distance_table: np.ndarray  # over chroma: distance to what the photograph holds
    colour_residual: float  # mean square of fine chroma in the kept part
    border: tuple[np.ndarray, ...]  # pairs of pixels across the mask's border
    border_step: np.ndarray
    ring_direction: np.ndarray  # of the photograph's forms around the hole
    alpha: np.ndarray  # the drawing's coverage
    radius: float  # and its radius or letter height


@functools.lru_cache(maxsize=16)
def _truth(scene: Scene) -> _Truth:
    spec = scene.spec
    background = _at_scoring_size(spec.background.astype(np.float32) / 255)
    opponent = _opponent(background)
    soft = _smooth(opponent, 1.0)
    hole = _at_scoring_size(scene.sample.mask.astype(np.float32)) > 0.5
    kept = ~ndimage.binary_dilation(hole)
    kept = kept if kept.any() else ~hole
    ring = kept & ndimage.binary_dilation(hole, iterations=8)
    ring = ring if ring.any() else kept
    border = _border_pairs(hole)
    return _Truth(
        scene=scene,
        background=background,
        opponent=opponent,
        soft=soft,
        softer=_moments(_smooth(opponent, 2.0), kept),
        band=_band(background) ** 2,
        hole=hole,
        near_hole=ndimage.binary_dilation(hole, iterations=2),
        kept=kept,
        ring=ring,
        distance_table=_distance_table(background, spec.colour),
        colour_residual=_residual(_smooth(opponent[..., 1:], 0.55), soft, kept),
        border=border,
        border_step=_border_step(background, border, np.ones((SIDE, SIDE), np.float32)),
        ring_direction=_direction(background, ring),
        alpha=_at_scoring_size(spec.alpha),
        radius=spec.radius * SIDE / scene.sample.image.shape[0],
    )


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the pixels of a mask: (channels,), or a number for a plane without channels."""
    weight = where.reshape(-1).astype(np.float32)
    return weight @ values.reshape(weight.size, -1).squeeze() / max(float(weight.sum()), 1.0)


def _moments(values: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the channels over the pixels of a mask."""
    mean = _mean(values, where)
    centred = values - mean
    return mean, np.sqrt(_mean(centred * centred, where))


def _residual(colours: np.ndarray, soft: np.ndarray, where: np.ndarray) -> float:
    """Mean square of what differs from the blurred photograph's chroma."""
    off = colours - soft[..., 1:]
    return float(_mean(off * off, where).mean())


def _bins(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.clip(np.round(values / _BIN).astype(np.int32) + _BINS // 2, 0, _BINS - 1)
    return index[..., 0], index[..., 1]


def _distance_table(background: np.ndarray, colour: str) -> np.ndarray:
    """For every chroma, how far it is from those of the photograph: what is far was drawn."""
    counts = np.zeros((_BINS, _BINS), np.float32)
    np.add.at(counts, _bins(chroma(background)), 1)
    photographic = ndimage.uniform_filter(counts, 3) * 9 >= 3
    if colour:
        axis = (np.arange(_BINS) - _BINS // 2) * _BIN
        own = PALETTE_CHROMA[colour]
        photographic &= (axis[:, None] - own[0]) ** 2 + (axis[None, :] - own[1]) ** 2 > _OWN_COLOUR**2
    if not photographic.any():
        photographic[_BINS // 2, _BINS // 2] = True
    return ndimage.distance_transform_edt(~photographic).astype(np.float32) * _BIN


@functools.cache
def _blur_matrix(side: int, sigma: float) -> np.ndarray:
    """The Gaussian blur along an axis of that many pixels, edges repeated, as a matrix."""
    return ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="nearest", truncate=3.0)


def _smooth(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W) or (H, W, C) over its first two axes."""
    down = _blur_matrix(picture.shape[0], sigma)
    across = _blur_matrix(picture.shape[1], sigma)
    picture = picture.astype(np.float32, copy=False)
    if picture.ndim == 2:
        return down @ picture @ across.T
    height, width, channels = picture.shape
    rows = (down @ picture.reshape(height, -1)).reshape(picture.shape)
    columns = across @ rows.swapaxes(0, 1).reshape(width, -1)
    return np.ascontiguousarray(columns.reshape(width, height, channels).swapaxes(0, 1))


def _opponent(picture: np.ndarray) -> np.ndarray:
    """(luma, two chroma) of RGB."""
    return picture @ _TO_OPPONENT


def _rgb(opponent: np.ndarray) -> np.ndarray:
    """The inverse of `_opponent`."""
    return opponent @ _FROM_OPPONENT


def _band(picture: np.ndarray) -> np.ndarray:
    """Fine structure of luma and chroma, without the finest, where checkerboards live."""
    fine = _smooth(_opponent(picture), 0.6)
    return fine - _smooth(fine, 1.5)


def _border_pairs(hole: np.ndarray) -> tuple[np.ndarray, ...]:
    """Flat indices (inside, outside) of neighbours across the mask's border."""
    index = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    inside, outside = [], []
    for first, second in (((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
                          ((slice(1, None), slice(None)), (slice(None, -1), slice(None)))):  # fmt: skip
        for one, other in ((first, second), (second, first)):
            crossing = hole[one] & ~hole[other]
            inside.append(index[one][crossing])
            outside.append(index[other][crossing])
    return np.concatenate(inside), np.concatenate(outside)


def _border_step(picture: np.ndarray, border: tuple[np.ndarray, ...], weight: np.ndarray) -> np.ndarray:
    """The step from outside to inside, averaged along the border: (pairs, 3)."""
    inside, outside = border
    if not len(inside):
        return np.zeros((0, 3), np.float32)
    flat = picture.reshape(-1, 3)
    weights = np.minimum(weight.reshape(-1)[inside], weight.reshape(-1)[outside])
    step = (flat[inside] - flat[outside]) * weights[:, None]
    plane = np.stack(
        [np.bincount(inside, values, SIDE * SIDE) for values in (*step.T, weights)], axis=-1
    ).reshape(SIDE, SIDE, 4)  # fmt: skip
    plane = _smooth(plane.astype(np.float32), 2.0).reshape(-1, 4)[inside]
    return plane[:, :3] / (plane[:, 3:] + 1e-3)


# ---------------------------------------------------------------- looking at an image


class _Form(NamedTuple):
    """What is drawn in the hole."""

    alignment: float
    structure: float
    presence: float
    interior: np.ndarray  # float (64, 64), the inside of the drawn object
    extent: np.ndarray | None  # float (64, 64), where the drawing is; None where nothing is to be drawn


class _Look(NamedTuple):
    picture: np.ndarray  # (64, 64, 3), with the tone change of the kept part undone
    ink: np.ndarray  # (64, 64) in [0, 1]: drawn rather than photographed
    covered: np.ndarray  # bool, ink and its rim
    plain: np.ndarray  # bool, photograph inside the hole, clear of ink and border
    form: _Form
    bare: np.ndarray  # (64, 64, 3), the picture with the ink painted over by what is around it
    band: np.ndarray  # (64, 64, 3), fine structure of `bare`, squared


def _look(truth: _Truth, picture: np.ndarray) -> _Look:
    spec = truth.scene.spec
    corrected = _undo_tone(truth, picture)
    colours = _smooth(corrected @ _TO_CHROMA, 0.55)
    distance = truth.distance_table[_bins(colours)]
    distance = distance * truth.near_hole
    named = _named_distance(truth)
    if spec.side and truth.scene.sample.task == "image_extend":
        where = distance * _strip(truth)
    else:
        where = distance
    peak = float(np.sort(where, axis=None)[-24:].mean())
    reference = max(0.45 * named, 0.9 * peak)
    threshold = 0.08 + 1.5 * _colour_noise(truth, colours)
    ink = np.clip((where - threshold) / max(reference - threshold, 0.05), 0, 1)
    any_ink = np.clip((distance - threshold) / max(reference - threshold, 0.05), 0, 1)
    if truth.scene.sample.task == "object_removal" or not spec.colour:
        form = _Form(1.0, 1.0, 0.0, np.zeros_like(ink), None)
    elif spec.word:
        form = _word_form(truth, corrected, ink, where, named)
    else:
        form = _shape_form(truth, corrected, ink, where, named)
    covered = _covered(truth, any_ink, form)
    plain = ndimage.binary_erosion(truth.hole, border_value=1) & ~covered
    bare = _painted_over(corrected, covered)
    return _Look(corrected, any_ink, covered, plain, form, bare, _band(bare) ** 2)


_ONE_OBJECT = 260.0  # pixels of ink
_LARGEST_DRAWING = 480.0  # a large shape has 330


def _covered(truth: _Truth, ink: np.ndarray, form: _Form) -> np.ndarray:
    """Where the photograph is not to be measured: the drawing, and as much ink elsewhere as one stray object has.

    More than that, or any where nothing is to be drawn, is a photograph of the wrong colour.
    """
    if form.extent is None:
        return np.zeros(ink.shape, bool)
    drawing_itself = form.extent > 0.1
    elsewhere = float(ink[ndimage.maximum_filter(form.extent, 5) <= 0.1].sum())
    if truth.scene.spec.shape and float(ink.sum()) > _LARGEST_DRAWING:
        return np.zeros(ink.shape, bool)
    if float(ink.sum()) > 2 * float(form.extent.sum()) + 60 or elsewhere > min(_ONE_OBJECT, 0.25 * truth.hole.sum()):
        return drawing_itself
    return drawing_itself | (ndimage.maximum_filter(ink, 3) > 0.2)


def _painted_over(picture: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Ink would bleed into the photograph's measurements: replace it by a blur of its surroundings."""
    clear = (~covered).astype(np.float32)[..., None]
    planes = _smooth(np.concatenate([picture * clear, clear], axis=-1), 3.0)
    return picture * clear + (planes[..., :3] / (planes[..., 3:] + 1e-4)) * (1 - clear)


def _undo_tone(truth: _Truth, picture: np.ndarray) -> np.ndarray:
    """Estimates the change of tone on the kept pixels (means, contrast, saturation), and inverts it.

    Moments and not a regression, so that kept pixels that have moved are not taken for another contrast.
    """
    seen = _opponent(picture)
    mean, spread = _moments(_smooth(seen, 2.0), truth.kept)
    true_mean, true_spread = truth.softer
    contrast = (spread[0] + 0.01) / (true_spread[0] + 0.01)
    colourful, true_colourful = np.hypot(*spread[1:]), np.hypot(*true_spread[1:])
    # Where the photograph is nearly grey, its saturation says little: lean on the contrast.
    saturation = (colourful + 0.03 * contrast) / (true_colourful + 0.03)
    gain = np.array([np.clip(contrast, 0.2, 3), *[np.clip(saturation, 0.2, 1.8)] * 2], np.float32)
    return _rgb((seen - mean) / gain + true_mean)


def _colour_noise(truth: _Truth, colours: np.ndarray) -> float:
    """Colour noise of the kept part beyond the photograph's own (root mean square)."""
    return float(np.sqrt(max(0.0, _residual(colours, truth.soft, truth.kept) - truth.colour_residual)))


def _named_distance(truth: _Truth) -> float:
    """How far the scene's own colour stands out from its photograph."""
    colour = truth.scene.spec.colour
    if not colour:
        return 0.5
    return max(0.2, float(truth.distance_table[_bins(PALETTE_CHROMA[colour])]))


def _strip(truth: _Truth) -> np.ndarray:
    """The border on the named side, where the prompt wants the object; the object's centre is in its middle."""
    spec = truth.scene.spec
    scale = SIDE / truth.scene.sample.image.shape[0]
    x, y = spec.centre[0] * scale, spec.centre[1] * scale
    slack = 3
    bounds = {
        "left": (0, 0, 2 * x + slack, SIDE),
        "right": (2 * x - SIDE - slack, 0, SIDE, SIDE),
        "top": (0, 0, SIDE, 2 * y + slack),
        "bottom": (0, 2 * y - SIDE - slack, SIDE, SIDE),
    }[spec.side]
    return masks.box(SIDE, SIDE, bounds).astype(np.float32)


# ---------------------------------------------------------------- shapes

_RADII = tuple(np.exp(np.linspace(np.log(4.6), np.log(12.5), 9)))


class _Bank(NamedTuple):
    """Templates of every shape at every radius, and what matching needs of them."""

    alpha: np.ndarray  # (shapes, radii, 64, 64)
    spectra: np.ndarray  # conjugate spectra
    squares: np.ndarray  # (shapes, radii), sums of squares
    soft_spectra: np.ndarray  # the same of the blurred templates
    soft_squares: np.ndarray


@functools.cache
def _shape_bank() -> _Bank:
    centre = (SIDE / 2, SIDE / 2)
    drawn = [[drawing.shape_alpha(s, r, centre, SIDE, SIDE) for r in _RADII] for s in drawing.SHAPES]
    sharp = np.array([[_smooth(alpha, 0.45) for alpha in row] for row in drawn])
    soft = np.array([[_smooth(alpha, _SOFT) for alpha in row] for row in sharp])
    spectra = [np.conj(fft.rfft2(bank)).astype(np.complex64) for bank in (sharp, soft)]
    return _Bank(sharp, spectra[0], (sharp**2).sum(axis=(2, 3)), spectra[1], (soft**2).sum(axis=(2, 3)))


_SOFT = 1.4  # pixels: a blur that hides ragged edges, to tell which shape is meant


def _dice(ink: np.ndarray, spectra: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best overlap 2·Σab / (Σa² + Σb²) of the ink with each template over all positions, and that position."""
    match = fft.irfft2(fft.rfft2(ink) * spectra, s=(SIDE, SIDE)).reshape(*squares.shape, -1)
    position = match.argmax(axis=-1)
    best = np.take_along_axis(match, position[..., None], axis=-1)[..., 0]
    return 2 * best / ((ink**2).sum() + squares + 1e-6), position


def _shape_form(truth: _Truth, picture: np.ndarray, ink: np.ndarray, distance: np.ndarray, named: float) -> _Form:
    spec = truth.scene.spec
    bank = _shape_bank()
    ink = ink.astype(np.float32)
    dice, position = _dice(ink, bank.spectra, bank.squares)
    best = np.unravel_index(dice.argmax(), dice.shape)
    template = np.roll(bank.alpha[best], divmod(int(position[best]), SIDE), axis=(0, 1))
    standing_out = float((template**2 * distance).sum() / (template**2).sum()) / named
    enough = _ramp(float(ink.sum()), 25, 70)

    # Any clean outline is well-formed, the named one or not; nothing drawn is nothing ill-formed.
    well_formed = _ramp(float(dice.max()), 0.70, 0.975)
    weight = _ramp(standing_out, 0.1, 0.45) * enough
    structure = 1 - weight * (1 - well_formed)

    colour_right = _hue_agreement(picture, template * ink**2, spec.colour)
    near = slice(max(0, int(best[1]) - 1), int(best[1]) + 2)
    soft, _ = _dice(_smooth(ink, _SOFT), bank.soft_spectra[:, near], bank.soft_squares[:, near])
    own = drawing.SHAPES.index(spec.shape)
    lead = soft[own].max() - np.delete(soft, own, axis=0).max()
    doubt = 0.008 + 0.08 * max(0.0, 0.96 - float(dice.max()))  # of a ragged form, the benefit
    shape_right = _sigmoid((lead + doubt) / 0.006)
    size_right = 1.0
    if spec.names_size:
        radius = _RADII[int(best[1])]
        nearby = ndimage.maximum_filter(template, 5) > 0.2
        area = float((ink * nearby).sum()) / float(template.sum())
        radius *= np.sqrt(min(max(area, 0.5), 2.0))
        off = abs(np.log(radius / drawing.SIZES[spec.size])) / np.log(drawing.SIZES["large"] / drawing.SIZES["small"])
        size_right = _bell(off, 0.18 + max(0.0, 0.96 - float(dice.max())), 0.5)
    presence = _ramp(standing_out, 0.02, 0.65) * enough
    alignment = presence * (0.04 + 0.96 * colour_right) * (0.25 + 0.75 * shape_right) * (0.3 + 0.7 * size_right)
    interior = np.clip(ndimage.minimum_filter(template, 3) * ink, 0, 1) * (presence > 0.2)
    return _Form(alignment, structure, presence, interior, template * (presence > 0.05))


def _hue_agreement(picture: np.ndarray, weight: np.ndarray, colour: str) -> float:
    """How near the weighted pixels are to a colour of the palette: mostly in hue, for a quarter in chroma."""
    seen = (weight[..., None] * chroma(picture)).sum(axis=(0, 1)) / (weight.sum() + 1e-6)
    own = PALETTE_CHROMA[colour]
    turn = np.arctan2(seen[1], seen[0]) - np.arctan2(own[1], own[0])
    turn = abs((np.degrees(turn) + 180) % 360 - 180)
    return 0.75 * _bell(float(turn), 9, 27) + 0.25 * _bell(float(np.linalg.norm(seen - own)), 0.25, 0.45)


# ---------------------------------------------------------------- words

_LETTER_HEIGHT = 12.0
_SHIFTS = np.arange(-2.0, 2.01, 0.5)
_SOFT_LETTER = 0.8  # pixels: a blur that hides ragged strokes, to tell which letter is meant
_WINDOW = (8, 5)  # half height and half width of a letter's window, pixels


@functools.cache
def _letter_bank(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Templates (letters, shifts, pixels) in a letter's window, blurred, and the sums of their squares."""
    rows, columns = _WINDOW
    side = 32
    bank = []
    for letter in drawing.ALPHABET:
        shifted = []
        for dy in _SHIFTS:
            for dx in _SHIFTS:
                alpha = drawing.letter_alpha(letter, _LETTER_HEIGHT, (side / 2 + dx, side / 2 + dy), side, side)
                alpha = _smooth(alpha, sigma)
                half = side // 2
                shifted.append(alpha[half - rows : half + rows, half - columns : half + columns].reshape(-1))
        bank.append(shifted)
    templates = np.asarray(bank, np.float32)
    return templates, (templates**2).sum(axis=-1)


def _word_form(truth: _Truth, picture: np.ndarray, ink: np.ndarray, distance: np.ndarray, named: float) -> _Form:
    spec = truth.scene.spec
    centre = (spec.centre[0] * truth.radius / spec.radius, spec.centre[1] * truth.radius / spec.radius)
    dx, dy = _offset(_smooth(truth.alpha, 0.45), ink)
    rows, columns = _WINDOW
    sharp, soft = np.pad(ink, 16), np.pad(_smooth(ink, _SOFT_LETTER), 16)
    right, formed = [], []
    for letter, (x, y) in zip(spec.word, drawing.letter_centres(len(spec.word), truth.radius, centre), strict=True):
        x0, y0 = x + dx, y + dy
        # The window starts at a whole pixel; the shifts of the bank cover the rest.
        i, j = int(np.clip(round(y0), 0, SIDE)) + 16, int(np.clip(round(x0), 0, SIDE)) + 16
        window = (slice(i - rows, i + rows), slice(j - columns, j + columns))
        formed.append(_letter_dice(sharp[window], 0.45).max())
        dice = _letter_dice(soft[window], np.hypot(0.45, _SOFT_LETTER))
        own = drawing.ALPHABET.index(letter)
        doubt = 0.03 + 0.25 * max(0.0, 0.95 - float(formed[-1]))
        right.append(_sigmoid((dice[own] - np.delete(dice, own).max() + doubt) / 0.02))
    placed = np.roll(truth.alpha, (round(dy), round(dx)), axis=(0, 1))
    standing_out = float((placed**2 * distance).sum() / (placed**2).sum()) / named
    presence = _ramp(standing_out, 0.03, 0.5)
    colour_right = 1.0
    if spec.names_colour:
        colour_right = _hue_agreement(picture, placed**2 * ink**2, spec.colour)
    stray = float((ink * (ndimage.maximum_filter(placed, 5) < 0.05)).sum() / (ink.sum() + 1e-6))
    spelt = float(np.mean(right)) ** 1.5 * _ramp(float(np.mean(formed)), 0.4, 0.65)
    alignment = presence * (0.2 + 0.8 * colour_right) * spelt * _bell(stray, 0.15, 0.5)
    well_formed = float(np.mean([_ramp(float(value), 0.6, 0.96) for value in formed]))
    weight = _ramp(standing_out, 0.12, 0.4)
    return _Form(alignment, 1 - weight * (1 - well_formed), presence, np.zeros_like(ink), placed)


def _letter_dice(window: np.ndarray, sigma: float) -> np.ndarray:
    """Best overlap of a window with each letter of the alphabet, over small shifts."""
    bank, squares = _letter_bank(float(sigma))
    return (2 * (bank @ window.reshape(-1)) / (squares + (window**2).sum() + 1e-6)).max(axis=1)


def _offset(template: np.ndarray, ink: np.ndarray, reach: int = 8) -> tuple[int, int]:
    """(x, y) by which the template must be moved to lie best over the ink."""
    match = fft.irfft2(fft.rfft2(ink) * np.conj(fft.rfft2(template)), s=(SIDE, SIDE))
    match = np.fft.fftshift(match)
    half = SIDE // 2
    window = match[half - reach : half + reach + 1, half - reach : half + reach + 1]
    y, x = np.unravel_index(window.argmax(), window.shape)
    return int(x) - reach, int(y) - reach


# ---------------------------------------------------------------- the photograph in the hole


class _Photograph(NamedTuple):
    consistency: float
    structure: float


_FEW = 24  # pixels: fewer say nothing about the photograph


def _photograph(truth: _Truth, look: _Look) -> _Photograph:
    clear = (~look.covered).astype(np.float32)
    seam = _seam(truth, look, clear)
    kept = _kept(truth, look)
    if look.plain.sum() < _FEW:
        return _Photograph(seam * kept, _no_checkerboard(truth, look, truth.hole))
    colour = _colour_agreement(truth, look)
    grain = _grain_agreement(truth, look)
    structure = _no_checkerboard(truth, look, look.plain) * _no_streaks(truth, look) * _no_void(truth, look)
    return _Photograph(seam * kept * colour * grain, structure)


def _seam(truth: _Truth, look: _Look, clear: np.ndarray) -> float:
    step = _border_step(look.picture, truth.border, clear)
    if not len(step):
        return 1.0
    excess = np.linalg.norm(step, axis=-1) - np.linalg.norm(truth.border_step, axis=-1)
    weight = np.minimum(clear.reshape(-1)[truth.border[0]], clear.reshape(-1)[truth.border[1]])
    return _bell(float((np.maximum(excess, 0) * weight).sum() / (weight.sum() + 1e-6)), 0.025, 0.14)


def _kept(truth: _Truth, look: _Look) -> float:
    residual = _smooth(look.picture - truth.background, 1.5)
    return _bell(float(np.sqrt(_mean(residual**2, truth.kept).mean())), 0.014, 0.05)


def _colour_agreement(truth: _Truth, look: _Look) -> float:
    """The hole's mean colour lies between that of its surroundings and that of the true photograph."""
    seen, true = _mean(look.picture, look.plain), _mean(truth.background, look.plain)
    return _bell(_distance_to_way(seen, true, _mean(look.picture, truth.ring)), 0.06, 0.22)


def _grain_agreement(truth: _Truth, look: _Look) -> float:
    """The hole's grain lies between that of its surroundings and that of the true photograph."""
    inside, around = (float(_mean(look.band[..., 0], where)) for where in (look.plain, truth.ring))
    true_inside, true_around = (float(_mean(truth.band[..., 0], where)) for where in (look.plain, truth.ring))
    floor = 0.006**2
    noise = max(0.0, around - true_around)  # noise of the whole picture is a matter of aesthetics
    blur = min(1.0, (around + floor) / (true_around + floor))  # and so is its softness
    expected = true_inside * blur + noise
    low, high = min(expected, around) + floor, max(expected, around) + floor
    inside += floor
    off = max(np.log(low / inside), np.log(inside / high), 0.0)
    return _bell(float(off), 0.35, 1.6)


def _no_checkerboard(truth: _Truth, look: _Look, where: np.ndarray) -> float:
    amplitude = _alternation(look.bare)[where].mean() - _alternation(truth.background)[where].mean()
    return _bell(float(amplitude), 0.008, 0.045)


def _alternation(picture: np.ndarray) -> np.ndarray:
    """Local amplitude of a pattern that changes sign from pixel to pixel."""
    luma = picture @ _LUMA
    luma = luma - _smooth(luma, 1.0)
    return np.abs(_smooth(luma * _CHECKERS, 1.5))


_CHECKERS = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 2 == 0, 1.0, -1.0).astype(np.float32)


def _direction(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The prevailing direction of the fine luma: (cos 2a, sin 2a) times its strength, 0 (none) to 1 (parallel)."""
    gy, gx = np.gradient(_smooth(picture @ _LUMA, 0.6))
    gy, gx = gy[where], gx[where]
    xx, yy, xy = float(gx @ gx), float(gy @ gy), float(gx @ gy)
    return np.array([xx - yy, 2 * xy]) / (xx + yy + 2e-4 * len(gx))


def _no_streaks(truth: _Truth, look: _Look) -> float:
    """The direction of the hole's forms lies between none, that of its surroundings and that of the true photograph."""
    seen = _direction(look.bare, look.plain)
    usual = [np.zeros(2), _direction(truth.background, look.plain), truth.ring_direction]
    return _bell(min(_distance_to_way(seen, usual[i], usual[j]) for i, j in ((0, 1), (0, 2), (1, 2))), 0.14, 0.32)


def _distance_to_way(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Distance of a point from the straight way between two others."""
    way = end - start
    share = np.clip((point - start) @ way / max(float(way @ way), 1e-6), 0, 1)
    return float(np.linalg.norm(point - start - share * way))


def _no_void(truth: _Truth, look: _Look) -> float:
    """Where photograph is all around, a hole without any forms is not one."""
    coarse_seen, coarse_true = _coarse(look.bare), _coarse(truth.background)
    expected = min(float(_mean(coarse_true, look.plain)), float(_mean(coarse_true, truth.ring)))
    floor = 0.008**2
    ratio = (float(_mean(coarse_seen, look.plain)) + floor) / (expected + floor)
    return 0.2 + 0.8 * _ramp(np.log(ratio), np.log(0.05), np.log(0.3))


def _coarse(picture: np.ndarray) -> np.ndarray:
    gy, gx = np.gradient(_smooth(picture @ _LUMA, 1.5))
    return gx * gx + gy * gy


# ---------------------------------------------------------------- the whole picture


def _aesthetics(truth: _Truth, picture: np.ndarray, look: _Look) -> float:
    return _tone(truth, picture, look) * _cleanness(truth, picture, look) * _evenness(look)


def _tone(truth: _Truth, picture: np.ndarray, look: _Look) -> float:
    """Exposure, contrast, cast and saturation of the kept part against the photograph; the hole's, more leniently."""
    mean, spread = _moments(_opponent(picture), truth.kept)
    true_mean, true_spread = _moments(truth.opponent, truth.kept)
    drift = mean - true_mean
    contrast = np.log((spread[0] + 0.02) / (true_spread[0] + 0.02))
    strength, true_strength = (
        np.sqrt(((m**2 + s**2)[1:]).mean()) for m, s in ((mean, spread), (true_mean, true_spread))
    )
    saturation = np.log((strength + 0.03) / (true_strength + 0.03))
    value = _bell(abs(float(drift[0])), 0.03, 0.2) * _bell(abs(float(contrast)), 0.12, 0.75)
    value *= _bell(float(np.linalg.norm(drift[1:])), 0.03, 0.22) * _bell(abs(float(saturation)), 0.12, 0.7)
    if look.plain.sum() >= _FEW:
        inside, expected = (_mean(planes, look.plain) for planes in (_opponent(look.picture), truth.opponent))
        around = _mean(_opponent(look.picture), truth.ring)
        off = np.minimum(np.abs(inside - expected), np.abs(inside - around))
        value *= _bell(float(off[0]), 0.26, 0.25) * _bell(float(np.linalg.norm(off[1:])), 0.26, 0.3)
    return value


def _cleanness(truth: _Truth, picture: np.ndarray, look: _Look) -> float:
    """No noise beyond what the photograph has, in luma or chroma, in the hole or around it."""
    drawn = np.zeros(truth.hole.shape, bool)  # not by the ink: to the eye of this scorer, colour noise is ink
    if look.form.extent is not None:
        drawn = ndimage.maximum_filter(look.form.extent, 5 if truth.scene.spec.word else 9) > 0.05
    free = ndimage.binary_erosion(truth.hole, border_value=1) & ~drawn
    seen = _band(_painted_over(picture, drawn)) ** 2
    usual_around = _mean(truth.band, truth.ring)
    excess = np.zeros(3, np.float32)
    for where in (free, truth.kept):
        if where.sum() >= _FEW:
            usual = np.maximum(_mean(truth.band, where), usual_around)
            excess = np.maximum(excess, np.sqrt(np.maximum(_mean(seen, where) - usual, 0)))
    return _bell(float(excess[0]), 0.012, 0.06) * _bell(float(np.linalg.norm(excess[1:])), 0.02, 0.1)


def _evenness(look: _Look) -> float:
    """Paint is even; blotches on it are ugly."""
    weight = look.form.interior
    total = float(weight.sum())
    if total < _FEW:
        return 1.0
    rough = float(np.sqrt((weight[..., None] * _band(look.picture) ** 2).sum() / total))
    return _bell(rough, 0.08, 0.2)


# ---------------------------------------------------------------- removal


def _removal_quality(truth: _Truth, picture: np.ndarray, look: _Look, photograph: _Photograph) -> float:
    passes = photograph.consistency * photograph.structure
    return _gone(truth, look) * passes * _cleanness(truth, picture, look) * _tone(truth, picture, look)


def _gone(truth: _Truth, look: _Look) -> float:
    """How much of the object's colourfulness is left in the hole, as a share of the object's own."""
    table, margin = truth.distance_table, 0.06
    left = np.maximum(table[_bins(chroma(look.picture))] - margin, 0)[truth.hole].sum()
    native = np.maximum(table[_bins(chroma(truth.background))] - margin, 0)[truth.hole].sum()
    object_own = max(_named_distance(truth) - margin, 0.1) * max(float(truth.alpha.sum()), 1.0)
    return _bell(float((left - native) / object_own), 0.02, 0.45)
