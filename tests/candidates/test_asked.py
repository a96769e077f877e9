"""A source image is known by its file's bytes, whatever the file is called and wherever it lies."""

import hashlib

import numpy as np
import pytest

from onereward_jax.candidates.asked import own_requests, scenes
from onereward_jax.data.preferences.record import SOURCE
from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import read_requests
from onereward_jax.data.requests.write import write_requests
from onereward_jax.images.grid import png
from onereward_jax.proving_ground import ProvingGround

PHOTO = png(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def folder(path, **images):
    path.mkdir()
    for name, content in images.items():
        (path / f"{name}.png").write_bytes(content)
    return path


def sources(path):
    """What a collection of these requests calls their images."""
    requests = read_requests(path, Defaults("a hat"))
    asked = own_requests(requests, str(path), {"data.resolution": 32, "data.bucket_step": 8})
    return [item.notes[SOURCE] for item in asked.items]


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_a_photograph_in_two_collections_is_one_source(form, tmp_path):
    """Under other names, beside others, and written by `masks` or `select` in one of them."""
    if form == "tfds":
        pytest.importorskip("tensorflow_datasets")
    others = [png(np.full((20, 30, 3), value, np.uint8)) for value in (10, 20)]
    first = folder(tmp_path / "first", b=PHOTO)
    second = folder(tmp_path / "second", a=others[0], photo=PHOTO, twin=PHOTO, z=others[1])
    write_requests(tmp_path / "written", read_requests(second), form)
    photo = hashlib.sha256(PHOTO).hexdigest()
    assert sources(first) == [photo]
    named = sources(second)
    assert named[1:3] == [photo, photo]
    assert len({*named}) == 3
    assert sources(tmp_path / "written") == named


def test_masks_of_one_image_share_their_source(tmp_path):
    folder(tmp_path / "images", a=PHOTO)
    lines = [f'{{"id": "{n}", "image": "a.png", "extend": "left={8 * n}"}}\n' for n in (1, 2)]
    (tmp_path / "images" / "requests.jsonl").write_text("".join(lines))
    assert sources(tmp_path / "images") == [hashlib.sha256(PHOTO).hexdigest()] * 2


def test_a_scene_is_one_source_at_every_resolution():
    of = lambda resolution, task: scenes(ProvingGround("test", resolution), [task], 3, 1).items[0].notes
    assert of(64, "image_fill") == of(32, "image_fill")
    assert of(64, "image_fill")[SOURCE] != of(64, "object_removal")[SOURCE]
    assert (of(64, "image_fill")["scene"], of(64, "image_fill")["split"]) == (3, "test")
