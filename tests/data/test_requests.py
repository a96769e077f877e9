"""A user's own requests: the forms that they lie in, bad ones, and crops."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onereward_jax.cli import main as cli
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.requests.layouts import Defaults
from onereward_jax.data.requests.read import check_requests, read_requests
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.run_lengths import run_lengths
from onereward_jax.data.requests.source import HeldOut, Requests, Targets, draw_sample, hold_out, read_split
from onereward_jax.data.requests.write import write_requests
from onereward_jax.data.source import samples_from
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from onereward_jax.tasks import EXTEND_PROMPT, REMOVAL_PROMPT, TASKS

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
    mask(folder / "c_mask.png", (2, 8, 3, 9))
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
    with pytest.raises(UserError):
        read(tmp_path / "a.png")


def test_an_image_alone_is_for_extension(folder, capsys):
    (folder / "c.txt").unlink()
    _, b, c, _ = read(folder)
    assert [p.tasks for p in (b, c)] == [("image_fill", "image_extend"), ("image_extend",)]
    assert capsys.readouterr().err == ""
    sample = draw_sample(c, (16, 16), c.tasks[0], np.random.default_rng(0), HOLE)
    assert (sample.prompt, sample.task) == (EXTEND_PROMPT, "image_extend")
    assert read(folder, prompt="all")[2].tasks == ("image_fill", "image_extend")
    for text in folder.rglob("*.txt"):
        text.unlink()
    for mask in (folder / "a_mask.png", folder / "deep" / "masks" / "d.png"):
        mask.unlink()
    config = RewardFeedback().replace({"data.source": str(folder)})
    assert {p.tasks for p in read_split(config).trained_on} == {("image_extend",)}
    assert "NAME.txt" in capsys.readouterr().err


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
    (folder.parent / "secret.txt").write_text("not for a prompt")
    (folder / "b.txt").unlink()
    (folder / "b.txt").symlink_to(folder.parent / "secret.txt")
    assert len(read(folder, prompt="all", bad_share=0.5, inside_only=True)) == 3
    names = ["a.png", "../outside.png", str(outside), "e.png"]
    lines = [{"file_name": name, "text": "one\u2028line"} for name in names]
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert [item.prompt for item in read(path)] == ["one\u2028line"] * 4
    (only,) = read(path, bad_share=0.75, inside_only=True)
    assert only.id == "a.png"
    assert capsys.readouterr().err.count("leads out of") == 6


def one(folder, **fields):
    """The only request of a line, with an image of 20 x 30 pixels and a mask of its size beside it."""
    (folder / "requests.jsonl").write_text(json.dumps({"image": "a.png"} | fields))
    return check_requests(folder)


def test_the_record(folder):
    image(folder / "target.png")
    fields = {"id": "x", "task": "object_removal", "mask": "a_mask.png", "target": "target.png", "notes": {"a": [1]}}
    (request,) = one(folder, **fields, negative_prompt="blur").requests
    assert (request.id, request.tasks, request.negative_prompt) == ("x", ("object_removal",), "blur")
    assert (request.target, request.notes, request.size) == (folder / "target.png", {"a": [1]}, (20, 30))
    sample = draw_sample(request, (16, 24), "object_removal", np.random.default_rng(0), HOLE)
    assert (sample.negative_prompt, sample.id) == ("blur", "x")
    assert not np.array_equal(sample.image, sample.target)  # cut alike, from two images
    (request,) = one(folder, **fields | {"target": "a.png"}).requests
    sample = draw_sample(request, (16, 24), "object_removal", np.random.default_rng(0), HOLE)
    np.testing.assert_array_equal(sample.image, sample.target)
    (request,) = one(folder, extend="left=10").requests
    assert (request.tasks, request.size) == (("image_extend",), (20, 40))
    sample = draw_sample(request, (16, 32), "image_extend", np.random.default_rng(0), HOLE)
    assert sample.mask[:, 0].all()
    assert not sample.mask[:, -1].any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "fill", "prompt": "x"}, "unknown task 'fill': choose one of image_fill"),
        ({"task": "object_removal"}, "object_removal needs a mask: give one, white where to generate"),
        ({"task": "text_rendering", "prompt": "x"}, "text_rendering needs a mask"),
        ({"task": "image_fill", "mask": "a_mask.png"}, "image_fill needs a prompt: say what the image should show"),
        ({"prompt": "x", "mask": "none.png"}, "none.png can't be opened (No such file or directory): check the path"),
        ({"prompt": "x", "image": "none.png"}, "none.png can't be opened"),
        ({"prompt": "x", "mask": "small.png"}, "small.png is 8x8 pixels"),
        ({"prompt": "x", "mask": "black.png"}, "black.png is all black: paint the area to generate white"),
        ({"prompt": "x", "target": "small.png"}, "give a target of the image's size"),
        ({"prompt": "x", "mask": "a_mask.png", "extend": "left=3"}, "both a mask and sides to extend"),
        ({"prompt": "x", "extend": "up=3"}, "'up=3' is not a side to extend"),
        ({"negativ_prompt": "x"}, "'negativ_prompt' is not a field of a request: did you mean negative_prompt?"),
        ({"width": 3}, "'width' is not a field of a request: put it into notes"),
        ({"prompt": ["x"]}, "prompt is ['x']: write a text"),
        ({"notes": "x"}, "notes is 'x': write an object"),
    ],
)
def test_a_bad_record_is_one_sentence(folder, fields, words):
    Image.new("L", (8, 8), 255).save(folder / "small.png")
    Image.new("L", (30, 20)).save(folder / "black.png")
    checked = one(folder, **fields)
    assert checked.requests == []
    (bad,) = checked.bad
    assert "requests.jsonl, line 1: " in str(bad)
    assert words in str(bad)
    assert "\n" not in str(bad)


def test_an_id_that_is_there_twice(folder):
    lines = [{"id": name, "image": "a.png", "prompt": "x"} for name in ("a", "b", "a")]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checked = check_requests(folder)
    assert [request.id for request in checked.requests] == ["a", "b"]
    assert [str(bad) for bad in checked.bad] == [
        f"{folder}/requests.jsonl, line 3: id 'a' is there twice: make ids unique"
    ]


@pytest.mark.parametrize(("bad", "share", "refused"), [(1, 0.01, False), (50, 0.1, True), (50, 0.5, False)])
def test_a_share_of_bad_records(folder, bad, share, refused, capsys):
    lines = [{"image": "a.png" if number >= bad else "none.png", "prompt": "x"} for number in range(100)]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if refused:
        with pytest.raises(UserError, match=f"{bad} of 100 requests in .* are bad, more than the allowed share of"):
            read(folder, bad_share=share)
    else:
        assert len(read(folder, bad_share=share)) == 100 - bad
        assert capsys.readouterr().err.count("none.png can't be opened") == min(bad, 10)


def counts_of(mask):
    """COCO's run lengths of a mask, as a list."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return runs if flat[0] == 0 else [0, *runs]


