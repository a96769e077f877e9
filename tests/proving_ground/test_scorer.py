import functools

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import spearmanr

from onereward_jax import tasks
from onereward_jax.errors import UserError
from onereward_jax.proving_ground import ProvingGround, compare, defects, overall, score, scorer

SCENES = 10
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
VISIBLE = 4.0  # grey levels: where the gross defect changes less, the photograph has nothing to spoil


@functools.cache
def scenes(task: str) -> list:
    """Held-out scenes; those of extend are taken alternately with and without an object."""
    ground = ProvingGround("test")
    found = [ground.scene(index, task) for index in range(40)]
    if task == "image_extend":
        with_object = [scene for scene in found if scene.spec.shape]
        without = [scene for scene in found if not scene.spec.shape]
        return with_object[: SCENES // 2] + without[: SCENES // 2]
    return found[:SCENES]


@functools.cache
def sweep(task: str) -> dict[str, tuple[np.ndarray, dict[str, float]]]:
    """Per kind: scores (scenes, strengths) in its own dimension, and the mean fall at full strength of every one."""
    result = {}
    for kind in defects.KINDS:
        own, falls = [], []
        for number, scene in enumerate(scenes(task)):
            if kind not in defects.applicable(scene):
                continue
            images = [
                defects.apply(scene, scene.target, kind, strength, np.random.default_rng(number))
                for strength in STRENGTHS
            ]
            where = scene.sample.mask == (0 if kind == "outside" else 1)
            change = np.abs(images[-1].astype(float) - images[0])[where].mean()
            if not defects.KINDS[kind].needs and change < VISIBLE:
                continue
            scores = [score(scene, image) for image in images]
            own.append([s[defects.dimension_of(scene, kind)] for s in scores])
            falls.append({d: scores[0][d] - scores[-1][d] for d in scores[0]})
        if own:
            mean = {d: float(np.mean([f[d] for f in falls if d in f])) for f in falls for d in f}
            result[kind] = (np.array(own), mean)
    return result


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_right_answer_scores_high_in_every_dimension(task):
    for scene in scenes(task):
        values = score(scene, scene.target)
        assert tuple(values) == tasks.dimensions_of(task, scene.sample.prompt)
        assert all(0 <= value <= 1 for value in values.values())
        assert overall(values) > 0.9
    for dimension in tasks.dimensions_of(task):
        assert np.mean([score(s, s.target).get(dimension, 1.0) for s in scenes(task)]) > 0.93


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_gross_defect_lowers_its_own_dimension_and_no_other(task):
    for kind, (_, fall) in sweep(task).items():
        dimension = "removal_quality" if task == "object_removal" else defects.KINDS[kind].dimension
        assert fall[dimension] > 0.3, (kind, fall)
        for other, value in fall.items():
            if other != dimension:
                assert value < 0.2, (kind, other, fall)
    # Over the kinds of a dimension the others stay put.
    for dimension in tasks.dimensions_of(task):
        kinds = [k for k in sweep(task) if defects.KINDS[k].dimension == dimension]
        for other in tasks.dimensions_of(task):
            if other != dimension and kinds:
                assert np.mean([sweep(task)[k][1][other] for k in kinds]) < 0.1, (dimension, other)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_score_follows_the_strength_of_the_defect(task):
    """Rank correlation of strength and fall, scene by scene, averaged over the kinds of each dimension."""
    correlations: dict[str, list[float]] = {}
    for kind, (own, _) in sweep(task).items():
        dimension = "removal_quality" if task == "object_removal" else defects.KINDS[kind].dimension
        of_scenes = [-spearmanr(STRENGTHS, values).statistic if np.ptp(values) > 1e-6 else 0.0 for values in own]
        correlations.setdefault(dimension, []).append(float(np.mean(of_scenes)))
    assert set(correlations) == set(tasks.dimensions_of(task))
    for dimension, values in correlations.items():
        assert np.mean(values) >= 0.9, (dimension, values)
        assert min(values) >= 0.75, (dimension, values)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_imperfect_but_right_images_lose_little(task):
    """What a decoder does to a picture, and a drawing elsewhere in the hole, is no fault."""
    generator = np.random.default_rng(0)
    for scene in scenes(task)[:8]:
        right = overall(score(scene, scene.target))
        soft = ndimage.gaussian_filter(scene.target.astype(np.float32) / 255, (0.6, 0.6, 0))
        rough = np.clip(scene.target / 255 + generator.normal(0, 0.012, scene.target.shape), 0, 1)
        assert overall(score(scene, soft)) > 0.95 * right
        assert overall(score(scene, rough)) > 0.95 * right


@pytest.mark.parametrize("task", tasks.TASKS)
def test_fillings_that_answer_nothing_score_low(task):
    generator = np.random.default_rng(0)
    other = ProvingGround("test").scene(900, "object_removal").spec.background
    low = {"mean": [], "noise": [], "other": []}
    for scene in scenes(task):
        mask = scene.sample.mask[..., None] > 0
        grey = np.broadcast_to(scene.target[~mask[..., 0]].mean(axis=0), scene.target.shape)
        fillings = {"mean": grey, "noise": generator.integers(0, 256, scene.target.shape), "other": other}
        for name, filling in fillings.items():
            values = score(scene, np.where(mask, filling, scene.target).astype(np.uint8))
            low[name].append(min(values.values()))
    for name, values in low.items():
        assert np.mean(values) < 0.35, (name, values)


def test_removal_and_fill_want_opposite_things_of_an_object_in_the_hole():
    for fill, removal in zip(scenes("image_fill"), scenes("object_removal"), strict=True):
        assert score(fill, fill.spec.background)["text_alignment"] < 0.1
        assert score(removal, removal.sample.image)["removal_quality"] < 0.15


def test_an_object_of_another_place_in_the_hole_counts():
    for scene in scenes("image_fill")[:8]:
        moved = np.roll(scene.target, (2, -2), axis=(0, 1))
        image = np.where(scene.sample.mask[..., None] > 0, moved, scene.target)
        assert score(scene, image)["text_alignment"] > 0.85


def test_a_hole_of_alien_colour_is_not_taken_for_a_drawing():
    """A filling that is all "ink" must not escape the comparison with its surroundings."""
    for task in tasks.TASKS:
        for scene in scenes(task):
            image = np.where(scene.sample.mask[..., None] > 0, np.uint8([20, 230, 40]), scene.target)
            values = score(scene, image)
            assert min(values.get("consistency", 1), values.get("removal_quality", 1)) < 0.3


def test_other_sizes_and_number_types():
    for resolution in (48, 128):
        scene = ProvingGround("test", resolution).scene(3, "image_fill")
        as_integers = score(scene, scene.target)
        as_floats = score(scene, scene.target.astype(np.float32) / 255)
        assert overall(as_integers) > 0.9
        assert as_floats == pytest.approx(as_integers, abs=1e-4)
    with pytest.raises(UserError):
        score(scene, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UserError):
        score(scene, np.full(scene.target.shape, np.nan))


def test_the_verdict_is_antisymmetric_and_ties_within_the_margin():
    margin = scorer.TIE_MARGIN
    scene = scenes("object_removal")[0]
    assert compare(scene, scene.target, scene.sample.image) == "good"
    assert compare(scene, scene.sample.image, scene.target) == "bad"
    assert compare(scene, scene.target, scene.target) == "same"
    base = {"text_alignment": 0.5, "structure": 0.5}
    assert scorer.verdict({"text_alignment": 0.5 + 1.9 * margin, "structure": 0.5}, base) == "same"
    assert scorer.verdict({"text_alignment": 0.5 + 2.1 * margin, "structure": 0.5}, base) == "good"


def test_defects_are_graded_reproducible_and_checked():
    scene = scenes("image_fill")[0]
    change = functools.partial(defects.apply, scene, scene.target)
    for kind in defects.applicable(scene):
        np.testing.assert_array_equal(change(kind, 0.0, np.random.default_rng(0)), scene.target)
        once, again = (change(kind, 0.7, np.random.default_rng(0)) for _ in range(2))
        np.testing.assert_array_equal(once, again)
    with pytest.raises(ValueError, match="does not apply"):
        change("misspelt", 0.5, np.random.default_rng(0))
    with pytest.raises(UserError):
        change("noise", 1.5, np.random.default_rng(0))
