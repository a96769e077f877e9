"""`onereward judge`."""

import json

import numpy as np
import PIL.Image
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.judge.judge import Judge
from tests.support import tiny_judge


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    tiny_judge.judge().save_pretrained(directory / "judge")
    generator = np.random.default_rng(0)
    for name, size in (("a", (32, 24)), ("b", (20, 30))):
        PIL.Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(directory / f"{name}.png")
    return directory


def command(files, **changes):
    arguments = {
        "model": files / "judge",
        "first": files / "a.png",
        "second": files / "b.png",
        "task": "image_fill",
        "dtype": "float32",
    }
    given = [f"--{name}={value}" for name, value in (arguments | changes).items() if value is not True]
    return ["judge", *given, *(f"--{name}" for name, value in changes.items() if value is True)]


def test_all_dimensions_in_both_orders(files, capsys):
    assert cli.main(command(files, prompt="a red circle", both_orders=True)) == 0
    found = json.loads(capsys.readouterr().out)
    judge = tiny_judge.judge()
    first, second = (PIL.Image.open(files / name) for name in ("a.png", "b.png"))
    given = judge.compare_all(first, second, task="image_fill", prompt="a red circle")
    swapped = judge.compare_all(second, first, task="image_fill", prompt="a red circle")
    assert found["p_yes"] == pytest.approx(given)
    assert found["p_yes_swapped"] == pytest.approx(swapped)
    assert found["p_first_is_better"] == pytest.approx({name: (given[name] + 1 - swapped[name]) / 2 for name in given})
    assert (found["task"], found["prompt"], found["first"]) == ("image_fill", "a red circle", str(files / "a.png"))


def test_one_dimension(files, capsys):
    assert cli.main(command(files, dimension="structure")) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = (PIL.Image.open(files / name) for name in ("a.png", "b.png"))
    p_yes = tiny_judge.judge().compare(first, second, task="image_fill", dimension="structure")
    assert found["p_yes"] == pytest.approx({"structure": p_yes})
    assert found.keys() == {"task", "prompt", "first", "second", "p_yes"}


@pytest.fixture(scope="module")
def spoilt(files):
    """Directories in which one thing is wrong."""
    judge = tiny_judge.judge()
    for name in ("no_answers", "other", "nan"):
        params = judge.params
        if name == "nan":
            params = params | {"visual": {**params["visual"], "merger": _nan(params["visual"]["merger"])}}
        Judge(judge.model, params, judge.tokenizer, judge.settings).save_pretrained(files / name)
    tokenizer = files / "no_answers" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"] = []
    tokenizer.write_text(json.dumps(content))
    config = files / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    (files / "words.png").write_text("no picture")
    (files / "half.png").write_bytes((files / "a.png").read_bytes()[:1000])
    return files


def _nan(tree):
    return {name: _nan(x) if isinstance(x, dict) else x * np.nan for name, x in tree.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": "removal_quality"}, "'removal_quality'"),
        ({"dimension": "beauty"}, "'beauty'"),
        ({}, "text_alignment"),
        ({"first": "words.png"}, "words.png is not a readable image"),
        ({"first": "half.png"}, "half.png"),
        ({"second": "none.png"}, "none.png"),
        ({"model": "nothing"}, "nothing"),
        ({"model": "no_answers"}, "'Yes'"),
        ({"model": "other"}, "llama"),
        ({"model": "nan"}, "NaN"),
    ],
)
def test_what_is_wrong_is_one_sentence(spoilt, capsys, changes, message):
    paths = {name: spoilt / value for name, value in changes.items() if name != "dimension"}
    asked = changes if "dimension" in changes else {} if not changes else {"dimension": "structure"}
    assert cli.main(command(spoilt, **asked | paths)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
