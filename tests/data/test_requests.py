"""A user's own requests: the forms that they lie in, bad ones, and crops."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import read_requests
from onereward_jax.data.requests.source import draw_sample, hold_out
from onereward_jax.errors import UserError
from onereward_jax.tasks import REMOVAL_PROMPT, TASKS

HOLE = (0.2, 0.7)


def read(path, prompt="", drawn=TASKS, **options):
    return read_requests(path, Defaults(prompt=prompt), drawn=drawn, **options)


def image(path, height=20, width=30, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(path.name))
    pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels if value is None else np.full((height, width), value, np.uint8)).save(path)


def mask(path, box, height=20, width=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), np.uint8)
    top, bottom, left, right = box
    pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Images beside their captions, two with masks."""
    for name in ("a.png", "b.jpg", "c.png", "deep/d.png"):
        image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" a {name}\n")
    mask(tmp_path / "a_mask.png", (2, 8, 3, 9))
    mask(tmp_path / "deep" / "masks" / "d.png", (2, 8, 3, 9))
    return tmp_path


def test_a_plain_folder(folder):
    a, b, c, d = read(folder)
    assert [p.id for p in (a, b, c, d)] == ["a.png", "b.jpg", "c.png", "deep/d.png"]
    assert (a.prompt, d.prompt, b.size) == ("a a.png", "a deep/d.png", (20, 30))
    assert (a.mask, b.mask, d.mask) == (folder / "a_mask.png", None, folder / "deep" / "masks" / "d.png")
    assert (a.tasks, b.tasks) == (("image_fill",), ("image_fill", "image_extend"))


@pytest.mark.parametrize("name", ["metadata.jsonl", "mine.jsonl"])
def test_metadata(folder, name):
    lines = [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "b.jpg", "caption": "two", "mask": "a_mask.png", "width": 30},
        {"file_name": "c.png", "prompt": "three", "task": "image_extend"},
        {"file_name": "deep/d.png", "task": "object_removal"},
    ]
    (folder / name).write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    a, b, c, d = read(folder if name == "metadata.jsonl" else folder / name, prompt="all")
    assert [p.prompt for p in (a, b, c, d)] == ["one", "two", "three", ""]
    assert [p.tasks for p in (b, c, d)] == [("image_fill",), ("image_extend",), ("object_removal",)]
    assert a.mask == b.mask == folder / "a_mask.png"
    sample = draw_sample(d, (16, 16), "object_removal", np.random.default_rng(0), HOLE)
    assert sample.prompt == REMOVAL_PROMPT


def test_bad_images_are_reported_and_skipped(folder, capsys):
    (folder / "c.txt").unlink()
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    mask(folder / "a_mask.png", (2, 8, 3, 9), height=10)
    (only,) = read(folder, bad_share=0.75)
    assert only.id == "deep/d.png"
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert "a_mask.png is 30x10 pixels" in said[0]
    assert "b.jpg is a damaged image" in said[1]
    assert "c.png: image_fill needs a prompt: say what the image should show" in said[2]
    assert len(read(folder, prompt="a thing", bad_share=0.5)) == 2
    with pytest.raises(UserError, match=r"3 of 4 requests in .* are bad, more than the allowed share of 0\.1"):
        read(folder, bad_share=0.1)
    lines = ["{", "[]", '{"file_name": "no.png", "text": "x"}', '{"file_name": "c.png", "text": 3}']
    lines += ['{"file_name": "c.png", "text": "x", "task": "fill"}', '{"file_name": "c.png", "text": "x"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    capsys.readouterr()
    assert len(read(folder, bad_share=0.9)) == 1
    said = capsys.readouterr().err
    for words in (
        "line 1: it is no JSON",
        "line 2: it is list and no object",
        "no.png can't be opened (No such file or directory)",
        "line 4: text is 3: write a text",
        "line 5: unknown task 'fill': choose one of image_fill",
    ):
        assert words in said, words


def test_missing_data_and_captions_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.source"):
        read(tmp_path / "none")
    with pytest.raises(UserError):
        read(tmp_path)
    image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"NAME\.txt"):
        read(tmp_path)
    with pytest.raises(UserError):
        read(tmp_path / "a.png")


