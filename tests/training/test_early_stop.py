"""A run that its evaluations end: at a good state, whatever kills it, and on again when that is switched off."""

import dataclasses
import json
import threading

import pytest

from onereward_jax.config.schema import Alarms, PolicyTraining
from onereward_jax.errors import UserError
from onereward_jax.evaluation.alarms import AlarmWatch
from onereward_jax.training import early_stop, loop
from tests.support.counting_run import expected_total, lines, run, step

STOPPING = PolicyTraining(stop_on_alarm=True)


def measure(state):
    """Good at the updates up to 4; from then on the judges differ."""
    step = int(state.step)
    return {"evaluation/gain": step / 100, "evaluation/image_fill/judge_gap": 0.5 if step > 4 else 0.0}


def begin(workdir, training=STOPPING, num_steps=20, **more):
    watch = AlarmWatch(Alarms(), dataclasses.replace(training, num_steps=num_steps), workdir, every=2)
    options = {"evaluate": measure, "evaluate_every": 2, "checkpoint_every": 0, "keep": 1, "watch": watch}
    return run(workdir, num_steps=num_steps, **options | more), watch


def checkpoints(workdir):
    return sorted(int(path.stem.removeprefix("step_")) for path in (workdir / "checkpoints").glob("step_*.json"))


def never(state, batch):
    raise AssertionError("a run that has ended took a step")


def test_a_run_ends_with_its_last_good_state(tmp_path, capsys):
    state, watch = begin(tmp_path)
    assert (float(state.total), watch.stop.step, watch.stop.at) == (expected_total(4), 4, 8)
    assert early_stop.recorded(tmp_path) == watch.stop
    assert checkpoints(tmp_path) == [4, 8]  # the good one, and the newest, from which it may go on
    assert [line["alarms/judge_gap"] for line in lines(tmp_path) if "alarms/judge_gap" in line] == [0, 0, 1, 2]
    assert "beyond limits" in capsys.readouterr().err

    # The same command says the same, and takes no step.
    state, watch = begin(tmp_path, step=never)
    assert (float(state.total), watch.stop.at) == (expected_total(4), 8)
    # Without it the run goes on from where it was, and what says that it has ended is gone.
    state, watch = begin(tmp_path, PolicyTraining(), num_steps=11)
    assert float(state.total) == expected_total(11)
    assert early_stop.recorded(tmp_path) is None
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 12))


@pytest.mark.parametrize("moment", ["record", "restore", "save"])
def test_a_run_that_is_killed_while_it_ends(tmp_path, monkeypatch, moment):
    """Before the newest checkpoint is there, before the record, before the good state is."""

    def die(*_, **__):
        raise KeyboardInterrupt

    class Dies(loop.Checkpointer):
        def restore_latest(self, shapes, at_most=None):
            return die() if moment == "restore" and at_most is not None else super().restore_latest(shapes, at_most)

        def save(self, step, *more):
            return die() if moment == "save" and step == 8 else super().save(step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Checkpointer", Dies)
        if moment == "record":
            patch.setattr(loop, "record", lambda _, stop: die() if stop else None)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path)
    state, watch = begin(tmp_path)
    assert (float(state.total), watch.stop.step, watch.stop.at) == (expected_total(4), 4, 8)
    assert checkpoints(tmp_path) == [4, 8]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))


def test_a_run_without_gain_ends_with_its_best_state(tmp_path):
    falls = lambda state: {"evaluation/gain": -abs(int(state.step) - 4) / 10 + 1}
    state, watch = begin(tmp_path, PolicyTraining(stop_without_gain=2), evaluate=falls)
    assert (float(state.total), watch.stop.step, watch.stop.at) == (expected_total(4), 4, 8)


def test_a_run_that_was_never_good_ends_with_the_base(tmp_path):
    state, _ = begin(tmp_path, evaluate=lambda state: measure(state) | {"evaluation/image_fill/judge_gap": 0.5})
    assert float(state.total) == 0
    assert json.loads((tmp_path / "stopped.json").read_text())["step"] == 0


def test_a_good_state_that_was_not_kept_is_missed(tmp_path):
    begin(tmp_path, PolicyTraining(), num_steps=10)
    assert checkpoints(tmp_path) == [10]
    with pytest.raises(UserError, match="no whole checkpoint of that step"):
        begin(tmp_path)
    assert checkpoints(tmp_path) == [10]
    assert early_stop.recorded(tmp_path) is None


def test_a_good_state_is_kept_though_its_updates_were_skipped(tmp_path):
    def skips(state, batch):
        new, metrics = step(state, batch)
        if int(state.step) not in (2, 3):
            return new, metrics
        return state.replace(step=new.step), metrics | {"learning/skipped": 1}

    with pytest.warns(RuntimeWarning, match="is skipped"):
        state, watch = begin(tmp_path, step=skips)
    assert (float(state.total), watch.stop.step, watch.stop.at) == (expected_total(2), 4, 8)
    assert checkpoints(tmp_path) == [4, 8]


def test_a_good_state_is_kept_until_the_next_one_is_saved(tmp_path, monkeypatch):
    seen, asked = [], threading.Event()

    class Slow(loop.Checkpointer):
        """Whose saves end when the next one waits for them."""

        def wait(self):
            asked.set()
            super().wait()
            asked.clear()

        def _delete_old(self):
            asked.wait(60)
            super()._delete_old()
            seen.append(self.steps())

    monkeypatch.setattr(loop, "Checkpointer", Slow)
    begin(tmp_path, num_steps=4, checkpoint_every=3)
    assert seen == [[2], [2, 3], [4]]


def test_a_run_that_was_made_longer_ends_as_an_undisturbed_one(tmp_path):
    found = lambda workdir: [line for line in lines(workdir) if line["step"] in (2, 4, 6, 8)]
    begin(tmp_path / "longer", num_steps=5)  # with an evaluation at step 5, which is beyond a limit
    _, watch = begin(tmp_path / "longer")
    _, undisturbed = begin(tmp_path / "whole")
    assert watch.stop == undisturbed.stop
    of = lambda name: [{key: x for key, x in line.items() if "perf/" not in key} for line in found(tmp_path / name)]
    assert of("longer") == of("whole")


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / early_stop.FILE).write_text('{"step": 5, "at": 3, "reason": "", "is_alarm": true}')
    with pytest.raises(UserError, match=r"stopped\.json"):
        early_stop.recorded(tmp_path)
    (tmp_path / early_stop.FILE).write_text('{"step": 5}')
    with pytest.raises(UserError, match=r"stopped\.json"):
        early_stop.recorded(tmp_path)
