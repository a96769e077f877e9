"""What happens to a run on its way: a full disk, a directory that is gone, a loss that is none, a loader that hangs.

The disk is full by RLIMIT_FSIZE: beyond so many bytes of a file the system refuses to write, to Python and to Orbax's
own threads alike.
"""

import contextlib
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.errors import Fault, Hang, UserError
from onereward_jax.training.checkpoint import Checkpointer, CheckpointWarning, SaveError
from onereward_jax.training.compile import Start
from onereward_jax.training.metrics import MetricsWriter, read_metrics
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state, supervised_step
from tests.support.counting_run import Counter, expected_total, initial, lines, run, step

FULL_AT = 16384  # bytes


@pytest.fixture
def disk():
    """`disk.fill()` and `disk.empty()`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Disk:
        def fill(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT, hard))

        def empty(self):
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield Disk()
    Disk().empty()


def large():
    """A state whose arrays are larger than what the full disk takes."""
    return initial().replace(key=jax.random.normal(jax.random.key(0), (2 * FULL_AT,)))


LARGE = Start(jax.eval_shape(large), large)


def at(actions):
    """An evaluation, which is made before the checkpoint of its step is, that does something at some steps."""

    def evaluate(state):
        actions.get(int(state.step), lambda: None)()
        return {}

    return {"evaluate": evaluate, "evaluate_every": 1}


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------------- a full disk


def test_a_save_that_fails_is_a_warning_and_the_next_one_is_made(tmp_path, disk):
    directory = tmp_path / "checkpoints"

    def fill():
        until(lambda: (directory / "step_00000002.json").exists())
        disk.fill()

    def make_room():
        until(lambda: not (directory / "step_00000004.unfinished").exists())
        disk.empty()

    with pytest.warns(CheckpointWarning, match="step 4"):
        state = run(tmp_path, 8, start=LARGE, checkpoint_every=2, keep=9, **at({4: fill, 5: make_room}))
    assert float(state.total) == expected_total(8)
    assert names(tmp_path) == sorted(f"step_0000000{n}{end}" for n in (2, 6, 8) for end in ("", ".json"))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))


def test_a_last_save_that_fails_ends_the_run(tmp_path, disk):
    def fill():
        until(lambda: (tmp_path / "checkpoints" / "step_00000003.json").exists())
        disk.fill()

    with pytest.raises(Fault, match=r"step 6 .* step 3") as stop:
        run(tmp_path, 6, start=LARGE, **at({6: fill}))
    disk.empty()
    assert stop.value.code == 75
    assert names(tmp_path) == ["step_00000003", "step_00000003.json"]
    assert float(run(tmp_path, 6, start=LARGE).total) == expected_total(6)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 7))


def test_a_working_directory_that_vanishes_is_not_made_anew(tmp_path):
    def vanish():
        saved = tmp_path / "run" / "checkpoints" / "step_00000002.json"
        until(lambda: saved.exists() and not saved.with_suffix(".unfinished").exists())
        shutil.rmtree(tmp_path / "run")

    with pytest.warns(CheckpointWarning, match="step 4"), pytest.raises(Fault, match="step 6"):
        run(tmp_path / "run", 6, checkpoint_every=2, **at({3: vanish}))
    assert list(tmp_path.iterdir()) == []


def test_lines_wait_for_room(tmp_path, disk):
    with MetricsWriter(tmp_path) as writer:
        disk.fill()
        with pytest.warns(RuntimeWarning, match="File too large") as caught:
            deque((writer.write(number, {"learning/loss": 1 / number}) for number in range(1, 2001)), 0)
        assert len(caught) == 1
        with pytest.raises(OSError, match="File too large"):
            writer.sync()
        assert (tmp_path / "metrics.jsonl").stat().st_size == FULL_AT
        disk.empty()
        writer.write(2001, {"learning/loss": 0.5})
        writer.sync()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 2002))
    assert len(list((tmp_path / "tensorboard").iterdir())) > 1  # a file ends where the disk is full


def test_an_evaluation_that_finds_no_room_is_left_out_unless_it_is_the_last(tmp_path):
    def evaluate(state):
        if int(state.step) in (2, 6):
            raise OSError(28, "No space left on device")
        return {"evaluation/x": 1.0}

    with pytest.warns(RuntimeWarning, match="No space left"), pytest.raises(OSError, match="No space left"):
        run(tmp_path, 6, evaluate=evaluate, evaluate_every=2)
    assert [line["step"] for line in lines(tmp_path) if "evaluation/x" in line] == [4]
    assert names(tmp_path) == ["step_00000003", "step_00000003.json"]  # the next start evaluates


# ------------------------------------------------------------------------------------------- a directory that is gone


def test_a_directory_that_is_gone_for_a_while(tmp_path):
    directory, away = tmp_path / "run" / "checkpoints", tmp_path / "away"
    seen = []

    def unmount():  # a mount point is an empty directory
        directory.mkdir()

    def mount():
        seen.append(list(directory.iterdir()))
        directory.rmdir()
        away.rename(directory)

    actions = {
        3: lambda: until(lambda: names(tmp_path / "run") == ["step_00000002", "step_00000002.json"]),  # and no marker
        4: lambda: directory.rename(away),
        5: lambda: seen.append(directory.exists()),
        6: unmount,
        7: mount,
    }
    with pytest.warns(CheckpointWarning) as caught:
        state = run(tmp_path / "run", 8, checkpoint_every=2, keep=9, **at(actions))
    assert seen == [False, []]
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    for number, words in zip((4, 6), said, strict=True):
        assert f"step {number} could not be saved in {directory} (The checkpoints that were there are gone)" in words
    assert float(state.total) == expected_total(8)
    assert names(tmp_path / "run") == sorted(f"step_0000000{n}{end}" for n in (2, 8) for end in ("", ".json"))


def test_what_is_left_where_it_was_gone_is_removed_by_the_next_save(tmp_path):
    directory, away, state = tmp_path / "checkpoints", tmp_path / "away", {"a": jnp.ones(3)}
    checkpointer = Checkpointer(directory)
    checkpointer.save(1, state)
    checkpointer.wait()
    checkpointer.save(2, state)
    directory.rename(away)
    with contextlib.suppress(SaveError):  # it may have been quick
        checkpointer.wait()
    away.rename(directory)
    checkpointer.save(3, state)
    checkpointer.wait()
    assert 3 in checkpointer.steps()
    assert all(path.name.partition(".")[2] in ("", "json") for path in directory.iterdir())


def test_a_start_without_its_checkpoints_is_refused(tmp_path):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    with pytest.raises(UserError):
        run(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert not (tmp_path / "checkpoints").exists()


# --------------------------------------------------------------------------------------------- numbers that are none


def line_fit():
    """A step and its first state; a batch is (x, y)."""

    def loss(params, frozen, batch, key):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2), {}

    optimizer = make_optimizer(1e-2, warmup_steps=3, weight_decay=0.01)
    params = {"w": np.ones((3, 2), np.float32)}
    jitted = jax.jit(supervised_step(loss, optimizer, 0.9), donate_argnums=0)
    return lambda state, batch: jitted(state, None, batch), create_state(params, optimizer, 0)


def samples(count):
    generator = np.random.default_rng(0)
    return [tuple(generator.normal(size=(4, n)).astype(np.float32) for n in (3, 2)) for _ in range(count)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e25])  # the last has a finite square, and a gradient's norm has not
def test_an_update_without_numbers_changes_nothing_but_the_step(wrong):
    good, (update, state) = samples(6), line_fit()
    bad = (np.full((4, 3), wrong, np.float32), good[0][1])
    for number, batch in enumerate([*good[:3], bad, *good[3:]]):
        state, metrics = update(state, batch)
        assert int(metrics["learning/skipped"]) == (number == 3)
        assert (float(metrics["learning/update_norm"]) == 0) == (number in (0, 3))  # the first has no rate yet
    update, undisturbed = line_fit()
    for batch in good:
        undisturbed, _ = update(undisturbed, batch)
    assert (int(state.step), int(undisturbed.step)) == (7, 6)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(undisturbed, name))


def skipping(*bad):
    """`step` of tests.support.counting_run, which skips some steps."""

    @jax.jit
    def skip(state, batch):
        new, metrics = step(state, batch)
        wrong = jnp.isin(new.step, jnp.array(bad))
        total = jnp.where(wrong, state.total, new.total)
        return new.replace(total=total), metrics | {
            "learning/loss": jnp.where(wrong, jnp.nan, 1.0),
            "learning/skipped": wrong.astype(jnp.int32),
        }

    return skip


def test_skipped_updates_are_counted(tmp_path):
    with pytest.warns(RuntimeWarning) as caught:
        run(tmp_path, 9, step=skipping(4, 5, 7), max_skipped=2, log_every=5)
    assert [str(w.message) for w in caught] == [
        f"learning/loss is nan at step {number}: the update is skipped" for number in (4, 5, 7)
    ]
    written = {line["step"]: line for line in lines(tmp_path)}
    assert {number: line["learning/skipped"] for number, line in written.items()} == {4: 1, 5: 1, 7: 1, 9: 0}
    assert "learning/loss" not in written[4]


@pytest.mark.filterwarnings("ignore:learning/loss is nan:RuntimeWarning")
def test_too_many_in_a_row_end_the_run_with_the_last_good_state(tmp_path):
    settings = {"step": skipping(*range(6, 13)), "max_skipped": 2, "checkpoint_every": 2, "keep": 2}
    with pytest.raises(UserError, match=r"max_skipped.*step 8"):
        run(tmp_path, 14, **settings)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    number, saved, data_state = checkpointer.restore_latest(initial())
    assert (number, float(saved.total), data_state["next"]) == (6, expected_total(5), 6)
    before = checkpointer.steps()
    with pytest.raises(UserError, match="max_skipped"):
        run(tmp_path, 14, **settings)
    assert checkpointer.steps() == before  # what learnt nothing drives nothing out
    run(tmp_path, 14, **settings | {"max_skipped": 7})
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 15))


@pytest.mark.filterwarnings("ignore:learning/loss is nan:RuntimeWarning")
@pytest.mark.parametrize("checkpoint_every", [2, 5, 100])
def test_one_good_update_after_too_many_does_not_save_the_run(tmp_path, checkpoint_every):
    """Whether or not a checkpoint was due while that one was launched."""
    settings = {"step": skipping(6, 7, 8), "max_skipped": 2, "checkpoint_every": checkpoint_every}
    with pytest.raises(UserError, match="max_skipped"):
        run(tmp_path, 14, **settings)


@pytest.mark.filterwarnings("ignore:learning/loss is nan:RuntimeWarning")
def test_a_run_that_is_lost_at_its_last_step_is_not_done(tmp_path):
    settings = {"step": skipping(4, 5, 6), "max_skipped": 2, "checkpoint_every": 100}
    with pytest.raises(UserError, match="max_skipped"):
        run(tmp_path, 6, **settings)
    assert 6 not in Checkpointer(tmp_path / "checkpoints").steps()


# ------------------------------------------------------------------------------------------------ a loader that hangs


def test_a_loader_that_hangs_ends_the_run_with_what_was_learnt(tmp_path):
    released = threading.Event()

    class Hanging(Counter):
        def __next__(self):
            if self.position == 4:
                released.wait()
            return super().__next__()

    with pytest.raises(Hang, match=r"step 4 .data\.loader_timeout") as stop:
        run(tmp_path, batches=Hanging(), data_timeout=0.3)
    released.set()
    assert stop.value.code == 75
    assert Checkpointer(tmp_path / "checkpoints").steps() == [3, 4]
    assert float(run(tmp_path).total) == expected_total(7)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "batches"])


def test_a_hang_does_not_keep_the_process(tmp_path):
    """Python waits for the threads of an executor, whatever they do."""
    script = (
        "import sys, threading, concurrent.futures\n"
        "from onereward_jax import errors\n"
        "from onereward_jax.cli.exit_codes import guarded\n"
        "def run():\n"
        "    concurrent.futures.ThreadPoolExecutor().submit(threading.Event().wait)\n"
        "    raise errors.Hang('a loader hangs')\n"
        "sys.exit(guarded(run))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (75, "onereward: a loader hangs\n")
