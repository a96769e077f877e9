"""`onereward masks`: masks, tasks and prompts for requests, from draws and from segmentations."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onereward_jax.candidates import draw_masks
from onereward_jax.candidates.draw_masks import Drawer, Drawing
from onereward_jax.candidates.prompts import Prompts
from onereward_jax.candidates.segmentations import Coco, LabelImages, Opened, Segment, dilated, open_segmentations
from onereward_jax.cli import main as cli
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.requests.read import read_requests
from onereward_jax.data.requests.record import Request, read_mask
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image

HEIGHT, WIDTH = 40, 60
SHARES = "image_fill=.4,image_extend=.2,object_removal=.2,text_rendering=.2"


@pytest.fixture
def folder(tmp_path):
    """Eight images alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 30 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def coco(tmp_path, **changed):
    """An annotation file: a square of 10 pixels, a triangle that reaches out of the image, and run lengths."""
    square = [5, 10, 15, 10, 15, 20, 5, 20]
    triangle = [[40, 30, 90, 30, 40.5, 90]]
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 10 * HEIGHT, HEIGHT * (WIDTH - 10)]}
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(8)],
        "annotations": [
            {"image_id": n, "category_id": category, "segmentation": segmentation}
            for n in range(8)
            for category, segmentation in ((1, [square]), (2, triangle), (2, runs))
        ],
        "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "cat"}],
    } | changed
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    texts = ("a red kettle", 'a sign that says "OPEN"')
    path.write_text(
        "".join(json.dumps({"image": f"{n}.png", "prompt": text}) + "\n" for n in range(8) for text in texts)
    )
    return path


def value_or_sentence(function):
    try:
        return function()
    except UserError as error:
        return str(error)


def run(folder, out, *more):
    return cli.main(["masks", "--source", str(folder), "--out", str(out), *map(str, more)])


def test_from_images_alone_to_requests_of_every_task(folder, tmp_path, capsys):
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    given = ("--coco", coco(tmp_path), "--prompts", prompts(tmp_path), "--tasks", SHARES, "--per_image", 5)
    assert run(folder, out, *given, "--sheet", sheet) == 0
    said = capsys.readouterr().out
    requests = read_requests(out)
    assert len(requests) == 40
    assert len({request.image for request in requests}) == 8
    tasks = Counter(request.tasks[0] for request in requests)
    assert len(tasks) == 4
    for task, number in tasks.items():
        assert f"{task}: {number} masks" in said
    for request in requests:
        mask = read_mask(request.mask)
        assert 0 < mask.mean() < 1
        if request.tasks == ("object_removal",):
            assert request.prompt == ""
        if request.tasks == ("text_rendering",):
            assert "OPEN" in request.prompt
        if request.tasks == ("image_extend",):
            assert mask[[0, -1]].all(axis=1).any() or mask[:, [0, -1]].all(axis=0).any()
    assert read_image(sheet).shape[0] > 4 * 100
    # The same of fewer images in another order, and other ones of another seed.
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    lines = [json.dumps({"id": f"{n}.png", "image": str(folder / f"{n}.png")}) for n in (5, 2)]
    (fewer / "requests.jsonl").write_text("\n".join(lines))
    content = {request.id: (request.prompt, read_mask(request.mask).tobytes()) for request in requests}
    assert run(fewer, tmp_path / "again", *given) == 0
    again = read_requests(tmp_path / "again")
    assert len(again) == 10
    assert all(content[request.id] == (request.prompt, read_mask(request.mask).tobytes()) for request in again)
    assert run(fewer, tmp_path / "again", *given, "--seed", 1) == 0
    again = read_requests(tmp_path / "again")
    assert any(content[request.id] != (request.prompt, read_mask(request.mask).tobytes()) for request in again)


def test_without_shares_a_request_keeps_its_tasks_and_its_mask(folder, tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 255).save(folder / "0_mask.png")
    (folder / "0.txt").write_text("a thing")
    (folder / "1.txt").write_text("a thing")
    assert run(folder, tmp_path / "out", "--kinds", "strokes,borders") == 0
    found = {request.id: request for request in read_requests(tmp_path / "out")}
    assert read_mask(found["0.png"].mask).all()
    assert found["1.png"].tasks[0] in ("image_fill", "image_extend")
    assert all(found[f"{n}.png"].tasks == ("image_extend",) for n in range(2, 8))


def test_ids_that_are_there_twice(tmp_path, capsys):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "x.png")
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "y.png")
    lines = [{"id": "a", "image": "x.png"}, {"id": "a", "image": "x.png"}]
    lines += [{"id": "a/mask-1", "image": "x.png", "mask": "y.png", "task": "object_removal"}]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(tmp_path, tmp_path / "out", "--per_image", 2) == 2
    assert run(tmp_path / "requests.jsonl", tmp_path / "out", "--per_image", 2, "--bad_share", 0.5) == 0
    error = capsys.readouterr().err
    assert "line 2" in error
    assert "line 3" in error
    assert [request.id for request in read_requests(tmp_path / "out")] == ["a/mask-1", "a/mask-2"]


