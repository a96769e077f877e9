"""`onereward train-judge` on a user's data of many sizes, killed and started again: the same judge, bit for bit."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.tasks import TASKS, dimensions_of
from tests.support.chain import JUDGE
from tests.support.killed_command import finish, kill_after, start, steps
from tests.support.preference_examples import picture

STEPS = 8


def overrides(data):
    return JUDGE | {
        "judge.vision_config.depth": 2,
        "judge.data": f"({str(data)!r},)",
        "judge.bad_share": 0.1,
        "judge.image_step": 16,
        "judge.held_out_share": 0.3,
        "judge.evaluate_every": 1,
        "judge.keep_best": True,
        "judge.ema_decay": 0.5,
        "judge.questions_per_pair": 1,
        "optimizer.warmup_steps": 1,
        "train.num_steps": STEPS,
        "train.batch_size": 2,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of two shapes in every task, one of them of two sizes; and a bad record."""
    made = []
    for number in range(40):
        task = TASKS[number % 4]
        sizes = ((32, 32), (32, 32)) if number % 8 < 4 else ((33, 50), (30, 30))
        candidates = tuple(Candidate(picture(2 * number + i, *size)) for i, size in enumerate(sizes))
        dimension = dimensions_of(task)[number // 4 % len(dimensions_of(task))]
        made.append(
            Record(str(number), task, "circle", candidates, pairs=(Preference(dimension, number % 2, 1 - number % 2),))
        )
    folder = tmp_path_factory.mktemp("data") / "mine"
    write_records(folder, iter(made), "folder")
    with (folder / "preferences.jsonl").open("a") as file:
        file.write("{torn\n")
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An undisturbed run, and what it said."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(begin(overrides(data), workdir, tmp_path_factory))


def begin(fields, workdir, tmp_path_factory):
    return start("train-judge", "miniature/judge", fields, workdir, tmp_path_factory.getbasetemp() / "compiled")


def test_what_is_bad_or_rare_is_said(whole):
    workdir, said = whole
    assert "preferences.jsonl, line 41: it is no JSON" in said
    assert "pairs of 2 shapes: each compiles a program of its own" in said
    balance = json.loads((workdir / "balance.json").read_text())
    counted = sum(count for part in balance.values() for cells in part.values() for count in cells.values())
    assert counted == 40
    assert sum(balance["held_out"]["object_removal"].values()) > 0


def test_killed_run_keeps_the_same_best_judge(data, whole, tmp_path_factory):
    whole, killed = whole[0], tmp_path_factory.mktemp("killed")
    _, first = kill_after(begin(overrides(data), killed, tmp_path_factory), killed, 4)
    assert not (killed / "export").exists()
    assert f"going on from step {first} of {STEPS}" in finish(begin(overrides(data), killed, tmp_path_factory))
    assert [line["step"] for line in steps(killed)] == list(range(1, STEPS + 1))
    assert steps(killed) == steps(whole)
    best = json.loads((whole / "best.json").read_text())
    measured = {line["step"]: line["judge/held_out/accuracy"] for line in steps(whole)}
    assert best["accuracy"] == max(measured.values()) == measured[best["step"]]
    assert best["step"] == min(step for step, accuracy in measured.items() if accuracy == best["accuracy"])
    assert json.loads((killed / "best.json").read_text()) == best
    assert [path.name for path in (killed / "best").glob("*.json")] == [f"step_{best['step']:08d}.json"]
    weights = [(workdir / "export" / "model.safetensors").read_bytes() for workdir in (whole, killed)]
    assert weights[0] == weights[1]


def test_a_frozen_vision_tower_stays(data, whole, tmp_path_factory):
    """A second run goes on from the first without an average; tests/runs/test_chain.py trains towers that are free."""
    first, workdir = whole[0] / "export", tmp_path_factory.mktemp("frozen")
    changes = {"judge.keep_best": False, "judge.evaluate_every": 0, "judge.ema_decay": 0.0, "train.num_steps": 2}
    changes |= {"judge.image_step": 64, "judge.start": first, "judge.freeze_vision": True}  # all of one shape
    finish(begin(overrides(data) | changes, workdir, tmp_path_factory))
    before, after = (load_file(export / "model.safetensors") for export in (first, workdir / "export"))
    assert {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])} == {"model"}
