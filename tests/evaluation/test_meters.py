"""What is measured without a judge."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.evaluation.meters import words
from onereward_jax.evaluation.meters.all_meters import chosen_meters
from onereward_jax.evaluation.meters.meter import compared
from onereward_jax.evaluation.meters.outside import OUTSIDE, seam
from onereward_jax.evaluation.meters.removal import REMOVAL, residue

SIDE = 48


def smooth(seed: int) -> np.ndarray:
    """A smooth image with some structure."""
    draw = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    waves = [np.sin(x / draw.uniform(4, 9) + draw.uniform(0, 6)) + np.cos(y / draw.uniform(4, 9)) for _ in range(3)]
    return np.clip(128 + 40 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


def hole() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[14:34, 10:38] = 1
    return mask


def test_fidelity_outside_the_mask():
    image, mask = smooth(0), hole()
    sample = Sample(image, mask, "a cat", "image_fill", "1", target=image)
    inside = np.where(mask[..., None] == 1, 255 - image, image)
    everywhere = np.clip(image.astype(int) + np.random.default_rng(0).integers(-9, 10, image.shape), 0, 255)
    of_inside, of_everywhere = OUTSIDE.measure([sample] * 2, [inside, everywhere.astype(np.uint8)])
    assert of_inside["psnr_outside"] == 100
    assert of_inside["ssim_outside"] == 1 > of_everywhere["ssim_outside"]
    assert 30 < of_everywhere["psnr_outside"] < 35
    assert of_inside["psnr_target"] < of_everywhere["psnr_target"]
    assert of_inside["psnr_target_inside"] < of_inside["psnr_target"]
    whole = Sample(image, np.ones_like(mask), "a cat", "image_fill", "2")
    assert OUTSIDE.measure([whole], [inside]) == [{"seam": 0.0}]


def test_a_seam_shows_as_a_step():
    image, mask = smooth(0), hole()
    brighter = np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8)
    assert abs(seam(image, mask, image)) < 0.01
    assert seam(brighter, mask, image) == pytest.approx(20 / 255, abs=0.025)


@pytest.mark.parametrize("known", [True, False])
def test_residue_is_what_is_left_of_the_object(known):
    clean, mask = smooth(1), hole()
    source = clean.copy()
    source[18:28, 16:30] = (240, 20, 20)
    target = clean if known else None
    half = ((clean.astype(int) + source) // 2).astype(np.uint8)
    nothing, some, everything = (residue(source, image, mask, target) for image in (clean, half, source))
    assert everything == pytest.approx(1)
    assert nothing < 0.3
    assert nothing < some <= 1
    if known:
        assert nothing == 0
        assert some == pytest.approx(0.5, abs=0.01)


def test_two_policies_are_compared_request_by_request():
    base = {"object_removal": [{"residue": x} for x in (0.5, 0.6, 0.7)]}
    policy = {"object_removal": [{"residue": x} for x in (0.1, 0.2, 0.3)]}
    cell = compared(REMOVAL, base, policy)["object_removal"]["residue"]
    assert cell["difference"] == pytest.approx(-0.4)
    assert cell["ci95"] == pytest.approx([-0.4, -0.4])
    assert (cell["n"], cell["higher_is_better"]) == (3, False)
    assert compared(REMOVAL, {}, {}) == {}


def test_words():
    assert words.asked_text('a sign that says "Fresh Bread" in red') == "Fresh Bread"
    assert words.asked_text("OPEN") == "OPEN"
    assert words.accuracies("Fresh Bread", "FRESH  bread!") == {"words": 1.0, "characters": 1.0}
    assert words.accuracies("Fresh Bread", "fresh bred") == {"words": 0.5, "characters": 0.9}
    assert words.accuracies("Fresh Bread", "") == {"words": 0.0, "characters": 0.0}
    assert words.edit_distance("kitten", "sitting") == 3


def test_a_reader_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(words, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'onereward-jax\[ocr\]', or leave --ocr out"):
        chosen_meters(ocr=True)


def test_words_are_read():
    pytest.importorskip("rapidocr")
    import matplotlib

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", 60)
    sign = Image.new("RGB", (512, 200), (220, 210, 180))
    ImageDraw.Draw(sign).text((30, 60), "OPEN DAILY", font=font, fill=(20, 20, 60))
    image = np.asarray(sign)
    sample = Sample(image, np.ones(image.shape[:2], np.uint8), 'a sign that says "open daily"', "text_rendering", "1")
    assert words.words().measure([sample] * 2, [image, image[:, ::-1].copy()])[0] == {"words": 1.0, "characters": 1.0}
