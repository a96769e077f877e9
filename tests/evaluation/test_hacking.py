"""Every meter, fed a known hack and a known honest gain: at the limits as they are, one is beyond and one is not."""

import numpy as np
import pytest
from scipy import ndimage

from onereward_jax.config.schema import Alarms
from onereward_jax.evaluation.meters import hacking

SIDE, PERIOD = 64, 8
LIMITS = Alarms()


def photo(seed: int) -> np.ndarray:
    """A sharp image of blobs and edges, uint8 (SIDE, SIDE, 3)."""
    draw = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(draw.normal(size=(SIDE, SIDE, 3)), (3, 3, 0)) * 500
    image = 130 + field + 40 * (ndimage.gaussian_filter(draw.normal(size=(SIDE, SIDE)), 5) > 0)[..., None]
    return np.clip(image + draw.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(float), (1.5, 1.5, 0)).astype(np.uint8)


def hole() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10:50, 12:56] = 1
    return mask


def with_pattern(image: np.ndarray) -> np.ndarray:
    """A faint texture that repeats with the judge's patches."""
    wave = 12 * np.cos(2 * np.pi * np.arange(SIDE) / PERIOD)
    return np.clip(image + wave[:, None, None] + wave[None, :, None], 0, 255).astype(np.uint8)


def in_patches(image: np.ndarray) -> np.ndarray:
    """Every patch a little brighter or darker than its neighbours: nothing repeats but the borders."""
    cells = SIDE // PERIOD
    levels = np.random.default_rng(0).choice([-15, 15], (cells, cells)).repeat(PERIOD, 0).repeat(PERIOD, 1)
    return np.clip(image + levels[..., None], 0, 255).astype(np.uint8)


BASE, HONEST = [blurred(photo(seed)) for seed in range(6)], [photo(seed) for seed in range(6)]  # it blurs no more


def energy(images: list[np.ndarray]) -> float:
    found = [hacking.grid_energy(image, hole(), PERIOD) for image in images]
    assert all(of is not None for of in found)
    return float(np.mean(np.array(found, float)))


@pytest.mark.parametrize("hack", [with_pattern, in_patches])
def test_energy_at_a_period(hack):
    base = energy(BASE)
    assert energy([hack(image) for image in HONEST]) - base > LIMITS.judge_grid
    assert energy(HONEST) - base < LIMITS.judge_grid / 2
    # Moved by any number of pixels it is as much; a texture of another period is none of it.
    assert energy([np.roll(hack(image), (3, 5), (0, 1)) for image in HONEST]) - base > LIMITS.judge_grid
    assert abs(np.mean([hacking.grid_energy(hack(image), hole(), 11) for image in HONEST])) < LIMITS.judge_grid


def test_energy_needs_two_periods_and_something_to_vary():
    assert hacking.grid_energy(photo(0), hole(), 30) is None
    assert hacking.grid_energy(np.full((SIDE, SIDE, 3), 9, np.uint8), hole(), PERIOD) is None
    assert hacking.grid_energy(photo(0), 0 * hole(), PERIOD) is None
    assert hacking.grid_energy(with_pattern(photo(0)), hole(), 8.2) is not None


STRIPES = np.where(np.arange(SIDE) % 2, 1, -1)[:, None]


def pixelwise(images: np.ndarray) -> np.ndarray:
    """A judge that likes what no person sees: stripes of single pixels."""
    return (images.astype(float) * STRIPES).mean(axis=(1, 2, 3))


def clear(images: np.ndarray) -> np.ndarray:
    """A judge that likes contrast in what is larger than a few pixels."""
    return np.array([ndimage.gaussian_filter(image.astype(float), (2, 2, 0)).std() for image in images])


def p_better(likes, policy: np.ndarray, base: np.ndarray, scale: float) -> np.ndarray:
    return 1 / (1 + np.exp(-scale * (likes(policy) - likes(base))))


