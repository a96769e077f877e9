"""The training loop in this process: what is logged, saved, resumed and how it stops."""

import fcntl
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from onereward_jax.errors import Interrupted, UserError
from onereward_jax.training import loop
from onereward_jax.training.metrics import read_metrics
from tests.support.counting_run import START, Counter, expected_total, lines, run, step


def test_lines_and_evaluations(tmp_path):
    seen = []
    state = run(tmp_path, evaluate=lambda s: seen.append(int(s.step)) or {"evaluation/x": s.total}, evaluate_every=3)
    assert float(state.total) == expected_total(7)
    assert seen == [3, 6, 7]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    assert [line["step"] for line in lines(tmp_path) if "evaluation/x" in line] == [3, 6, 7]
    for line in lines(tmp_path):
        assert line["learning/loss"] == pytest.approx(expected_total(line["step"]))
        assert line["perf/step_time_seconds"] >= 0
        # Batches 1, 3, 5 have no sample of this reward: it is left out, not null.
        assert ("rewards/fill/structure" in line) == (line["step"] % 2 == 1)


def test_log_every(tmp_path):
    run(tmp_path, log_every=3, num_steps=8)
    assert [line["step"] for line in lines(tmp_path)] == [3, 6, 8]


@pytest.mark.parametrize("first", [3, 4, 6])
def test_goes_on_with_the_next_batch(tmp_path, first):
    """The input has read ahead when the state is saved; the state saved is of the batch consumed."""
    run(tmp_path, num_steps=first)
    assert float(run(tmp_path, num_steps=9).total) == expected_total(9)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 10))


def test_nothing_to_do(tmp_path):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()

    def never(state, batch):
        raise AssertionError("a finished run took a step")

    assert float(run(tmp_path, step=never).total) == expected_total(7)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_fewer_steps_than_are_done(tmp_path):
    loop.run(step=step, start=START, batches=Counter(), num_steps=3, workdir=tmp_path)
    with pytest.raises(UserError, match="step 3"):
        loop.run(step=step, start=START, batches=Counter(), num_steps=2, workdir=tmp_path)


@pytest.mark.parametrize("name", ["learning/loss", "learning/grad_norm"])
def test_divergence_stops_before_the_next_checkpoint(tmp_path, name):
    def diverging(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {name: jnp.where(state.step == 4, jnp.nan, 1.0)}

    with pytest.raises(UserError, match=f"diverged: {name} is nan at step 4"):
        loop.run(
            step=diverging,
            start=START,
            batches=Counter(),
            num_steps=9,
            workdir=tmp_path,
            checkpoint_every=2,
            keep=9,
        )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()) == ["step_00000002"]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 3


def test_one_process_at_a_time(tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError):
            loop.run(step=step, start=START, batches=Counter(), num_steps=2, workdir=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    loop.run(step=step, start=START, batches=Counter(), num_steps=2, workdir=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_first(tmp_path, number):
    def prepare(batch):
        if batch == 4:
            os.kill(os.getpid(), number)
        return batch

    def slow(state, batch):
        time.sleep(0.02)
        return step(state, batch)

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        run(tmp_path, num_steps=100, prepare=prepare, step=slow, checkpoint_every=0)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is handler
    stopped_at = lines(tmp_path)[-1]["step"]
    assert 1 <= stopped_at <= 10
    assert f"at step {stopped_at}" in str(stop.value)
    assert float(run(tmp_path, num_steps=12).total) == expected_total(12)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))


def test_errors_come_through_and_leave_no_thread(tmp_path):
    with pytest.raises(UserError):
        run(tmp_path / "a", batches=Counter(4))

    def broken(batch):
        raise ValueError("prompt too long")

    with pytest.raises(ValueError, match="prompt too long"):
        run(tmp_path / "b", prepare=broken)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("batches", "finish"))]


def test_an_error_keeps_the_checkpoint_before_it(tmp_path):
    def broken_at_5(batch):
        if batch == 5:
            raise RuntimeError("lost")
        return batch

    with pytest.raises(RuntimeError, match="lost"):
        run(tmp_path, prepare=broken_at_5)
    assert json.loads((tmp_path / "checkpoints" / "step_00000003.json").read_text())["step"] == 3
    assert float(run(tmp_path).total) == expected_total(7)


def test_metrics_are_read_one_step_late(tmp_path, monkeypatch):
    """Step n + 1 is launched before the metrics of step n are fetched."""
    events = []
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: events.append("fetch") or fetch(tree))
    run(
        tmp_path, step=lambda state, batch: events.append("step") or step(state, batch), num_steps=4, checkpoint_every=0
    )
    assert events == ["step", "step", "fetch", "step", "fetch", "step", "fetch", "fetch"]


def test_a_run_that_goes_on_never_makes_its_first_state(tmp_path):
    run(tmp_path, num_steps=3)

    def never():
        raise AssertionError("the first state was made beside the restored one")

    assert float(run(tmp_path, num_steps=4, start=START._replace(make=never)).total) == expected_total(4)


def test_what_is_printed(tmp_path, capsys):
    run(tmp_path, num_steps=5, description="judge")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("judge: step 1/5 · loss 0 · reward 0 · ")
    assert printed[-1].startswith("judge: step 5/5 · loss ")
    run(tmp_path, num_steps=6, description="judge")
    assert "judge: going on from step 5 of 6" in capsys.readouterr().err