def compressed(counts):
    """The text form, as `rleToString` in cocoapi's common/maskApi.c writes it."""
    text = ""
    for place, count in enumerate(counts):
        value, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def test_other_projects_names(folder, tmp_path):
    marked = np.zeros((20, 30), np.uint8)
    marked[2:8, 3:9] = 1
    brush = {"gt_image_path": "a.png", "caption": "one", "image_id": "7_1", "height": 20, "width": 30}
    assert np.array_equal(run_lengths({"size": [20, 30], "counts": compressed(counts_of(marked))}).mask(), marked)
    lines = [
        brush | {"segmentation": {"size": [20, 30], "counts": counts_of(marked)}},
        {"media": [{"role": "source", "path": "b.jpg"}, {"role": "mask", "path": "a_mask.png"}], "caption": "two"},
        {"media": [{"role": "source", "path": "b.jpg"}, {"role": "input", "path": "a.png"}], "caption": "two"},
        brush | {"image_id": "7_2", "segmentation": {"size": [20, 30], "counts": [1, 2]}},
        brush | {"mask_path": "a_mask.png"},
    ]
    (folder / "list.json").write_text(json.dumps(lines))
    checked = check_requests(folder / "list.json")
    first, second, third = checked.requests
    assert (first.id, first.prompt, first.target, first.tasks) == ("a.png", "one", folder / "a.png", ("image_fill",))
    np.testing.assert_array_equal(first.pictures()[1], marked)
    assert (third.id, third.notes) == ("a.png#2", {"image_id": "7_1"})
    assert (second.image, second.mask, second.prompt) == (folder / "b.jpg", folder / "a_mask.png", "two")
    assert "record 2: media has two of role image: give one" in str(checked.bad[0])
    assert "record 3: segmentation is" in str(checked.bad[1])
    # OneTrainer: the model sees NAME-condlabel.png, and is to make NAME.png.
    pairs = tmp_path / "pairs"
    image(pairs / "x.png")
    image(pairs / "x-condlabel.png")
    mask(pairs / "x-masklabel.png", (2, 8, 3, 9))
    (pairs / "x.txt").write_text("a lawn")
    (request,) = read(pairs)
    assert (request.image, request.target) == (pairs / "x-condlabel.png", pairs / "x.png")
    assert (request.mask, request.prompt, request.id) == (pairs / "x-masklabel.png", "a lawn", "x.png")


