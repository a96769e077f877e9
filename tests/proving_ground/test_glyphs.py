"""Defects of letters and strokes: graded, inside the hole, and apart from those that data are made of."""

import hashlib

import numpy as np
import pytest

from onereward_jax.proving_ground import ProvingGround, defects, score
from onereward_jax.proving_ground.glyphs import GLYPHS
from onereward_jax.proving_ground.synthetic_pairs import synthetic_pair

SCENES = 6


@pytest.fixture(scope="module")
def scenes():
    ground = ProvingGround("train", 64, 0)
    return [ground.scene(index, "text_rendering") for index in range(SCENES)]


def changed(scene, kind, strength, seed=0):
    image = defects.apply(scene, scene.target, kind, strength, np.random.default_rng(seed), GLYPHS)
    return np.abs(image.astype(float) - scene.target)


@pytest.mark.parametrize("kind", GLYPHS)
def test_a_stronger_defect_changes_more_of_the_word_and_nothing_else(scenes, kind):
    for seed, scene in enumerate(scenes):
        weak, strong = (changed(scene, kind, strength, seed) for strength in (0.3, 1.0))
        assert 0 < weak.mean() < strong.mean()
        assert strong[scene.sample.mask == 0].max() == 0
        assert not changed(scene, kind, 0.0).any()


@pytest.mark.parametrize("kind", GLYPHS)
def test_the_ground_truth_sees_it(scenes, kind):
    """In the dimension that it lowers, on average."""
    dimension = GLYPHS[kind].dimension
    lost = []
    for seed, scene in enumerate(scenes):
        worse = defects.apply(scene, scene.target, kind, 1.0, np.random.default_rng(seed), GLYPHS)
        lost.append(score(scene, scene.target)[dimension] - score(scene, worse)[dimension])
    assert np.mean(lost) > 0.1, lost


def test_pairs_of_glyphs(scenes):
    dimensions = set()
    for seed in range(4 * SCENES):
        first, second, labels = synthetic_pair(scenes[seed % SCENES], np.random.default_rng(seed), glyphs=True)
        assert first.shape == second.shape
        assert not np.array_equal(first, second)
        dimensions |= set(labels)
    assert {"text_alignment", "structure"} <= dimensions


def test_other_pairs_are_what_they_were(scenes):
    """Preferences and judges that were made by an earlier release can be made again."""
    digest = hashlib.sha256()
    for seed, scene in enumerate(scenes):
        first, second, labels = synthetic_pair(scene, np.random.default_rng(seed))
        digest.update(first.tobytes() + second.tobytes() + repr(labels).encode())
    assert digest.hexdigest()[:16] == "d367a3bd157e4de7"
    assert not GLYPHS.keys() & defects.KINDS.keys()
