"""Checkpoints: round trips bit by bit, every kind of damage, leftovers, deletion."""

import contextlib
import json
import os
import shutil
import threading
import time
import warnings

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.errors import UserError
from onereward_jax.training import checkpoint, manifest
from onereward_jax.training.checkpoint import Checkpointer, CheckpointWarning, SaveError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None
    key: jax.Array


def make_state(step: int = 0) -> State:
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(step), (16, 8)), "bias": jnp.zeros(8, jnp.bfloat16)}}
    return State(jnp.int32(step), params, optax.adam(1e-3).init(params), None, jax.random.key(step + 1))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def words(leaf) -> bytes:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert words(a) == words(b)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3, to be copied and damaged."""
    directory = tmp_path_factory.mktemp("three")
    with warnings.catch_warnings(record=True):
        checkpointer = Checkpointer(directory, keep=3)
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step), {"next": step})
        checkpointer.close()
    return directory


@pytest.fixture
def copy(three_steps, tmp_path):
    return shutil.copytree(three_steps, tmp_path / "checkpoints")


# ------------------------------------------------------------------------------------------------- round trips


def test_nothing_there(tmp_path):
    assert Checkpointer(tmp_path / "new").restore_latest(abstract(make_state())) is None


def test_round_trip_is_bit_identical(copy):
    step, state, data_state = Checkpointer(copy).restore_latest(abstract(make_state()))
    assert (step, data_state) == (3, {"next": 3})
    assert_same(state, make_state(3))


@pytest.mark.parametrize("data_state", [None, b"\x00\xff grain", {"position": [1, 2], "inner": {"n": np.int64(4)}}])
def test_data_state(tmp_path, data_state):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"a": jnp.ones(3)}, data_state)
    _, _, restored = checkpointer.restore_latest({"a": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert restored == data_state


def test_unusual_leaves(tmp_path):
    state = {
        "raw": jax.random.PRNGKey(3),
        "typed": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "empty": jnp.zeros((0, 4)),
        "numpy": np.arange(3),
        "scalar": np.float32(0.1),
        "list": [jnp.ones(2), (jnp.zeros(1),)],
    }
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state)
    assert_same(checkpointer.restore_latest(state)[1], state)


def test_donated_state_is_saved_as_it_was(tmp_path):
    """The save copies before it returns: the step that follows may overwrite the buffers."""
    advance = jax.jit(lambda x: x * 1.5 + 1.0, donate_argnums=0)
    state = {"a": jnp.arange(1 << 20, dtype=jnp.float32)}
    expected = np.array(state["a"])
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state)
    moved = state["a"]
    for _ in range(10):
        moved = advance(moved)
    _, restored, _ = checkpointer.restore_latest({"a": jax.ShapeDtypeStruct(expected.shape, jnp.float32)})
    np.testing.assert_array_equal(restored["a"], expected)
    assert float(moved[0]) > 1.0


def test_restores_into_the_given_sharding(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    checkpointer = Checkpointer(tmp_path)
    state = {"a": jnp.arange(16.0), "key": jax.random.split(jax.random.key(0), 8)}
    checkpointer.save(1, state)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    restored = checkpointer.restore_latest(wanted)[1]
    assert restored["a"].sharding == sharding
    assert restored["key"].sharding.is_equivalent_to(sharding, 1)
    assert_same(restored, state)


# ------------------------------------------------------------------------------------------------------ damage


def array_files(directory):
    """The files that hold arrays, the largest first."""
    return sorted((path for path in directory.rglob("d/*") if path.is_file()), key=lambda path: -path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "flipped bit in an array": lambda step: flip_a_bit(array_files(step)[0]),
    "flipped bit in the data state": lambda step: flip_a_bit(step / "data" / "data.json"),
    "truncated file": lambda step: truncate(array_files(step)[0]),
    "missing file": lambda step: array_files(step)[0].unlink(),
    "missing directory": lambda step: shutil.rmtree(step),
    "a file instead": lambda step: (shutil.rmtree(step), step.write_text("")),
    "missing manifest": lambda step: step.with_suffix(".json").unlink(),
    "torn manifest": lambda step: truncate(step.with_suffix(".json")),
    "flipped bit in the manifest": lambda step: flip_a_bit(step.with_suffix(".json")),
    "empty manifest": lambda step: step.with_suffix(".json").write_text(""),
    "deep manifest": lambda step: step.with_suffix(".json").write_text("[" * 100_000),
    "a directory as manifest": lambda step: (step.with_suffix(".json").unlink(), step.with_suffix(".json").mkdir()),
    "a pipe as manifest": lambda step: (step.with_suffix(".json").unlink(), os.mkfifo(step.with_suffix(".json"))),
    "a pipe as file": lambda step: ((step / "data" / "data.json").unlink(), os.mkfifo(step / "data" / "data.json")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_older_one_used(copy, damage):
    DAMAGES[damage](copy / "step_00000003")
    with pytest.warns(CheckpointWarning) as caught:
        step, state, data_state = Checkpointer(copy).restore_latest(abstract(make_state()))
    assert (step, data_state) == (2, {"next": 2})
    assert "step_00000003" in str(caught[0].message)
    assert_same(state, make_state(2))
    checkpointer = Checkpointer(copy, keep=1)  # it is written again, or deleted with the others
    with pytest.warns(CheckpointWarning):
        checkpointer.restore_latest(abstract(make_state()))
    checkpointer.save(4, make_state(4))
    checkpointer.wait()
    assert sorted(path.name for path in copy.iterdir()) == ["step_00000004", "step_00000004.json"]


def test_every_file_is_covered(copy):
    """Whatever file of a checkpoint is altered, the checkpoint is refused."""
    files = [path for path in (copy / "step_00000003").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        flip_a_bit(path)
        assert Checkpointer(copy)._damage("step_00000003") is not None, path
        path.write_bytes(content)
    assert Checkpointer(copy)._damage("step_00000003") is None


def test_two_damaged(copy):
    flip_a_bit(array_files(copy / "step_00000003")[0])
    truncate(array_files(copy / "step_00000002")[0])
    with pytest.warns(CheckpointWarning) as caught:
        assert Checkpointer(copy).restore_latest(abstract(make_state()))[0] == 1
    assert len(caught) == 2


def test_none_whole_is_an_error_and_not_a_new_start(copy):
    for step in (1, 2, 3):
        flip_a_bit(array_files(copy / f"step_0000000{step}")[0])
    with pytest.warns(CheckpointWarning), pytest.raises(UserError):
        Checkpointer(copy).restore_latest(abstract(make_state()))


def test_none_whole_up_to_a_step(copy):
    flip_a_bit(array_files(copy / "step_00000001")[0])
    with pytest.warns(CheckpointWarning), pytest.raises(UserError, match="up to step 1"):
        Checkpointer(copy).restore_latest(abstract(make_state()), at_most=1)


def test_a_damaged_step_is_written_again(copy):
    flip_a_bit(array_files(copy / "step_00000003")[0])
    checkpointer = Checkpointer(copy)
    with pytest.warns(CheckpointWarning):
        checkpointer.restore_latest(abstract(make_state()))
    assert checkpointer.save(3, make_state(3), {"next": 33})
    assert checkpointer.restore_latest(abstract(make_state()))[::2] == (3, {"next": 33})


@pytest.mark.parametrize(
    "name", ["step_00000999", "step_999", "999", "step_00000003.bak", "notes.txt", "step_000000003", "step_٠٠٠٠٠٠٠٩"]
)
def test_stray_entries_are_ignored(copy, name):
    (copy / name).mkdir()
    with pytest.warns(CheckpointWarning, match=name):
        assert Checkpointer(copy).restore_latest(abstract(make_state()))[0] == 3
    assert (copy / name).exists()


def test_a_stray_directory_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "step_00000999").mkdir()
    with pytest.warns(CheckpointWarning):
        assert Checkpointer(tmp_path).restore_latest(abstract(make_state())) is None


def test_leftovers_are_removed(copy):
    before = {path.name for path in copy.iterdir()}
    shutil.copytree(copy / "step_00000003", copy / "step_00000004")  # Orbax was done, the manifest not written
    (copy / "step_00000004.unfinished").touch()
    (copy / "step_00000005.orbax-checkpoint-tmp").mkdir()  # Orbax was not done
    (copy / "step_00000005.unfinished").touch()
    (copy / "step_00000004.json.tmp").write_text("{")  # as 0.1.0 called it
    (copy / ".0123456789abcdef.tmp").write_text("{")
    (copy / "step_00000003.unfinished").touch()  # all was done but for the marker
    assert Checkpointer(copy).restore_latest(abstract(make_state()))[0] == 3
    assert {path.name for path in copy.iterdir()} == before


# ------------------------------------------------------------------------------------- other states, other errors


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        (lambda s: {**s, "b": jnp.ones(2)}, r"b \(nothing there, float32\[2\] here\)"),
        (lambda s: {"a": s["a"]}, r"c \(int32\[\] there, nothing here\)"),
        (lambda s: {**s, "a": jnp.ones((4, 3))}, r"a \(float32\[3,4\] there, float32\[4,3\] here\)"),
        (lambda s: {**s, "a": s["a"].astype(jnp.bfloat16)}, r"a \(float32\[3,4\] there, bfloat16\[3,4\] here\)"),
    ],
)
def test_another_state_is_refused(tmp_path, change, words_of_it):
    state = {"a": jnp.ones((3, 4)), "c": jnp.int32(1)}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state)
    with pytest.raises(UserError, match=words_of_it):
        checkpointer.restore_latest(abstract(change(state)))


def test_keeps_the_newest(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(1, 6):
        assert checkpointer.save(step, {"a": jnp.float32(step)})
    checkpointer.close()
    assert checkpointer.steps() == [4, 5]
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"step_00000004", "step_00000005"}
    assert not checkpointer.save(5, {"a": jnp.float32(50)})
    assert float(checkpointer.restore_latest({"a": jax.ShapeDtypeStruct((), jnp.float32)})[1]["a"]) == 5
    with pytest.raises(UserError):
        Checkpointer(tmp_path, keep=0)


def test_an_error_in_the_background_is_raised(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write", no_space)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {"a": jnp.ones(2)})
    with pytest.raises(SaveError, match=r"^No space left on device$"):
        checkpointer.wait()
    assert list(tmp_path.iterdir()) == []


class Unruly:
    """Orbax, with something done between the start of a save and its end."""

    def __init__(self, monkeypatch, action):
        self._save = checkpoint.ocp.save_checkpointables_async
        self._action = action
        monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", self)

    def __call__(self, path, *args, **options):
        response = self._save(path, *args, **options)
        self._action(path)
        return response


LARGE = {f"a{number}": jnp.ones(1 << 18) for number in range(16)}


# A failed save's threads outlive its event loop, and say so where nobody can catch it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")
def test_of_several_processes_none_goes_on_where_the_save_of_another_directory_failed(tmp_path, monkeypatch):
    other, checkpointer = Checkpointer(tmp_path / "other"), Checkpointer(tmp_path / "own")
    other._error = SaveError("the disk is full")
    monkeypatch.setattr(checkpoint, "_saves", [other])
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.hosts, "count", lambda: 2)
        with pytest.raises(SaveError, match="the disk is full"):
            checkpointer.save(1, make_state(1))
    assert checkpointer.save(1, make_state(1))  # one process: each directory has its own errors
    checkpointer.close()
    with pytest.raises(SaveError):
        other.wait()


@pytest.mark.parametrize("remade", [False, True])
def test_a_directory_that_vanishes_during_a_save_is_not_made_anew(tmp_path, monkeypatch, remade):
    directory = tmp_path / "mount" / "run" / "checkpoints"
    checkpointer = Checkpointer(directory)
    checkpointer.save(1, LARGE)
    checkpointer.wait()

    def vanish(_):
        while (tmp_path / "mount").exists():  # the save's threads may add a directory to one that is being emptied
            shutil.rmtree(tmp_path / "mount", ignore_errors=True)
        if remade:
            directory.mkdir(parents=True)

    Unruly(monkeypatch, vanish)
    checkpointer.save(2, LARGE)
    with pytest.raises(SaveError):
        checkpointer.wait()
    with pytest.raises(SaveError, match="that were there are gone"):
        checkpointer.save(3, LARGE)
    assert list(tmp_path.rglob("*")) == (
        [tmp_path / "mount", *reversed([directory, directory.parent])] if remade else []
    )


def test_a_directory_that_moves_during_a_save_gets_no_checkpoint_elsewhere(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "a")
    checkpointer.save(1, LARGE)
    checkpointer.wait()

    def move(_):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()

    Unruly(monkeypatch, move)
    checkpointer.save(2, LARGE)
    with pytest.raises(SaveError, match="replaced"):
        checkpointer.wait()
    assert list((tmp_path / "a").iterdir()) == []
    assert Checkpointer(tmp_path / "b").restore_latest(abstract(LARGE))[0] == 1
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["step_00000001", "step_00000001.json"]


def test_threads_that_outlive_a_failed_save_leave_nothing(tmp_path, monkeypatch):
    """TensorStore's go on, and make the directories anew that they miss."""
    late = []

    def fail(path):
        def write():
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                (path.parent / f"{path.name}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)

        late.append(threading.Thread(target=write))
        late[0].start()
        raise ValueError("TensorStore: failed to write: No space left on device [os_error_code='28']")

    Unruly(monkeypatch, fail)
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(SaveError, match=r"^No space left on device$"):
        checkpointer.save(1, {"a": jnp.ones(2)})
    monkeypatch.undo()
    checkpointer.save(2, {"a": jnp.ones(2)})
    checkpointer.wait()
    late[0].join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000002.json"]


def test_manifest_lists_sizes_and_digests(copy):
    written = json.loads((copy / "step_00000003.json").read_text())
    assert written["step"] == 3
    assert written["arrays"]["params/dense/kernel"] == "float32[16,8]"
    for file, entry in written["files"].items():
        assert (copy / "step_00000003" / file).stat().st_size == entry["size"]
        assert len(entry["sha256"]) == 64


def test_processes_share_the_files_evenly():
    files = {f"d/{number}": {"size": 100 - number} for number in range(50)}
    shares = [manifest.share(files, process, 4) for process in range(4)]
    assert sorted(file for share in shares for file in share) == sorted(files)
    bytes_of = [sum(about["size"] for about in share.values()) for share in shares]
    assert max(bytes_of) - min(bytes_of) <= 100
