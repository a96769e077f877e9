"""`onereward check`: each figure goes or does not, whatever failed before it.

Its run is a stand-in that writes what a run writes; parity is in tests/parity/test_official_answers.py.
"""

import json

import jax
import numpy as np
import pytest

from benchmarks.official_answers import write_answers
from onereward_jax.cli.main import main
from onereward_jax.errors import UserError
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.judge.judge import Judge
from onereward_jax.runs import check, reward_feedback
from tests.support import tiny_judge

GIB = 2**30
PLAN = {"peak_gib": 10.0, "seconds": {"update": 1.5}}


class Device:
    device_kind = "TPU v5e"

    def __init__(self, peak=9.0):
        self._stats = {"bytes_limit": 15.75 * GIB, "peak_bytes_in_use": peak * GIB}

    def memory_stats(self):
        return self._stats


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Runs the command; gives its exit code and {name: (verdict, figure)}."""
    monkeypatch.setattr(Judge, "from_pretrained", lambda *_, **__: tiny_judge.judge())
    opened = FillPipeline.from_pretrained
    monkeypatch.setattr(FillPipeline, "from_pretrained", lambda *_, **__: None)
    gradient = check.FirstContact._gradient  # compiled anew in each check
    monkeypatch.setattr(check.FirstContact, "_gradient", lambda contact: ("not asked", True))
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))

    def run(*words, before=1.0, peak=9.0, workdir="w", **metrics):
        def train(config, directory):
            monkeypatch.setattr(jax, "local_devices", lambda: [Device(peak)])
            if metrics.get("fails"):
                raise UserError("the weights do not fit: take others")
            file = directory / "metrics.jsonl"
            start = len(file.read_text().splitlines()) if file.exists() else 0
            usual = {"learning/loss": 0.5, "learning/grad_norm": 2.0, "learning/skipped": 0}
            usual |= {"perf/step_time_seconds": 3.0, "evaluation/image_fill/preference": 0.5}
            with file.open("a") as lines:
                for step in range(start + 1, config.train.num_steps + 1):
                    if step != metrics.get("lost"):
                        lines.write(json.dumps({"step": step} | usual | metrics.get("values", {})) + "\n")

        monkeypatch.setattr(reward_feedback, "train", train)
        monkeypatch.setattr(jax, "local_devices", lambda: [Device(before)])
        plan = [f"--plan={tmp_path / 'plan.json'}"]
        code = main(["check", "--config=quick", f"--workdir={tmp_path / workdir}", "--updates=3", *plan, *words])
        told = capsys.readouterr()
        run.err = told.err
        if code == 2:
            return code, {}
        found = json.loads((tmp_path / workdir / "check.json").read_text())
        assert len(told.out.splitlines()) == len(found) + 1
        return code, {row["name"]: (row["go"], row["figure"]) for row in found}

    run.directory, run.gradient, run.opened = tmp_path, gradient, opened
    return run


def test_all_goes_and_what_can_not_be_made_is_said(checked, monkeypatch):
    monkeypatch.setattr(check.FirstContact, "_gradient", checked.gradient)
    code, found = checked()
    assert code == 0
    skipped = [name for name, (go, _) in found.items() if go is None]
    assert skipped == ["fill beside diffusers", "judge beside transformers"]
    assert found["3 updates"] == (True, "3 updates, 0 skipped, 3.00 s an update (plan: at least 1.50)")
    assert found["memory"] == (True, "peak 9.00 of 15.75 GiB, plan 10.00")
    assert found["resume"] == (True, "updates 1 to 5")
    assert found["first evaluation"] == (True, "image_fill/preference 0.5000")
    assert "raises it by +0.1" in found["judge's gradient"][1]
    # An earlier check's run makes place for a new one.
    monkeypatch.setattr(check.FirstContact, "_gradient", lambda contact: ("falls", False))
    assert checked()[0] == 3
    assert checked()[1]["3 updates"][0]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"values": {"learning/skipped": 1}}, {"3 updates"}),
        ({"values": {"learning/loss": None}}, {"3 updates"}),
        ({"values": {"learning/grad_norm": 0.0}}, {"policy's gradient"}),
        ({"values": {"evaluation/image_fill/preference": None}}, {"first evaluation"}),
        ({"peak": 10.6}, {"memory"}),  # over the plan
        ({"lost": 4}, {"resume"}),
        ({"fails": True}, {"3 updates", "policy's gradient", "memory", "resume", "first evaluation"}),
    ],
)
def test_each_figure_can_be_a_no_go(checked, changes, refused):
    code, found = checked(**changes)
    assert code == 3
    assert {name for name, (go, _) in found.items() if go is False} == refused
    if "fails" in changes:
        assert found["3 updates"][1] == "the weights do not fit: take others"


def test_memory_that_other_checks_took_is_not_the_updates(checked):
    code, found = checked(before=10.6, peak=10.6)
    assert code == 0
    assert "reached by the checks before the updates" in found["memory"][1]


def test_answers_of_another_kind_of_model_are_a_no_go(checked):
    image = np.zeros((16, 16, 3), np.uint8)
    answers = {"first": image[None], "second": image[None], "questions": np.array(["Is it?"])}
    answers |= {"float32": np.float32([1.0]), "bfloat16": np.float32([0.99])}  # nothing that this judge would say
    write_answers(checked.directory / "a.npz", None, answers)
    code, found = checked(f"--answers={checked.directory / 'a.npz'}")
    assert code == 3
    assert found["judge beside transformers"][0] is False
    assert found["fill beside diffusers"] == (None, f"{checked.directory / 'a.npz'} has no answers of this part")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04torn", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_answers_and_no_plan(checked, content):
    for option in ("answers", "plan"):
        file = checked.directory / "given"
        file.write_bytes(content)
        assert checked(f"--{option}={file}", workdir="none")[0] == 2
        assert checked.err.count("\n") == 1
        assert not (checked.directory / "none" / check.RUN).exists()


def test_what_can_not_be_opened_is_no_no_go(checked, monkeypatch):
    monkeypatch.setattr(FillPipeline, "from_pretrained", checked.opened)
    for wrong in ("data.source", "model.base"):
        assert checked(f"--config.{wrong}={checked.directory / 'nothing'}")[0] == 2
        assert checked.err.count("\n") == 1
        assert str(checked.directory / "nothing") in checked.err
    assert not (checked.directory / "w").exists()


def test_another_runs_directory_is_left_alone(checked):
    kept = checked.directory / "w/run/kept"
    kept.mkdir(parents=True)
    assert checked()[0] == 2
    assert "is no run of an earlier check" in checked.err
    assert kept.exists()
