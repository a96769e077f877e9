"""After a power cut a run goes on from the newest checkpoint that was reported finished, or from a newer one.

Three ways to see it. From the order of a saving program's system calls, as strace records them from outside (functions
patched in Python would miss what TensorStore writes). From the states of the disk that those calls allow a power cut to
leave. From copies of a mounted file system's image, taken while a program saves in it: nothing of ours is between the
program and the disk then.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.data.preferences.folder import Folder
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import power_cuts, saving_program
from tests.support.hostile import Trials
from tests.support.power_cuts import Directory, File
from tests.support.saving_program import EVERY, KEEP, state

SAVES, PARTS = 4, 3
PROGRAM = ["-m", "tests.support.saving_program"]
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),  # of the tests
}
IMAGE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recorded")
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    root = directory / "root"
    root.mkdir()
    command = [*PROGRAM, str(root / "run"), str(SAVES), str(PARTS)]
    return power_cuts.record(root, directory / "trace", command, ENVIRONMENT)


def newest(said: list[str], what: str) -> int:
    """The number of the last thing of a kind that was reported finished."""
    return max((int(line.split()[1]) for line in said if line.startswith(f"{what} ")), default=0)


def check_run(workdir: Path, said: list[str]) -> None:
    """Asserts that a run goes on from what was reported, or from what is newer, without a word of damage."""
    checkpoints, reported = workdir / "checkpoints", newest(said, "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpointer = Checkpointer(checkpoints, KEEP)
        restored = checkpointer.restore_latest(jax.eval_shape(lambda: state(0)))
        step = 0
        if restored is not None:
            step, found, data_state = restored
            assert data_state == {"next": step}
            jax.tree.map(np.testing.assert_array_equal, found, state(step))
        assert step >= reported, f"restored step {step}, reported {reported}"
        with MetricsWriter(workdir, step, tensorboard=False) as writer:
            writer.write(step + 1, {})
        assert [line["step"] for line in read_metrics(writer.path)] == list(range(1, step + 2))
        checkpointer.save(step + EVERY, state(step + EVERY), {})
        checkpointer.wait()
    steps = {path.name.removesuffix(".json") for path in checkpoints.iterdir()}
    assert len(steps) <= KEEP, steps
    assert not any("." in name for name in steps), steps


def check_parts(workdir: Path, said: list[str]) -> None:
    """Asserts that preference data, references and exports are there from when it was said, and whole or not at all."""
    data = Folder(workdir / "data") if (workdir / "data").exists() else ()
    assert len(data) >= newest(said, "part")
    for index, record in enumerate(data):
        assert record == saving_program.record(index + 1)
    cache = saving_program.cache(workdir)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(1, PARTS + 1):
            entry = cache.read(number)
            assert entry is not None or number > newest(said, "reference")
            assert entry is None or (entry == saving_program.image(number)).all()
    export, reported = workdir / "export", newest(said, "export")
    if not export.exists() and (workdir / ".export.replaced").exists():
        export = workdir / ".export.replaced"  # the next export brings it back
    assert export.exists() or not reported
    if export.exists():
        number = int((export / "sub" / "config").read_text())
        assert number >= reported
        assert (export / "weights").read_bytes() == bytes([number]) * 5000
    with atomic_directory(workdir / "export") as partial:
        (partial / "weights").touch()
    assert sorted(path.name for path in (workdir / "export").iterdir()) == [".onereward.json", "weights"]


# --------------------------------------------------------------------------------------- the order of system calls


def below(node: Directory) -> Iterator[File | Directory]:
    for inner in node.names.values():
        yield inner
        if isinstance(inner, Directory):
            yield from below(inner)


def change_of(directory: Directory, name: str, there: bool) -> int:
    """The moment at which a name came to its last meaning, or went."""
    return max(at for at, change in directory.changes if name in change and (change[name] is not None) == there)


def last_change(node: File | Directory) -> int:
    return max((change[0] for change in (node.writes if isinstance(node, File) else node.changes)), default=-1)


def test_a_step_is_on_the_disk_before_its_manifest_and_older_ones_go_after_it(recording):
    checkpoints = recording.find("run/checkpoints")
    assert isinstance(checkpoints, Directory)
    assert power_cuts.synced(recording.find("run"), 1 << 60) > change_of(recording.find("run"), "checkpoints", True)
    kept = [f"step_{EVERY * number:08d}" for number in range(SAVES - KEEP + 1, SAVES + 1)]
    assert sorted(checkpoints.names) == sorted([*kept, *(f"{name}.json" for name in kept)])
    for name in kept:
        step, manifest = checkpoints.names[name], checkpoints.names[f"{name}.json"]
        assert isinstance(step, Directory)
        assert sum(isinstance(node, File) for node in below(step)) >= 8
        marked = change_of(checkpoints, f"{name}.unfinished", True)
        began = change_of(checkpoints, f"{name}.orbax-checkpoint-tmp", True)
        assert marked < power_cuts.synced(checkpoints, began) < began
        published = change_of(checkpoints, f"{name}.json", True)
        for node in (*below(step), step, manifest):
            assert last_change(node) <= power_cuts.synced(node, published), name
        assert change_of(checkpoints, name, True) < power_cuts.synced(checkpoints, published)
        unmarked = change_of(checkpoints, f"{name}.unfinished", False)
        assert published < power_cuts.synced(checkpoints, unmarked)
    for number in range(1, SAVES - KEEP + 1):
        old, new = (f"step_{EVERY * n:08d}" for n in (number, number + KEEP))
        gone = change_of(checkpoints, f"{old}.json", False)
        assert change_of(checkpoints, f"{new}.json", True) < power_cuts.synced(checkpoints, gone)
        assert gone < power_cuts.synced(checkpoints, change_of(checkpoints, old, False))


# ------------------------------------------------------------------------------------- the states that it may leave


def test_every_state_that_a_power_cut_may_leave_is_gone_on_from(recording, tmp_path):
    trials = Trials("power cuts, states of the disk", short=12, long=300, limit=120.0)
    for trial in trials:
        with trial, failing_assertions(trial):
            moment = int(trial.rng.choice(recording.moments))
            said = recording.leave(tmp_path / str(trial.number), moment, trial.rng)
            check_run(tmp_path / str(trial.number) / "run", said)
            check_parts(tmp_path / str(trial.number) / "run", said)
        shutil.rmtree(tmp_path / str(trial.number))
    trials.check()


@contextlib.contextmanager
def failing_assertions(trial):
    """A trial's `UserError` is a failure here too: whatever a power cut leaves, a run goes on."""
    try:
        yield
    except Exception as error:  # any kind: it is a failed trial, and named
        trial.fail(f"{type(error).__name__}: {str(error)[:300]}")