def test_a_sample_is_cut_to_its_bucket_with_its_mask(folder):
    """The image's own mask is cropped with it, and the crop always contains some of it."""
    mask(folder / "b_mask.png", (9, 11, 28, 30))
    image(folder / "b.jpg", value=255)
    Image.fromarray(np.asarray(Image.open(folder / "b_mask.png"))).save(folder / "b.png")  # white where the mask is
    (folder / "b.png").rename(folder / "b.jpg")
    b = next(p for p in read(folder) if p.id == "b.jpg")
    for seed in range(5):
        sample = draw_sample(b, (16, 16), "image_fill", np.random.default_rng(seed), HOLE)
        assert sample.image.shape == (16, 16, 3)
        assert sample.mask.shape == (16, 16)
        assert sample.mask.any()
        assert (sample.mask[sample.image[..., 0] > 200] == 1).all()
    c = next(p for p in read(folder) if p.id == "c.png")
    first, again = (draw_sample(c, (16, 32), "image_extend", np.random.default_rng(3), HOLE) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.mask[[0, -1]].any() or first.mask[:, [0, -1]].any()


def test_images_are_held_out_by_file(folder):
    pictures = read(folder)
    trained, held_out = hold_out(pictures, 0.25, seed=0)
    assert (len(trained), len(held_out)) == (3, 1)
    assert {p.id for p in trained} | {p.id for p in held_out} == {p.id for p in pictures}
    assert hold_out(pictures[::-1], 0.25, seed=0)[1] == held_out
    assert hold_out(pictures, 0.0, seed=0) == (pictures, [])
    assert [len(part) for part in hold_out(pictures[:1], 0.5, seed=0)] == [1, 0]


def test_an_image_with_several_masks_is_held_out_with_all_of_them(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    lines = [{"file_name": name, "text": text} for name in ("a.png", "b.png") for text in ("one", "two", "three")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained, held_out = hold_out(read(tmp_path), 0.2, seed=0)
    assert (len(trained), len(held_out)) == (3, 3)
    assert [p.id for p in held_out] == ["b.png", "b.png#2", "b.png#3"]


def test_names_that_no_file_can_have_are_skipped(tmp_path, capsys):
    image(tmp_path / "a.png")
    lines = [{"file_name": name, "text": "x"} for name in ("a.png", "a\0.png", "a" * 300 + ".png")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [p.id for p in read(tmp_path, bad_share=0.7)] == ["a.png"]
    assert len(capsys.readouterr().err.strip().splitlines()) >= 2


def test_entries_that_are_no_files_are_bad_images(folder, capsys):
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "around").symlink_to(folder)
    os.mkfifo(folder / "c_mask.png")
    (folder / "b.txt").unlink()
    os.mkfifo(folder / "b.txt")
    found = read(folder, prompt="all", bad_share=0.9)
    assert [item.id for item in found] == ["a.png", "deep/d.png"]
    said = capsys.readouterr().err
    for name in ("pipe.png", "loop.png", "c_mask.png", "b.txt"):
        assert f"{folder / name} is a" in said


def test_only_files_inside_the_folder_if_one_says_so(folder, capsys):
    outside = folder.parent / "outside.png"
    image(outside)
    (folder / "e.png").symlink_to(outside)
    assert len(read(folder, prompt="all")) == 5
    assert len(read(folder, prompt="all", bad_share=0.5, inside_only=True)) == 4
    names = ["a.png", "../outside.png", str(outside), "e.png"]
    lines = [{"file_name": name, "text": "one\u2028line"} for name in names]
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert [item.prompt for item in read(path)] == ["one\u2028line"] * 4
    (only,) = read(path, bad_share=0.75, inside_only=True)
    assert only.id == "a.png"
    assert capsys.readouterr().err.count("leads out of") == 4