@pytest.mark.parametrize("form", ["folder", "tfds"])
def test_conversion_keeps_what_requests_say_and_show(folder, tmp_path, form):
    if form == "tfds":
        pytest.importorskip("tensorflow_datasets")
    fields = {"id": "x", "prompt": "p", "target": "c.png", "negative_prompt": "n", "notes": {"a": 1}}
    lines = [fields | {"image": "a.png", "mask": "a_mask.png"}, {"image": "b.jpg", "task": "image_extend"}]
    lines.append({"gt_image_path": "a.png", "caption": "c", "segmentation": {"size": [20, 30], "counts": [50, 9, 541]}})
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    requests = read(folder)
    write_requests(tmp_path / "out", requests, form)
    again = read(tmp_path / "out")
    said = lambda request: (request.id, request.tasks, request.prompt, request.negative_prompt, request.notes)
    assert [*map(said, again)] == [*map(said, requests)]
    for one, other in zip(requests, again, strict=True):
        for before, after in zip(one.pictures(), other.pictures(), strict=True):
            np.testing.assert_array_equal(before, after)
        assert (one.target is None) == (other.target is None)
        assert one.size == other.size
    together = lambda some: [[one.group == other.group for other in some] for one in some]
    assert together(again) == together(requests)
    assert together(requests)[0] == [True, False, True]
    assert [request.digest for request in read(tmp_path / "out")] == [request.digest for request in again]


CONFIG = {
    "data.resolution": 32,
    "data.bucket_step": 8,
    "train.batch_size": 8,
    "data.task_weights": {"image_fill": 0.5, "object_removal": 0.25, "image_extend": 0.25, "text_rendering": 0.0},
}


def some(number, size, tasks, target=None):
    return Request(
        f"r{number}", Path(f"{number}.png"), Path("m.png"), "p", tasks, target=target, group=f"r{number}", size=size
    )


def test_tasks_are_drawn_by_their_weights_over_all_buckets():
    """Upright images are mostly removals, lying ones mostly fills: the bucket of a batch is drawn, then the rest."""
    upright, lying = (60, 40), (40, 60)
    counts = [(upright, "object_removal", 30), (upright, "image_fill", 10), (lying, "image_fill", 50)]
    counts += [(lying, "image_extend", 20), (upright, "image_extend", 10)]
    requests = [some(f"{size}{task}{n}", size, (task,)) for size, task, count in counts for n in range(count)]
    source = Requests(RewardFeedback().replace(CONFIG), requests)
    drawn, batches = Counter(), 1600
    for batch in range(batches):
        sizes = set()
        for row in range(8):
            index = 8 * batch + row
            generator = np.random.default_rng((0, index))
            size, task, request = source._drawn.draw(generator, 0, index, "image_fill")
            sizes.add(size)
            drawn[task] += 1
            drawn[request.id] += 1
        assert sizes == {source.size_at(8 * batch)}
    for task, p in {"image_fill": 0.5, "object_removal": 0.25, "image_extend": 0.25}.items():
        assert drawn[task] / (8 * batches) == pytest.approx(p, abs=0.03)  # four deviations
    fills = [drawn[request.id] for request in requests if request.tasks == ("image_fill",)]
    assert np.mean(fills[:10]) == pytest.approx(np.mean(fills[10:]), rel=0.15)  # in either bucket


def test_held_out_requests_and_targets_have_the_sizes_of_the_training(folder, monkeypatch):
    requests = read(folder)
    config = RewardFeedback().replace(CONFIG | {"train.batch_size": 2})
    source = Requests(config, requests)
    held_out = HeldOut(source, requests)
    assert {task: held_out.count(task) for task in held_out.tasks} == {"image_fill": 4, "image_extend": 2}
    again = HeldOut(Requests(config, requests[::-1]), requests[::-1])
    for task in held_out.tasks:
        for one, other in zip(samples_from(held_out, task, 0, 9), samples_from(again, task, 0, 9), strict=True):
            assert (one.id, one.mask.shape) == (other.id, source.sizes[0])
            np.testing.assert_array_equal(one.mask, other.mask)
            np.testing.assert_array_equal(one.image, other.image)
            assert one.target is None
    of_task = {task: samples_from(held_out, task, 0, 9) for task in held_out.tasks}
    monkeypatch.setattr(Requests, "fixed_sample", None)  # no image is read for an outline
    for task, samples in of_task.items():
        outlines = [held_out.outline(index, task) for index in range(len(samples))]
        assert outlines == [(sample.id, sample.prompt, sample.mask.shape) for sample in samples]
    learned = Targets(source, requests).sample(5)
    np.testing.assert_array_equal(learned.image, learned.target)
    assert learned.mask.shape == source.size_at(5)
    assert source.target_share == 0


def test_commands_check_describe_and_convert(folder, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("out")
    (folder / "b.jpg").write_bytes(b"no image")
    run = lambda *arguments: cli.main(["requests", *map(str, arguments), "--source", str(folder)])
    assert run("check") == 1
    said = capsys.readouterr()
    assert "b.jpg is not a readable image" in said.err
    assert said.out == f"{folder}: 3 requests, 1 bad ones\n"
    sheet = out / "sheet.png"
    assert run("stats", "--resolution=32", "--bucket_step=8", "--bad_share=0.5", "--sheet", sheet) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:3] == ["image_fill", "3", "2"]
    assert read_image(sheet).shape[1] > 50
    assert run("convert") == 2
    assert "convert needs a directory to write to" in capsys.readouterr().err
    assert run("convert", "--bad_share=0.5", "--to", out / "new") == 0
    assert len(read(out / "new")) == 3