def test_what_select_wrote_is_known_by_the_names_in_its_source(folder, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "x.png")
    fields = {"id": "a", "image": "x.png", "task": "image_extend", "notes": {"file": "deep/3.png", "cluster": 1}}
    (tmp_path / "requests.jsonl").write_text(json.dumps(fields))
    shares = ("--tasks", "object_removal=1", "--coco", coco(tmp_path), "--categories", "box")
    assert run(tmp_path / "requests.jsonl", tmp_path / "out", *shares) == 0
    (request,) = read_requests(tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH))
    expected[10:20, 5:15] = 1  # pixels whose centre the polygon holds
    np.testing.assert_array_equal(read_mask(request.mask), expected)
    assert run(tmp_path / "requests.jsonl", tmp_path / "out", *shares, "--dilate", 3) == 0
    (request,) = read_requests(tmp_path / "out")
    grown = read_mask(request.mask)
    assert grown[10:20, 2:18].all()
    assert not grown[7, 2]  # round corners


def test_label_images(folder, tmp_path):
    labels = tmp_path / "labels"
    (labels / "deep").mkdir(parents=True)
    indexed = np.zeros((HEIGHT, WIDTH), np.uint8)
    indexed[:10, :10], indexed[20:35, 20:40] = 1, 2
    image = Image.fromarray(indexed).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    image.save(labels / "0.png")
    Image.fromarray(np.uint8(255 * (indexed == 1))).save(labels / "deep" / "1.png")
    Image.new("L", (5, 5), 255).save(labels / "2.png")
    (labels / "3.png").write_bytes(b"x")
    Image.new("L", (WIDTH, HEIGHT)).save(labels / "4.png")
    opened = LabelImages(labels)
    size = (HEIGHT, WIDTH)
    first, second = opened.of(["0.png"], size)
    assert (first.mask().sum(), second.mask().sum()) == (300, 100)  # by colour
    (only,) = opened.of(["none", "1.png"], size)
    np.testing.assert_array_equal(only.mask(), indexed == 1)
    assert opened.of(["4.png"], size) == opened.of(["9.png"], size) == []
    for name in ("2.png", "3.png"):
        with pytest.raises(UserError, match=name):
            opened.of([name], size)
    given = ("--segments", labels, "--tasks", "object_removal=.9,image_extend=.1", "--bad_share", 0.5)
    assert run(folder, tmp_path / "out", *given) == 0
    found = {request.id: request.tasks[0] for request in read_requests(tmp_path / "out")}
    assert set(found.values()) <= {"object_removal", "image_extend"}
    assert all(found[f"{n}.png"] == "image_extend" for n in range(2, 8))


# --------------------------------------------------------------------------------------------------------- properties

_SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=25, deadline=None)
@given(_SIZES, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_images_of_any_size_get_a_mask_or_a_sentence(size, seed, per_image):
    request = Request("a", Image, None, "a sign: 'x'", size=size, where="a")  # never opened
    drawer = Drawer(
        Drawing(seed=seed, per_image=per_image, tasks={"image_fill": 0.5, "image_extend": 0.5}), Prompts(), None
    )
    skipped = Skipped("requests", "a", 1)
    try:
        made = list(drawer.all_of([request], skipped))
    except UserError:
        assert min(size) < 8
        return
    assert min(size) >= 8
    assert len({item.id for item in made}) == per_image
    for item in made:
        mask = item.mask.mask()
        assert mask.shape == size
        assert 0 < mask.sum() < mask.size


@settings(max_examples=30, deadline=None)
@given(_SIZES, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_of_any_mask(size, seed, share):
    mask = (np.random.default_rng(seed).random(size) < share).astype(np.uint8)
    encoded = RunLengths.of(mask)
    assert sum(encoded.counts) == mask.size
    if mask.any():
        np.testing.assert_array_equal(encoded.mask(), mask)


_ODD = st.sampled_from(
    [None, True, -1, 0, 3, 2**70, 1e308, "", "x", "a\0b", [], {}, [[]], [[1, 2, 3]], [[1, 2] * 3], [[1e9] * 6]]
    + [
        [["a"] * 6],
        {"size": [4, 4], "counts": [16]},
        {"size": [HEIGHT, WIDTH], "counts": "??"},
        [[-9, -9, -5, -9, -9, -5]],
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["images", "annotations", "categories", "image", "annotation", "category"]),
    st.sampled_from(
        ["id", "file_name", "width", "height", "image_id", "category_id", "segmentation", "name", "iscrowd"]
    ),
    _ODD,
    st.booleans(),
)
def test_annotations_of_any_content(tmp_path_factory, where, field, value, chosen):
    path = coco(folder := tmp_path_factory.mktemp("coco"))
    content = json.loads(path.read_text())
    if where in content:
        content[where] = value
    else:
        content[{"image": "images", "annotation": "annotations", "category": "categories"}[where]][0][field] = value
    path.write_text(json.dumps(content))
    segments = value_or_sentence(lambda: Coco(path, ["cat"] if chosen else []).of(["0.png"], (HEIGHT, WIDTH)))
    if isinstance(segments, str):
        assert str(folder) in segments
        return
    for segment in segments:
        mask = value_or_sentence(segment.mask)
        assert "annotations[" in mask if isinstance(mask, str) else mask.shape == (HEIGHT, WIDTH) and mask.any()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "NaN", '{"images": [], "annotations": NaN}', '{"images": {}}', "[" * 999]
)
def test_files_that_are_no_annotations(text, folder, tmp_path, capsys):
    (tmp_path / "coco.json").write_text(text)
    assert run(folder, tmp_path / "out", "--coco", tmp_path / "coco.json") == 2
    error = capsys.readouterr().err
    assert "coco.json" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_malformed_is_left_out_up_to_a_share(folder, tmp_path, capsys):
    annotations = [
        {"image_id": 0, "category_id": 1, "segmentation": [[5, 10, 15, 10, 15, 20, 5, 20]]},
        {"image_id": 0, "category_id": 1, "segmentation": []},
        {"image_id": 0, "category_id": 1, "segmentation": [[100, 100, 120, 100, 120, 120]]},
        {"image_id": 99, "category_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]]},
    ]
    images = [{"id": 0, "file_name": "0.png"}, {"id": 0, "file_name": "1.png"}]
    given = ("--coco", coco(tmp_path, images=images, annotations=annotations))
    given += ("--tasks", "object_removal=1", "--bad_share")
    assert run(folder, tmp_path / "out", *given, 0.1) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert run(folder, tmp_path / "out", *given, 0.9) == 0
    error = capsys.readouterr().err
    for place in ("images[1]", "annotations[1]", "annotations[2]", "annotations[3]"):
        assert place in error
    assert [request.id for request in read_requests(tmp_path / "out")] == ["0.png"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--tasks", "object_removal=1"), "object_removal"),
        (("--tasks", "fill=1"), "fill"),
        (("--tasks", "image_fill=nan"), "nan"),
        (("--tasks", "image_fill=0"), "0"),
        (("--tasks", "image_fill=.5,image_fill=.5"), "image_fill"),
        (("--tasks", "image_extend=1", "--kinds", "boxes"), "borders"),
        (("--kinds", "circles"), "circles"),
        (("--kinds", "segments"), "segments"),
        (("--min_hole", ".8"), "max_hole"),
        (("--min_area", ".8"), "max_area"),
        (("--categories", "cat"), "categories"),
        (("--segments", "EMPTY"), "label images"),
        (("--coco", "EMPTY", "--segments", "EMPTY"), "one of them"),
        (("--prompts", "BAD"), "line 1"),
        (("--tasks", "image_fill=1"), "image_fill"),  # nothing has a prompt
        (("--source", "EMPTY"), "no requests"),
        (("--out", "INSIDE"), "inside"),
    ],
)
def test_what_can_not_be_is_one_sentence(more, word, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"id": "0.png", "image": "0.png", "prompt": "x"}\n')
    places = {"EMPTY": tmp_path / "empty", "INSIDE": folder / "out", "BAD": tmp_path / "bad.jsonl"}
    assert run(folder, tmp_path / "out", *(places.get(value, value) for value in more)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onereward: ")]
    assert len(said) == 1
    assert word in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"prompt": "x"}',
        '{"id": 3, "prompt": "x"}',
        '{"id": "a", "prompt": " "}',
        '{"id": "a", "prompt": "x", "task": "y"}',
    ],
)
def test_lines_that_are_no_prompts(line, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(line + '\n{"id": "a", "prompt": "good", "task": "image_extend"}\n')
    request = Request("a", Image, None, "own", size=(9, 9))
    (prompt,) = Prompts(tmp_path / "p.jsonl", 0.5).of(request)
    assert (prompt.text, prompt.serves("image_extend"), prompt.serves("image_fill")) == ("good", True, False)
    assert "line 1" in capsys.readouterr().err
    with pytest.raises(UserError):
        Prompts(tmp_path / "p.jsonl", 0.1)


def test_shares_are_held_where_every_task_is_possible(tmp_path):
    masks = np.zeros((HEIGHT, WIDTH), np.uint8)
    masks[5:20, 5:20] = 1

    class Same:
        def of(self, names, size):
            return [Segment("thing", lambda: masks)]

    opened = Opened(Same(), Skipped("annotations", "x", 0), 1)
    assert math.isclose(draw_masks.parse_tasks("image_fill=.5,image_extend=.25")["image_fill"], 2 / 3)
    drawer = Drawer(Drawing(tasks=draw_masks.parse_tasks(SHARES)), Prompts(), opened)
    requests = [Request(str(n), Image, None, 'the word "A"', size=(HEIGHT, WIDTH)) for n in range(400)]
    tasks = Counter(item.tasks[0] for item in drawer.all_of(requests, Skipped("requests", "x", 0)))
    for task, share in draw_masks.parse_tasks(SHARES).items():
        assert abs(tasks[task] / 400 - share) < 0.07
    assert open_segmentations(None, None, [], 0.1) is None


def test_dilation_at_the_border():
    mask = np.zeros((9, 9), np.uint8)
    mask[0, 0] = 1
    assert dilated(mask, 2).sum() == 6
    assert dilated(mask, 100).all()
    assert dilated(mask, 0) is mask
