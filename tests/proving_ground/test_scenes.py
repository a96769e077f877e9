import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from onereward_jax import tasks
from onereward_jax.data import masks
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.proving_ground import ProvingGround, all_prompts, defects, drawing, photos


@pytest.fixture(scope="module")
def ground() -> ProvingGround:
    return ProvingGround("train")


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("resolution", [48, 64, 128])
def test_a_scene_answers_its_request_inside_the_mask_only(task, resolution):
    ground = ProvingGround("test", resolution)
    for index in range(8):
        scene = ground.scene(index, task)
        sample = scene.sample
        assert sample.image.shape == scene.target.shape == (resolution, resolution, 3)
        assert sample.image.dtype == scene.target.dtype == sample.mask.dtype == np.uint8
        assert sample.task == task
        assert 0.03 < sample.mask.mean() < 0.85
        kept = sample.mask == 0
        np.testing.assert_array_equal(sample.image[kept], scene.target[kept])
        # What is drawn lies under the mask.
        assert scene.spec.alpha[kept].max() == 0


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_scene_is_a_function_of_seed_split_task_and_index(task, ground):
    again = ProvingGround("train").scene(5, task)
    scene = ground.scene(5, task)
    np.testing.assert_array_equal(scene.sample.image, again.sample.image)
    np.testing.assert_array_equal(scene.target, again.target)
    assert scene.sample.prompt == again.sample.prompt
    others = (
        ground.scene(6, task),
        ProvingGround("train", seed=1).scene(5, task),
        ProvingGround("test").scene(5, task),
    )
    assert len({scene.sample.id, *(other.sample.id for other in others)}) == 4
    for other in others:
        assert (other.target != scene.target).any()


def test_the_splits_share_no_photograph():
    train, test = ({photo.path for photo in ProvingGround(split).photos} for split in photos.SPLITS)
    assert not train & test
    assert len(test) >= 3
    assert all(photo.credit for photo in photos.bundled())
    seen = {ProvingGround("test").scene(i, "object_removal").spec.photo for i in range(40)}
    assert seen == {photo.name for photo in ProvingGround("test").photos}


def test_prompts_are_the_corpus(ground):
    corpus = set(all_prompts())
    assert tasks.NEGATIVE_PROMPT in corpus
    for task in tasks.TASKS:
        for index in range(60):
            assert ground.scene(index, task).sample.prompt in corpus


def test_the_object_sits_in_the_middle_of_the_masks_bounding_box(ground):
    for index in range(30):
        scene = ground.scene(index, "image_fill")
        left, top, right, bottom = masks.bounding_box(scene.sample.mask)
        assert abs(scene.spec.centre[0] - (left + right) / 2) <= 1
        assert abs(scene.spec.centre[1] - (top + bottom) / 2) <= 1


def test_the_mask_does_not_tell_the_size(ground):
    areas = {"small": [], "large": []}
    for index in range(120):
        scene = ground.scene(index, "image_fill")
        areas[scene.spec.size].append(scene.sample.mask.sum())
    small, large = np.mean(areas["small"]), np.mean(areas["large"])
    assert abs(small - large) < 0.08 * large


def test_extend_is_prompted_half_the_time_and_the_object_is_in_the_named_border(ground):
    prompted = [scene for scene in (ground.scene(i, "image_extend") for i in range(120)) if scene.spec.shape]
    assert 45 < len(prompted) < 75
    for scene in prompted:
        x, y = scene.spec.centre
        position = {"left": x, "right": 64 - x, "top": y, "bottom": 64 - y}[scene.spec.side]
        assert position < 13
        assert scene.sample.dimensions == tasks.dimensions_of("image_extend")
    unprompted = next(s for s in (ground.scene(i, "image_extend") for i in range(20)) if not s.spec.shape)
    assert unprompted.sample.prompt == tasks.EXTEND_PROMPT
    assert "text_alignment" not in unprompted.sample.dimensions


def test_removal_shows_the_object_and_wants_the_photograph(ground):
    for index in range(10):
        scene = ground.scene(index, "object_removal")
        np.testing.assert_array_equal(scene.target, scene.spec.background)
        drawn = scene.spec.alpha > 0.9
        difference = np.abs(scene.sample.image.astype(int) - scene.target)[drawn].max(axis=-1)
        assert difference.mean() > 50


def test_flaws_come_as_often_as_asked_and_leave_the_request_alone(ground):
    imperfect = ProvingGround("train", target_flaws=0.5)
    for task in tasks.TASKS:
        clean = [ground.scene(i, task) for i in range(60)]
        flawed = [imperfect.scene(i, task) for i in range(60)]
        assert 15 <= sum(bool(scene.flaw) for scene in flawed) <= 45
        for before, after in zip(clean, flawed, strict=True):
            np.testing.assert_array_equal(before.sample.image, after.sample.image)
            assert before.sample.prompt == after.sample.prompt
            if after.flaw:
                assert after.flaw in defects.KINDS
            else:
                np.testing.assert_array_equal(before.target, after.target)


def test_words_are_of_the_alphabet_and_letters_differ():
    assert all(2 <= len(word) <= 4 and set(word) <= set(drawing.ALPHABET) for word in drawing.WORDS)
    letters = [drawing.letter_alpha(letter, 12.0, (12, 12), 24, 24) for letter in drawing.ALPHABET]
    for i, one in enumerate(letters):
        for other in letters[:i]:
            assert 2 * (one * other).sum() / ((one**2).sum() + (other**2).sum()) < 0.96


def test_a_users_folder_is_split_by_photograph(tmp_path):
    for index in range(5):
        noise = np.random.default_rng(index).integers(0, 256, (90, 70, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    splits = [{p.name for p in ProvingGround(split, photos=tmp_path).photos} for split in photos.SPLITS]
    assert len(splits[0]) == 4
    assert splits[0] | splits[1] == {"0", "1", "2", "3", "4"}
    scene = ProvingGround("train", 128, photos=tmp_path).scene(0, "image_fill")  # larger than the photographs
    assert scene.target.shape == (128, 128, 3)


def test_photographs_keep_the_numbers_they_are_stored_with():
    """One of those that come with scikit-image has a profile of Adobe RGB."""
    for photo in photos.bundled():
        with Image.open(photo.path) as opened:
            stored = opened.convert("RGB")
        shorter = min(stored.size)
        level = photos.pyramid(photo, shorter)[0][0]  # at its own size
        np.testing.assert_array_equal(level, np.asarray(stored), err_msg=photo.name)


def test_a_users_photograph_that_is_none_is_one_sentence(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    os.mkfifo(tmp_path / "c.png")
    for photo in photos.find(tmp_path):
        with pytest.raises(UserError, match=rf"{photo.name}\.png is (not a readable image|a pipe or a device)"):
            photos.pyramid(photo, 64)


def test_wrong_arguments_are_refused(tmp_path, ground):
    with pytest.raises(UserError, match="'val'"):
        ProvingGround("val")
    with pytest.raises(UserError):
        ProvingGround(resolution=16)
    with pytest.raises(UserError):
        ground.scene(0, "inpaint")
    with pytest.raises(FileNotFoundError):
        ProvingGround(photos=tmp_path)
    sample = ground.scene(0, "image_fill").sample
    with pytest.raises(UserError, match="uint8"):
        dataclasses.replace(sample, image=sample.image.astype(np.float32))
    with pytest.raises(UserError):
        Sample(sample.image, sample.mask[:10], "", "image_fill", "x")