# ------------------------------------------------------------------------------------- copies of a mounted file system


@contextlib.contextmanager
def mounted(image: Path, directory: Path) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, directory], check=True, capture_output=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture
def image(tmp_path):
    """An ext4 file system in a file."""
    if not (shutil.which("mkfs.ext4") and shutil.which("mount")):
        pytest.skip("mkfs.ext4 or mount is not installed")
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    try:
        with mounted(path, tmp_path / "disk"):
            pass
    except (subprocess.CalledProcessError, PermissionError):
        pytest.skip("no file system may be mounted here")
    return path


def test_copies_of_a_mounted_file_system_are_gone_on_from(image, tmp_path):
    trials = Trials("power cuts, copies of a file system", short=3, long=60, limit=120.0)
    copies = []
    with mounted(image, tmp_path / "disk") as disk:
        command = [sys.executable, *PROGRAM, str(disk / "run"), "1000000"]
        with (tmp_path / "said").open("w") as file:
            program = subprocess.Popen(command, stdout=file, env=ENVIRONMENT)
        try:
            for number in range(trials.count):
                until_next = time.monotonic() + 60
                while len((tmp_path / "said").read_text().splitlines()) <= number and time.monotonic() < until_next:
                    assert program.poll() is None
                    time.sleep(0.01)
                time.sleep(np.random.default_rng(number).uniform(0.0, 0.6))
                program.send_signal(signal.SIGSTOP)
                said = (tmp_path / "said").read_text().splitlines()
                shutil.copyfile(image, tmp_path / f"copy {number}")  # of one moment, as the program stands still
                program.send_signal(signal.SIGCONT)
                copies.append((tmp_path / f"copy {number}", said))
                assert program.poll() is None
        finally:
            program.kill()
            program.wait()
    for trial in trials:
        copy, said = copies[trial.number]
        with trial, failing_assertions(trial), mounted(copy, tmp_path / "after") as disk:
            check_run(disk / "run", said)
        copy.unlink()
    trials.check()
