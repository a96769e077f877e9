"""`onereward select`: from a folder of images to requests, resumable, without near-duplicates."""

import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from onereward_jax.candidates import embeddings
from onereward_jax.candidates.embeddings import KeptEmbeddings
from onereward_jax.cli import main as cli
from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import read_requests
from onereward_jax.images.reading import read_image
from onereward_jax.models.clip import CLIP
from onereward_jax.weights.clip_encoder import ClipEncoder
from onereward_jax.weights.load import load_component
from tests.support import tiny_clip

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 40, 230), (230, 220, 40))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture
def folder(tmp_path):
    """Images around four colours, many of the first, none with a prompt."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(24):
        colour = COLOURS[max(0, number - 20)]
        pixels = np.array(colour) + draw.integers(-25, 26, (8, 8, 3))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.resize((30 + number, 40), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
    return folder


def select(folder, clip, out, *more):
    arguments = ["--source", folder, "--clip", clip, "--out", out, "--clusters", 4, *more]
    return cli.main(["select", *map(str, arguments)])


def written(out):
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def test_an_even_draw_of_images_alone(folder, clip, tmp_path, capsys):
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    shutil.copy(folder / "03.png", folder / "z.png")
    (folder / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (900, 1)).save(folder / "long.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    assert select(folder, clip, out, "--count", 8, "--duplicates", 0.99999, "--sheet", sheet) == 0
    said = capsys.readouterr()
    assert "bad.png" in said.err
    assert "long.png" in said.err
    chosen = written(out)
    assert len(chosen) == 8
    assert {record["task"] for record in chosen} == {"image_extend"}
    assert {"bad.png", "long.png", "z.png"}.isdisjoint(record["notes"]["file"] for record in chosen)
    first = Counter(record["notes"]["cluster"] for record in chosen[:4])
    assert set(first.values()) == {1}
    assert len(read_requests(out)) == 8
    assert read_image(sheet).shape[0] > 100
    again = tmp_path / "again"
    assert select(folder, clip, again, "--count", 8, "--duplicates", 0.99999) == 0
    assert written(again) == chosen
    assert select(folder, clip, again, "--duplicates", 1, "--keep", tmp_path / "out.embeddings") == 0
    assert len(written(again)) == 26  # the copy, too


def test_requests_of_one_image_are_chosen_together(folder, clip, tmp_path):
    lines = [{"file_name": "00.png", "text": text} for text in ("one", "two")] + [
        {"file_name": "22.png", "text": "three"}
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert select(folder, clip, tmp_path / "out", "--duplicates", 1) == 0
    chosen = written(tmp_path / "out")
    assert sorted(record["prompt"] for record in chosen) == ["one", "three", "two"]
    assert len({record["image"] for record in chosen}) == 2
    assert "task" not in chosen[0]


def test_a_killed_pass_resumes_where_it_was(folder, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 10)
    images = [embeddings.Image(path.name, path) for path in sorted(folder.iterdir())]
    encoder = ClipEncoder(str(clip), 4)
    expected = np.array(KeptEmbeddings(tmp_path / "whole", encoder).of(images, lambda *_: None))
    assert np.isfinite(expected).all()
    prepared = []
    prepare = encoder.prepare

    def killed(pixels):
        prepared.append(pixels.shape)
        if len(prepared) == 17:
            raise KeyboardInterrupt
        return prepare(pixels)

    encoder.prepare = killed
    with pytest.raises(KeyboardInterrupt):
        KeptEmbeddings(tmp_path / "kept", encoder).of(images, lambda *_: None)
    assert len([*(tmp_path / "kept").glob("part-*.npy")]) == 1
    prepared.clear()
    encoder.prepare = lambda pixels: prepared.append(pixels.shape) or prepare(pixels)
    found = KeptEmbeddings(tmp_path / "kept", encoder).of(images, lambda *_: None)
    assert len(prepared) == 14
    np.testing.assert_array_equal(found, expected)

    # A damaged part is made again, and so is what has changed.
    path = sorted((tmp_path / "kept").glob("part-*.npy"))[0]
    path.write_bytes(path.read_bytes()[:100])
    os.utime(folder / "00.png", ns=(1, 1))
    prepared.clear()
    np.testing.assert_array_equal(KeptEmbeddings(tmp_path / "kept", encoder).of(images, lambda *_: None), expected)
    assert 0 < len(prepared) <= 11


def test_vectors_are_those_of_the_model(clip, folder):
    encoder, (module, params) = ClipEncoder(str(clip), 4), load_component(clip, "clip")
    images = [read_image(path) for path in sorted(folder.iterdir())[:5]]
    found = encoder.images(images)
    assert found.shape == (5, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    pixels = np.stack([encoder.prepare(image) for image in images])
    assert pixels.shape == (5, tiny_clip.SIZE, tiny_clip.SIZE, 3)
    plain = np.asarray(module.apply({"params": params}, pixels, method=CLIP.image_features))
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)
    texts = encoder.texts(["a small red circle", "a small", "red"])
    np.testing.assert_allclose(encoder.texts(["red"])[0], texts[2], atol=1e-6)


CASES = ["empty", "nothing", "no model", "all bad", "other model", "foreign", "output", "inside", "NaN"]


@pytest.mark.parametrize("case", CASES)
def test_what_can_not_be_is_one_sentence(case, folder, clip, tmp_path, capsys, monkeypatch):
    out, keep = folder / "out" if case == "inside" else tmp_path / "out", tmp_path / "out.embeddings"
    if case == "NaN":
        monkeypatch.setattr(ClipEncoder, "prepared", lambda self, pixels: np.full((len(pixels), 12), np.nan))
    if case in ("empty", "all bad"):
        shutil.rmtree(folder)
        folder.mkdir()
    if case == "all bad":
        (folder / "a.png").write_bytes(b"x")
    if case == "other model":
        keep.mkdir()
        (keep / "embeddings.json").write_text('{"format": 1, "clip": "other", "dimension": 12}')
    if case == "foreign":
        keep.mkdir()
        (keep / "mine.txt").write_text("")
    if case == "output":
        out.mkdir()
        (out / "mine.txt").write_text("")
    source = tmp_path / "none" if case == "nothing" else folder
    assert select(source, tmp_path / "none" if case == "no model" else clip, out) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onereward: ")]
    assert len(said) == 1
    assert case == "output" or not out.exists()


def test_the_prompts_of_the_source_stay(folder, clip, tmp_path):
    (folder / "05.txt").write_text("a square")
    assert select(folder, clip, tmp_path / "out", "--duplicates", 1) == 0
    prompts = [item.prompt for item in read_requests(tmp_path / "out", Defaults())]
    assert sorted(prompts)[-1] == "a square"
    assert prompts.count("") == 23