@pytest.mark.parametrize("how", hacking.REENCODINGS)
def test_a_win_that_a_reencoding_takes_away(how):
    base, honest = np.stack(BASE), np.stack([np.clip(1.4 * image.astype(float) - 50, 0, 255) for image in BASE])
    hacked, honest = np.clip(base + 2 * STRIPES, 0, 255).astype(np.uint8), honest.astype(np.uint8)
    shift = 3  # an odd one moves the stripes onto each other

    def lost(likes, policy, scale):
        before = p_better(likes, policy, base, scale)
        assert before.mean() > 0.7
        again = (hacking.reencoded(images, how, shift) for images in (policy, base))
        return hacking.lost(before, p_better(likes, *again, scale))

    if how != "noise":  # both images have the same, so that a judge which adds up loses nothing to it
        assert lost(pixelwise, hacked, 1.0) > LIMITS[f"lost_to_{how}"]
    assert lost(clear, honest, 0.5) < LIMITS[f"lost_to_{how}"] / 2


def test_noise_takes_a_win_that_rests_on_single_values():
    exact = lambda images: (images == 77).mean(axis=(1, 2, 3))
    base = np.stack(BASE)
    hacked = base.copy()
    hacked[:, 20:40, 20:40] = 77
    before = p_better(exact, hacked, base, 30)
    again = (hacking.reencoded(images, "noise", 0) for images in (hacked, base))
    assert hacking.lost(before, p_better(exact, *again, 30)) > LIMITS.lost_to_noise


def test_the_judges_answers():
    draw = np.random.default_rng(0)
    honest, surrendered = np.clip(draw.normal(0.65, 0.15, 64), 0, 1), np.clip(draw.normal(0.97, 0.01, 64), 0, 1)
    assert hacking.sure(honest) < LIMITS.sure / 2 < LIMITS.sure < hacking.sure(surrendered)
    assert hacking.deviation(surrendered) < LIMITS.deviation < hacking.deviation(honest) / 2
    other_honest, other_hacked = np.clip(honest - 0.03, 0, 1), draw.normal(0.48, 0.1, 64)
    assert hacking.judge_gap(honest, other_honest) < LIMITS.judge_gap / 2
    assert hacking.judge_gap(surrendered, other_hacked) > LIMITS.judge_gap
    agree = np.clip(honest + draw.normal(0, 0.05, (4, 64)), 0, 1)
    differ = np.stack([surrendered, surrendered, other_hacked, other_hacked])
    assert hacking.disagreement(agree) < LIMITS.disagreement / 2
    assert hacking.disagreement(differ) > LIMITS.disagreement


def test_saturation_and_contrast():
    mask = hole()
    grey = [image.mean(axis=-1, keepdims=True) for image in HONEST]
    gaudy = [np.clip(g + 2.5 * (image - g), 0, 255).astype(np.uint8) for g, image in zip(grey, HONEST, strict=True)]
    harsh = [np.clip(128 + 2.2 * (image.astype(float) - 128), 0, 255).astype(np.uint8) for image in HONEST]
    of = lambda measure, images: hacking.relative(*([measure(x, mask) for x in part] for part in (images, BASE)))
    assert of(hacking.saturation, gaudy) > LIMITS.saturation > 2 * of(hacking.saturation, HONEST)
    assert of(hacking.contrast, harsh) > LIMITS.contrast > 2 * of(hacking.contrast, HONEST)
    faded = [(128 + 0.4 * (image.astype(float) - 128)).astype(np.uint8) for image in HONEST]
    assert of(hacking.contrast, faded) > LIMITS.contrast


def test_drift_outside_the_mask():
    mask, source = hole(), photo(0)
    inside = np.where(mask[..., None] == 1, 255 - source, source)
    everywhere = np.clip(inside.astype(int) + 12, 0, 255).astype(np.uint8)
    assert hacking.drift(source, inside, mask) == 0
    assert hacking.drift(source, everywhere, mask) > LIMITS.drift_gain
    assert hacking.drift(source, everywhere, 0 * mask + 1) == 0


def test_diversity_over_noises():
    mask, draw = hole(), np.random.default_rng(0)
    base = [np.stack([photo(10 * row + seed) for seed in range(3)]) for row in range(3)]
    collapsed = [np.clip(of[:1] + draw.normal(0, 3, of.shape), 0, 255).astype(np.uint8) for of in base]
    honest = [np.stack([blurred(image) for image in of]) for of in base]
    distances = lambda answers: [hacking.distance(of, mask) for of in answers]
    assert hacking.diversity(distances(collapsed), distances(base)) < LIMITS.diversity
    assert hacking.diversity(distances(honest), distances(base)) > 1.5 * LIMITS.diversity
    assert hacking.diversity([0.1], [0.0]) is None
