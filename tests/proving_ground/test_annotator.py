import numpy as np
import pytest

from onereward_jax.errors import UserError
from onereward_jax.proving_ground import ProvingGround, annotate, annotate_scores, ceiling, defects

SCORES = [
    {"structure": 0.9, "aesthetics": 0.1},
    {"structure": 0.2, "aesthetics": 0.5},
    {"structure": 0.5, "aesthetics": 0.52},
    {"structure": 0.4, "aesthetics": 0.7},
]


def test_without_noise_it_names_the_best_and_the_worst_of_each_dimension():
    preferences = annotate_scores(SCORES, np.random.default_rng(0), noise=0.0)
    assert [(p.dimension, p.winner, p.loser) for p in preferences] == [("structure", 0, 1), ("aesthetics", 3, 0)]


def test_no_difference_is_dropped():
    alike = [{"structure": 0.50}, {"structure": 0.54}]
    assert annotate_scores(alike, np.random.default_rng(0), noise=0.0, margin=0.05) == []
    assert len(annotate_scores(alike, np.random.default_rng(0), noise=0.0, margin=0.03)) == 1
    with pytest.raises(UserError):
        annotate_scores(alike[:1], np.random.default_rng(0))


def test_the_ceiling_falls_with_noise_and_is_what_repeated_annotation_shows():
    generator = np.random.default_rng(0)
    assert ceiling([SCORES], generator, noise=0.0) == {"structure": 1.0, "aesthetics": 1.0}
    levels = [ceiling([SCORES], np.random.default_rng(1), noise=n, repeats=600)["structure"] for n in (0.1, 0.4, 3.0)]
    assert levels[0] > 0.99
    assert levels[0] > levels[1] > levels[2]
    assert levels[2] == pytest.approx(0.5, abs=0.1)
    per_dimension = ceiling([SCORES], generator, noise={"structure": 0.0, "aesthetics": 3.0}, repeats=300)
    assert per_dimension["structure"] == 1.0
    assert per_dimension["aesthetics"] < 0.75


def test_it_annotates_images_and_a_pair_may_win_and_lose():
    scene = ProvingGround("test").scene(0, "image_fill")
    wrong_colour = defects.apply(scene, scene.target, "wrong_colour", 1.0, np.random.default_rng(0))
    seam = defects.apply(scene, scene.target, "seam", 1.0, np.random.default_rng(0))
    found = annotate(scene, [wrong_colour, seam], np.random.default_rng(0), noise=0.02)
    verdicts = {p.dimension: p.winner for p in found}
    assert verdicts["text_alignment"] == 1
    assert verdicts["consistency"] == 0
