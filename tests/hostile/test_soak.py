"""A long training in which something happens every 50 updates ends as the undisturbed one; it keeps nothing open.

What happens is told in one sentence, or nothing is lost by it.
"""

import gc
import os
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from onereward_jax.cli.exit_codes import sentence
from onereward_jax.errors import Stopped, UserError
from tests.support import small_training
from tests.support.hostile import LONG, Trials, is_one_sentence
from tests.support.small_training import bytes_of, lines_of

EVERY = 50  # updates between two faults
FULL_AT = 16384  # bytes of a file, on the full disk


class Soak:
    """A training in a directory, disturbed at some steps."""

    def __init__(self, workdir: Path):
        self.workdir, self.checkpoints, self.away = workdir, workdir / "checkpoints", workdir.parent / "away"
        self.at: dict[int, Callable[[], None]] = {}  # what happens before the update after a step, once
        self.broken: Callable[[], None] = lambda: None  # what happens as a sample is made
        self.told: list[str] = []
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def train(self, num_steps: int) -> small_training.TrainState | None:
        """Train up to a step; None if the run ended before, for a reason that is told."""

        def wrap(step):
            def wrapped(state, batch):
                self.at.pop(int(state.step), lambda: None)()
                return step(state, batch)

            return wrapped

        def example(index, task):
            self.broken()
            return small_training.example(index, task)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return small_training.run(self.workdir, num_steps, wrap, example, data_timeout=2.0)
            except (UserError, Stopped) as end:
                self.told.append(sentence(end))
                return None
            finally:
                self.told += [str(warning.message) for warning in caught]

    def fill_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT, self._limits[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def settle(self) -> None:
        """Wait for the checkpoint that is being saved."""
        _until(lambda: not any(thread.name.startswith("finish-") for thread in threading.enumerate()))

    def newest(self) -> Path:
        return max(path for path in self.checkpoints.iterdir() if path.suffix == ".json").with_suffix("")


# Faults: what happens during the updates from `step` on, of a run that goes to a step some 20 later, and after the run
# has ended, if it did, before it is started again.
Faults = dict[str, Callable[[Soak, int, np.random.Generator], Iterator[None]]]
FAULTS: Faults = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


@fault
def the_disk_is_full_for_a_while(soak, step, rng):
    soak.at = {step: soak.fill_disk, step + 12: lambda: (soak.settle(), soak.make_room())}
    yield


@fault
def the_disk_is_full_at_the_end(soak, step, rng):
    soak.at = {EVERY * (step // EVERY + 1) - 1: soak.fill_disk}
    yield
    soak.make_room()


@fault
def the_checkpoints_are_gone_for_a_while(soak, step, rng):
    soak.at = {
        step: lambda: (soak.settle(), soak.checkpoints.rename(soak.away)),
        step + 12: lambda: (soak.settle(), soak.away.rename(soak.checkpoints)),
    }
    yield


@fault
def a_file_is_in_the_checkpoints_place_for_a_while(soak, step, rng):
    soak.at = {
        step: lambda: (soak.settle(), soak.checkpoints.rename(soak.away), soak.checkpoints.write_text("")),
        step + 12: lambda: (soak.settle(), soak.checkpoints.unlink(), soak.away.rename(soak.checkpoints)),
    }
    yield


@fault
def the_metrics_are_removed(soak, step, rng):
    soak.at = {step: (soak.workdir / "metrics.jsonl").unlink}
    yield


@fault
def the_metrics_are_moved_away_and_back(soak, step, rng):
    metrics = soak.workdir / "metrics.jsonl"
    soak.at = {step: lambda: metrics.rename(soak.away), step + 12: lambda: soak.away.rename(metrics)}
    yield


@fault
def a_sample_can_not_be_read(soak, step, rng):
    def broken():
        raise UserError("0.png can't be read any more: bring it back")

    soak.at = {step: lambda: setattr(soak, "broken", broken)}
    yield
    soak.broken = lambda: None


@fault
def a_loader_hangs(soak, step, rng):
    back = threading.Event()
    soak.at = {step: lambda: setattr(soak, "broken", back.wait)}
    yield
    soak.broken = lambda: None
    back.set()


def stopped(soak, step, number=signal.SIGTERM):
    soak.at = {step: lambda: os.kill(os.getpid(), number)}


@fault
def ctrl_c(soak, step, rng):
    stopped(soak, step, signal.SIGINT)
    yield


@fault
def the_newest_checkpoint_has_a_flipped_bit(soak, step, rng):
    stopped(soak, step)
    yield
    files = sorted(path for path in soak.newest().rglob("*") if path.is_file() and path.stat().st_size)
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


@fault
def the_newest_checkpoint_is_torn(soak, step, rng):
    stopped(soak, step)
    yield
    files = sorted(path for path in soak.newest().rglob("*") if path.is_file() and path.stat().st_size)
    os.truncate(files[rng.integers(len(files))], 0)


@fault
def the_newest_manifest_is_no_manifest(soak, step, rng):
    stopped(soak, step)
    yield
    soak.newest().with_suffix(".json").write_text("{")


@fault
def the_newest_checkpoint_has_no_files(soak, step, rng):
    stopped(soak, step)
    yield
    shutil.rmtree(soak.newest())


@fault
def a_line_of_metrics_is_torn(soak, step, rng):
    stopped(soak, step)
    yield
    with (soak.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')


@fault
def a_killed_run_has_left_half_a_checkpoint(soak, step, rng):
    stopped(soak, step)
    yield
    name = f"step_{step + 7:08d}"
    shutil.copytree(soak.newest(), soak.checkpoints / name)
    shutil.copytree(soak.newest(), soak.checkpoints / f"{name}.orbax-checkpoint-tmp")
    for ending in ("unfinished", "json.tmp"):
        (soak.checkpoints / f"{name}.{ending}").write_text("")


@fault
def no_checkpoint_is_whole_until_a_copy_is_put_back(soak, step, rng):
    stopped(soak, step)
    yield
    shutil.copytree(soak.checkpoints, soak.away)
    for manifest in soak.checkpoints.glob("*.json"):
        manifest.write_text("{}")
    assert soak.train(step + EVERY) is None
    shutil.rmtree(soak.checkpoints)
    soak.away.rename(soak.checkpoints)


# What loses nothing need not be told.
SILENT = {
    "the_metrics_are_moved_away_and_back",
    "a_line_of_metrics_is_torn",
    "a_killed_run_has_left_half_a_checkpoint",
}


def test_a_training_in_which_something_happens_every_50_updates(tmp_path):
    trials = Trials("faults in a soak", short=6, long=40, limit=120.0)
    soak, kept_open, number = Soak(tmp_path / "soak"), {}, 0
    for trial in trials:
        number = trial.number
        with trial:
            name = list(FAULTS)[(5 * number) % len(FAULTS)]
            soak.told.clear()
            happening = FAULTS[name](soak, EVERY * number + int(trial.rng.integers(11, 31)), trial.rng)
            next(happening)
            state = soak.train(EVERY * (number + 1))
            next(happening, None)
            for _ in range(2):
                state = state or soak.train(EVERY * (number + 1))
            assert state is not None, soak.told
            assert not soak.at
            assert soak.told or name in SILENT, name
            assert all(map(is_one_sentence, soak.told)), soak.told
            if number > 2:  # everything has been opened once
                _until(lambda: open_now()[:2] == kept_open.setdefault("then", open_now()[:2]))
    with pytest.warns(RuntimeWarning, match="the update is skipped") if number > 3 else warnings.catch_warnings():
        expected = small_training.run(tmp_path / "undisturbed", EVERY * (number + 1))
    assert bytes_of(state) == bytes_of(expected)
    assert lines_of(tmp_path / "soak") == lines_of(tmp_path / "undisturbed")
    left = {path.name for path in soak.checkpoints.iterdir()}
    assert {name.partition(".")[2] for name in left} == {"", "json"}
    assert f"step_{EVERY * (number + 1):08d}.json" in left
    trials.check()


@pytest.mark.filterwarnings("ignore:learning/loss is inf:RuntimeWarning")
def test_memory_and_what_is_open_stay_flat(tmp_path):
    updates, warm = (500, 200) if LONG else (40, 20)
    seen: list[tuple[int, ...]] = []
    memory: list[float] = []

    def look(state):
        _until(lambda: not any(thread.name.startswith("finish-") for thread in threading.enumerate()))
        gc.collect()
        if int(state.step) >= warm:
            seen.append(open_now())
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return {}

    small_training.run(tmp_path, updates, evaluate=look, evaluate_every=5)
    assert set(seen) == {seen[0]}, seen
    assert memory[-1] - memory[0] < 10, memory  # MiB


def open_now() -> tuple[int, int, int]:
    """Descriptors, threads and arrays of this process, the small ones of batches that are read ahead apart."""
    gc.collect()
    arrays = [array for array in jax.live_arrays() if array.nbytes >= 1024]
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(arrays)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
