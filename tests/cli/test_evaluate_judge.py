"""`onereward evaluate-judge` on a user's own data."""

import json

import jax
import numpy as np
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.evaluation.judge_predictions import judge_pairs
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import read_pairs
from onereward_jax.parallel import mesh
from tests.support import tiny_judge
from tests.support.preference_examples import picture

SIZES = ((24, 24), (24, 24), (40, 20))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    made = []
    for number in range(5):
        candidates = tuple(Candidate(picture(10 * number + i, *size)) for i, size in enumerate(SIZES))
        pairs = (Preference("structure", 0, 1), Preference("structure", 2, 0), Preference("aesthetics", 1, 0))
        made.append(Record(str(number), "image_fill", "a cat", candidates, pairs=pairs))
    write_records(directory / "folder", iter(made), "folder")
    with (directory / "folder" / "preferences.jsonl").open("a") as file:
        line = {"id": "poisoned", "task": "image_fill", "prompt": "<|im_end|>", "pairs": []}
        file.write(json.dumps(line | {"candidates": [{"image": "images/preferences/000000-0.png"}] * 2}) + "\n")
    judge = tiny_judge.judge()
    judge.save_pretrained(directory / "judge")
    nan = Judge(judge.model, jax.tree.map(lambda x: x * np.nan, judge.params), judge.tokenizer, judge.settings)
    nan.save_pretrained(directory / "nan")
    return directory


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """For eight, programs take twice as long to compile; tests/multiprocess asks a judge on a mesh."""
    monkeypatch.setattr(mesh, "mesh_of_all", lambda: None)


def evaluate(files, *arguments, model="judge") -> int:
    return cli.main(["evaluate-judge", "--model", str(files / model), "--data", str(files / "folder"), *arguments])


def test_records_are_what_the_judge_says_of_each_pair(files):
    judge = tiny_judge.judge()
    pairs = read_pairs(files / "folder", bad_share=0.2)
    found = judge_pairs(judge, pairs, batch_size=4)
    assert len(found) == 5 * 3
    number = 0
    for pair in pairs:
        first, second = pairs.images(pair)
        for dimension in ("structure", "aesthetics"):
            if dimension not in pair.labels:
                continue
            winner, loser = (first, second) if pair.labels[dimension] > 0 else (second, first)
            ask = lambda a, b, dimension=dimension: judge.compare(a, b, task="image_fill", dimension=dimension)
            task, asked, winner_first, loser_first, better = found[number]
            assert (task, asked, better) == ("image_fill", dimension, None)
            assert (winner_first, loser_first) == pytest.approx((ask(winner, loser), ask(loser, winner)), rel=1e-4)
            number += 1


def test_bad_records_are_named_and_counted(files, capsys):
    assert evaluate(files) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "line 6" in said.err
    assert "1 of 6" in said.err


def test_accuracy_of_a_users_data(files, capsys):
    """Beside a judge of the task's own, here the same one."""
    out, report = files / "new" / "accuracy.json", files / "report"
    own = f"image_fill={files / 'judge'}"
    options = ("--bad_share", "0.2", "--batch_size", "2", "--image_step", "8", "--one_a_task", own)
    assert evaluate(files, *options, "--out", str(out), "--report", str(report)) == 0
    found = json.loads(out.read_text())
    assert found["model"]["cells"]["image_fill"]["structure"]["n"] == 10
    assert found["model"]["cells"]["image_fill"]["aesthetics"]["n"] == 5
    assert found["one_a_task"] == found["model"]
    assert found["differences"]["one_a_task"]["overall"]["difference"] == 0
    assert "image_fill" in capsys.readouterr().out
    assert "one judge − one per task" in (report / "report.html").read_text()
    assert {path.stem for path in (report / "figures").iterdir()} == {"judges", "judge_difference", "calibration"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["image_fil=X"], "'image_fil=X'"),
        (["image_fill"], "TASK=PATH"),
        (["image_fill=A", "image_fill=B"], "two judges of image_fill"),
        (["text_rendering=A"], "no judge of image_fill"),
    ],
)
def test_judges_of_one_task_each_must_be_all_there(files, capsys, given, words):
    assert evaluate(files, "--bad_share", "0.2", "--one_a_task", *given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err


def test_answers_that_are_no_numbers(files, capsys):
    assert evaluate(files, "--bad_share", "0.2", model="nan") == 2
    assert "NaN" in capsys.readouterr().err
