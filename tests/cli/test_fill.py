"""`onereward fill` and `onereward export`."""

import json
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onereward_jax import FillPipeline
from onereward_jax import tree as trees
from onereward_jax.atomic_files import OUTPUT_FILE
from onereward_jax.cli import main as cli
from onereward_jax.cli.commands.fill import _of_each
from onereward_jax.data.requests.record import Request
from onereward_jax.errors import UserError
from onereward_jax.fill.diffusers_io import load_transformer
from onereward_jax.fill.requests import output_files, prompt_of, read_requests
from onereward_jax.parallel import hosts
from onereward_jax.runs import export
from onereward_jax.runs.export import COMFYUI_FILE
from onereward_jax.tasks import EXTEND_PROMPT, REMOVAL_PROMPT
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state
from onereward_jax.weights import bfl
from onereward_jax.weights.load import load_component
from onereward_jax.weights.names import flux, name_rules
from tests.support import tiny_fill

HEIGHT, WIDTH = 16, 24
OPTIONS = {
    "num_inference_steps": 2,
    "max_sequence_length": tiny_fill.T5_LENGTH,
    "dtype": "float32",
    "true_cfg_scale": 2.0,
}
OPTIONS |= {"negative_prompt": "remove"}
PROMPT = tiny_fill.PROMPTS[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    tiny_fill.pipeline(directory).save_pretrained(directory / "model")
    draw = np.random.default_rng(0)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 6:20] = 255
    (directory / "images").mkdir()
    (directory / "masks").mkdir()
    for name in "ab":
        Image.fromarray(draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(directory / "images" / f"{name}.png")
        Image.fromarray(mask).save(directory / "masks" / f"{name}.png")
    (directory / "images" / "broken.png").write_bytes((directory / "images" / "a.png").read_bytes()[:300])
    Image.fromarray(mask).save(directory / "masks" / "broken.png")
    Image.new("L", (WIDTH, HEIGHT)).save(directory / "black.png")
    Image.new("L", (8, 8), 255).save(directory / "small.png")
    Image.new("LA", (WIDTH, HEIGHT), (255, 0)).save(directory / "clear.png")
    # A bomb: a header of 30,000 x 30,000 pixels on a few bytes.
    png = bytearray((directory / "small.png").read_bytes())
    png[16:24] = struct.pack(">II", 30_000, 30_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    (directory / "bomb.png").write_bytes(png)
    return directory


def command(files, **changes):
    given = OPTIONS | {"model": files / "model", "image": files / "images" / "a.png", "prompt": PROMPT}
    given |= {"mask": files / "masks" / "a.png"} | changes
    flags = [f"--{name}" for name, value in given.items() if value is True]
    return ["fill", *(f"--{name}={value}" for name, value in given.items() if value not in (None, True)), *flags]


def read(path):
    return np.asarray(Image.open(path))


def test_one_picture_twice_with_its_outside_kept(files, tmp_path):
    assert cli.main(command(files, out=tmp_path / "new" / "x.png", num_images=2, keep_outside=True, seed=5)) == 0
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["x_0.png", "x_1.png"]
    image, mask = read(files / "images" / "a.png"), read(files / "masks" / "a.png")
    pipeline = FillPipeline.from_pretrained(files / "model", dtype="float32")
    for number in range(2):
        made = read(tmp_path / "new" / f"x_{number}.png")
        np.testing.assert_array_equal(made[mask == 0], image[mask == 0])
        (expected,) = pipeline(
            prompt=PROMPT,
            image=image,
            mask_image=mask,
            negative_prompt="remove",
            num_inference_steps=2,
            guidance_scale=1.0,
            true_cfg_scale=2.0,
            seed=5 + number,
            max_sequence_length=tiny_fill.T5_LENGTH,
        ).images
        difference = np.abs(made.astype(int) - np.asarray(expected))[mask > 0]
        assert difference.max() <= 1  # the command spreads the model over all devices


def test_of_many_the_bad_ones_are_named_and_the_rest_is_filled(files, tmp_path, capsys):
    with warnings.catch_warnings():
        assert cli.main(command(files, out=tmp_path / "out", image=files / "images", mask=files / "masks")) == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    errors = capsys.readouterr().err
    assert "onereward: 1 of 3 could not be filled" in errors
    assert f"onereward: {files / 'images' / 'broken.png'} is a damaged image" in errors
    assert "filling: 100%" in errors

    lines = [
        {"image": "images/a.png", "mask": "masks/a.png", "task": "object_removal"},
        {"image": "images/a.png", "extend": "right=8"},
        {"image": "images/a.png", "mask": "masks/a.png", "task": "text_rendering"},
        {"image": "images/a.png", "mask": "black.png", "prompt": "a"},
        {"mask": "masks/a.png"},
    ]
    of_windows = b"\xef\xbb\xbf" + "\n".join(map(json.dumps, lines)).encode()
    (files / "requests.jsonl").write_bytes(of_windows + b"\n\xff")
    arguments = command(files, out=tmp_path / "lines", image=files / "requests.jsonl", mask=None, prompt=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tiny tokenizer does not know the words for extending
        assert cli.main(arguments) == 1
    assert read(tmp_path / "lines" / "a.png").shape == (HEIGHT, WIDTH, 3)
    assert read(tmp_path / "lines" / "a-2.png").shape == (HEIGHT, WIDTH + 8, 3)
    errors = capsys.readouterr().err
    assert "requests.jsonl, line 3: text_rendering needs a prompt" in errors
    assert "black.png is all black" in errors
    assert "requests.jsonl, line 5: it names no image" in errors
    assert "requests.jsonl, line 6: it is no UTF-8 text" in errors
    assert "4 of 6 could not be filled" in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "small.png"}, "8x8"),
        ({"mask": "black.png"}, "is all black: paint the area"),
        ({"mask": "clear.png"}, "clear.png"),
        ({"image": "bomb.png"}, "bomb.png"),
        ({"mask": None}, "neither"),
        ({"extend": "right=8"}, "both"),
        ({"mask": None, "extend": "up=8"}, "'up=8' is not a side to extend"),
        ({"prompt": None}, "prompt"),
        ({"task": "sharpen"}, "'sharpen'"),
        ({"image": "images/broken.png"}, "broken.png"),
        ({"image": "none.png"}, "none.png"),
        ({"num_images": 0}, "--num_images"),
        ({"out": "x.jpg"}, "x.jpg"),
        ({"out": "images"}, "--out"),
        ({"out": "images/a.png"}, "images/a.png"),
        ({"out": "black.png/x.png"}, "black.png"),
        ({"model": "nowhere"}, "nowhere"),
        ({"lora": "x=0.5"}, "adapter x"),
        ({"lora": "x=nan"}, "--lora"),
        ({"true_cfg": "nan"}, "--true_cfg"),
        ({"guidance_scale": "inf"}, "--guidance_scale"),
        ({"max_sequence_length": 513}, "512"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(files, tmp_path, capsys, changes, message):
    paths = {
        name: files / value for name, value in changes.items() if name in ("mask", "image", "out", "model") and value
    }
    before = sorted(files.rglob("*"))
    assert cli.main(command(files, **({"out": tmp_path / "x.png"} | changes | paths))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(files.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_request_that_fails_in_one_process_is_skipped_in_all(monkeypatch, capsys):
    """Else the others' computations would wait for it."""
    a, b, c = (Request(name, Path(name), where=f"{name}.png") for name in "abc")

    def function(request):
        if request is a:
            raise UserError("it is a damaged image")
        return request.id

    for others in ([], [(1, "b.png does not exist: check the path")]):
        monkeypatch.setattr(hosts, "gather", lambda mine, others=others: [mine, others])
        failed = []
        assert _of_each([a, b, c], function, failed) == {x: x.id for x in ((c,) if others else (b, c))}
        assert failed == ([a, b] if others else [a])
    lines = ["onereward: a.png: it is a damaged image", "onereward: b.png does not exist: check the path"]
    assert capsys.readouterr().err.splitlines() == [lines[0], *lines]
    with pytest.raises(UserError):
        _of_each([a], function, None)


def test_tasks_have_their_prompts():
    image, mask = Path("image.png"), Path("mask.png")
    text = lambda *of, **given: prompt_of(read_requests(image, *of, **given)[0])
    assert text(mask, task="object_removal") == REMOVAL_PROMPT
    assert text(None, extend="left=3") == EXTEND_PROMPT
    assert text(None, extend="left=3", prompt="a hill") == "a hill"
    with pytest.raises(ValueError, match="image_fill"):
        text(mask)


def test_files_of_one_name_do_not_replace_each_other(tmp_path):
    requests = [Request(name, Path(name)) for name in ("x/a.png", "y/a.jpg", "b.png")]
    names = [[file.name for file in files] for files in output_files(requests, tmp_path, 1)]
    assert names == [["a.png"], ["a-2.png"], ["b.png"]]
    assert [file.name for file in output_files(requests, tmp_path, 2)[1]] == ["a-2_0.png", "a-2_1.png"]
    requests = [Request(name, Path(name)) for name in ("a-2.png", "x/a.png", "y/a.png", "z/a-2.png")]
    names = [files[0].stem for files in output_files(requests, tmp_path, 1)]
    assert names == ["a-2", "a", "a-3", "a-2-2"]


@given(st.lists(st.sampled_from(["a", "a-2", "a-3", "a-2-2", "b", "a-2-3"]), max_size=20))
def test_no_two_requests_write_one_file(stems):
    files = output_files([Request("", Path(f"{stem}.png")) for stem in stems], Path("out"), 1)
    assert len({path for of_request in files for path in of_request}) == len(stems)


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A run's directory with one checkpoint: the policy is the base, the EMA is not."""
    workdir = tmp_path_factory.mktemp("run")
    _, params = load_component(files / "model" / "transformer", "transformer")
    state = create_state(params, make_optimizer(1e-3), seed=0, reference=True)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    checkpointer = Checkpointer(workdir / "checkpoints")
    checkpointer.save(3, state, {"index": 0})
    checkpointer.close()
    (workdir / "config.json").write_text(json.dumps({"model.base": str(files / "model"), "algorithm": "fixed"}))
    (workdir / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(workdir / "figures" / "examples.png")
    return workdir


def test_the_export_of_an_untouched_import_is_bit_by_bit_its_files(files, run, tmp_path, capsys):
    assert cli.main(["export", "--workdir", str(run), "--out", str(tmp_path / "model")]) == 0
    assert "policy of step 3" in capsys.readouterr().out
    original = {
        file.relative_to(files / "model"): file for file in (files / "model").rglob("[!.]*.*") if file.is_file()
    }
    for name, file in original.items():
        assert (tmp_path / "model" / name).read_bytes() == file.read_bytes(), name
    card = (tmp_path / "model" / "README.md").read_text()
    assert "base_model" not in card
    assert str(files) not in card
    for part in (
        "\nmodel, improved by",
        "licence",
        "non-commercial",
        "after 3\nupdates",
        "FillPipeline",
        "![examples.png]",
    ):
        assert part in card
    assert (tmp_path / "model" / "examples.png").is_file()
    assert FillPipeline.from_pretrained(tmp_path / "model", dtype="float32").shift.base_shift == 0.3


def test_comfyui_gets_no_other_models(run, tmp_path, capsys):
    assert cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'out'}", "--format=comfyui"]) == 2
    assert "black-forest-labs/FLUX.1-Fill-dev's sizes only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_comfyui_gets_one_file_and_a_workflow(files, run, tmp_path, monkeypatch):
    from safetensors.numpy import load_file, save_file

    monkeypatch.setattr(export, "check_comfyui", lambda module, base: None)
    out = tmp_path / "comfyui"
    assert cli.main(["export", f"--workdir={run}", f"--out={out}", "--format=comfyui", "--what=ema"]) == 0
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["README.md", COMFYUI_FILE, "workflow.json", "examples.png", OUTPUT_FILE]
    )
    _, params = load_component(files / "model" / "transformer", "transformer")
    shapes = name_rules.official_shapes(flux.TABLE, params)
    read = bfl.split(bfl.fused_names(shapes), shapes, load_file(out / COMFYUI_FILE).__getitem__)
    for name, tensor in name_rules.official_tensors(flux.TABLE, params).items():
        np.testing.assert_array_equal(read(name), tensor() + 1, err_msg=name)
    nodes = json.loads((out / "workflow.json").read_text())
    links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert {source for source, _ in links} < nodes.keys()
    assert nodes["model"]["inputs"]["unet_name"] == COMFYUI_FILE
    length = json.loads((run / "config.json").read_text()).get("max_sequence_length", 512)
    assert nodes["padded"] == {
        "class_type": "T5TokenizerOptions",
        "inputs": {"clip": ["clip", 0], "min_padding": 0, "min_length": length},
    }
    assert [nodes[name]["inputs"]["clip"] for name in ("prompt", "negative_prompt")] == [["padded", 0]] * 2
    assert "ComfyUI rounds" in (out / "README.md").read_text()

    plain = {path: np.asarray(x) + 1 for path, x in trees.flatten(params).items()}
    for source in (out, out / COMFYUI_FILE):  # read back, bit for bit
        pipeline = FillPipeline.from_pretrained(files / "model", dtype="float32", transformer=source)
        found = trees.flatten(pipeline.params["transformer"])
        assert found.keys() == plain.keys()
        for path, x in found.items():
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, plain[path], err_msg=path)
        again = trees.flatten(load_transformer(source, params))
        assert all((np.asarray(again[path]) == x).all() for path, x in plain.items())

    (out / COMFYUI_FILE).write_bytes((out / COMFYUI_FILE).read_bytes()[:-4])
    with pytest.raises(UserError, match="truncated"):
        FillPipeline.from_pretrained(files / "model", dtype="float32", transformer=out)
    save_file({"img_in.weight": np.zeros((3, 3), np.float32)}, out / COMFYUI_FILE)
    with pytest.raises(UserError, match=r"missing: .*wrong shape: img_in\.weight"):
        FillPipeline.from_pretrained(files / "model", dtype="float32", transformer=out)


def test_an_export_replaces_an_earlier_one_and_nothing_else(run, tmp_path, capsys):
    """`--out` a parent of runs, once: the neighbours went with it."""
    runs = tmp_path / "RUNS"
    shutil.copytree(run, runs / "a")
    (runs / "b").mkdir()
    (runs / "b" / "metrics.jsonl").write_text("mine")
    for out in (runs, runs / "a", runs / "a" / "checkpoints", runs / "b"):
        before = sorted(runs.rglob("*"))
        assert cli.main(["export", f"--workdir={runs / 'a'}", f"--out={out}", "--format=comfyui"]) == 2
        assert f"{out} is not empty, and no earlier output" in capsys.readouterr().err
        assert sorted(runs.rglob("*")) == before
    for _ in range(2):
        assert cli.main(["export", f"--workdir={runs / 'a'}", f"--out={tmp_path / 'out'}"]) == 0
    assert cli.main(["export", f"--workdir={runs / 'a'}", f"--out={runs / 'a' / 'checkpoints' / 'mine'}"]) == 2
    assert "lies among the run's checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no run", "no policy", "no checkpoint", "out is a file"])
def test_what_can_not_be_exported_is_one_sentence(run, tmp_path, capsys, damage):
    workdir, out = tmp_path / "workdir", tmp_path / "out"
    message = {
        "no run": "holds no run with checkpoints",
        "no policy": "trained no fill model",
        "no checkpoint": "has no finished checkpoint yet",
        "out is a file": "is a file",
    }[damage]
    if damage != "no run":
        (workdir / "checkpoints").mkdir(parents=True)
        config = {} if damage == "no policy" else json.loads((run / "config.json").read_text())
        (workdir / "config.json").write_text(json.dumps(config))
    if damage == "out is a file":
        out.write_text("")
    assert cli.main(["export", f"--workdir={workdir}", f"--out={out}"]) == 2
    assert message in capsys.readouterr().err
    assert out.is_file() == (damage == "out is a file")
