"""Checkpoints that can be trusted: Orbax writes them, a digest manifest beside each proves them whole.

    directory/
      step_00000100/               what Orbax wrote: arrays under state/, the data iterator's state under data/
      step_00000100.json           the manifest: size and digest of every file, shape and dtype of every array
      step_00000200.unfinished     a marker: step 200 was being written or deleted when the run stopped

Orbax alone loads a flipped bit silently and takes any directory named like a step for the newest one. Here a
checkpoint exists from the moment its manifest does, and that is written last, in one atomic rename.

A power cut takes what is not on the disk yet, in any order. So on a local file system (an object store does it by
itself) each of these is on the disk before the next begins: the marker; all that Orbax and TensorStore wrote; the
manifest. Then the marker is removed, and only then an older checkpoint deleted: its manifest first.

Of several processes each computes the digests of what it wrote, and verifies its share of a checkpoint to restore; what
one of them finds, all go by.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from onereward_jax import buckets, tree
from onereward_jax.atomic_files import make_directory, sweep, sync, sync_tree
from onereward_jax.buckets import is_bucket
from onereward_jax.errors import UserError
from onereward_jax.parallel import hosts
from onereward_jax.training import manifest as manifests

_STEP = re.compile(r"step_(\d{8}|[1-9]\d{8,})", re.ASCII)
# "...: Failed to write 4096 bytes to file 17: No space left on device [os_error_code='28']"
_SYSTEM_ERROR = re.compile(r"([^:]+) \[os_error_code=")

# Every error of a save is raised to its caller; Orbax also logs the traceback of each of its threads.
logging.getLogger("absl").addFilter(
    lambda record: not record.pathname.endswith("orbax/checkpoint/_src/futures/future.py")
)


class CheckpointWarning(UserWarning):
    """A checkpoint was damaged, or something in the directory looks like one and is not."""


class SaveError(Exception):
    """A checkpoint could not be written; nothing of it is left, and those before it are. Its text says why."""


_saves: list["Checkpointer"] = []  # whose save is the last of this process


class Checkpointer:
    """Saves and restores (state, data iterator state) pairs, newest `keep` of them.

    A process has one save at a time, in whatever directory: its host holds one copy, and several processes, by whose
    counters Orbax tells saves apart, all count alike.

    Of several processes, every one calls every method: each writes and reads its parts of the arrays, the first does
    everything else, and a save that is finished is so for all. The directory is shared by all of them, and the data
    state the same in each, as that of `data.mixture` is.

    Args:
      directory: holds the checkpoints; made when missing. Local, or in a bucket (gs://).
      keep: number of finished checkpoints to keep; older ones are deleted.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        if keep < 1:
            raise UserError(f"keep is {keep}: keep at least 1 checkpoint")
        self.directory = buckets.path(directory)
        self.keep = keep
        self._finishing: threading.Thread | None = None
        self._error: SaveError | None = None
        self._known: set[int] = set()  # finished steps that this object has seen in the directory
        self._restored: int | None = None  # the step that was restored: newer ones are superseded
        self._damaged: set[int] = set()
        self.pinned: frozenset[int] = frozenset()  # steps whose checkpoints are kept beside the newest
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        self._context = ocp.Context()
        self._context.checkpointables.registry = registry
        # In the background, a failing save would leave threads that wait for the directory for minutes.
        self._context.asynchronous.create_directories_asynchronously = False
        if hosts.is_primary():
            _make(self.directory)

    # ------------------------------------------------------------------------------------------------ saving

    def save(self, step: int, state: Any, data_state: Any = None) -> bool:
        """Starts to save; returns as soon as the arrays are copied to the host.

        Waits first for the save before it, and raises that one's error if it failed; of several processes also where it
        was of another directory, since the others may go on to the next save while this one does not. The directory
        is never made here: where it vanishes, even during the save, nothing is made in its place.

        Args:
          step: number of the step that made this state.
          state: pytree of arrays; typed PRNG keys are welcome.
          data_state: bytes, or anything JSON can hold: what `get_state()` of the iterator gave.

        Returns:
          Whether a save was started: False when a finished checkpoint of this step exists. One that is newer than the
          restored one, which it can only be by its damage, is written again.

        Raises:
          SaveError: the disk is full, the directory is gone, ...: it may be tried again.
        """
        self.wait()
        for other in _saves:
            other._join()
        name = f"step_{step:08d}"
        superseded = self._restored is not None and step > self._restored
        if not superseded and hosts.on_primary(self._manifest(name).exists):
            return False
        self._restored = None if self._restored is None else max(step, self._restored)
        self._damaged.discard(step)
        arrays = {path: _to_raw(leaf) for path, leaf in tree.flatten(state).items()}
        manifest = {
            "format": manifests.FORMATS[is_bucket(self.directory)],
            "step": step,
            "arrays": {path: _describe(leaf) for path, leaf in arrays.items()},
        }
        with contextlib.ExitStack() as stack:
            try:
                if hosts.is_primary():
                    self._prepare(name)
                here = stack.enter_context(_reached(self.directory))
                with self._context:
                    response = ocp.save_checkpointables_async(
                        here / name,
                        {"state": tree.unflatten(_nonempty(arrays)), "data": _encode(data_state)},
                        overwrite=True,
                    )
            except Exception as error:  # Orbax raises OSError or, with TensorStore's words, ValueError
                stack.close()
                self._discard(name)
                raise SaveError(_reason(error)) from error
            self._finishing = threading.Thread(
                target=self._finish,
                args=(name, here, stack.pop_all(), response, manifest),
                name=f"finish-{name}",
                daemon=True,
            )
            self._finishing.start()
            _saves[:] = [self]
        return True

    @property
    def saving(self) -> bool:
        """Whether a save is running; when it no longer is, `wait` raises its error without waiting."""
        return self._finishing is not None and self._finishing.is_alive()

    def wait(self) -> None:
        """Blocks until the running save is finished, manifest and deletions included.

        Raises:
          SaveError: it failed.
        """
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        if self._error is not None:
            error, self._error = self._error, None
            self._sweep()
            raise error

    def _join(self) -> None:
        """Waits for the running save from another's; its error stays for `wait`."""
        if self._finishing is not None:
            self._finishing.join()
        if self._error is not None and hosts.count() > 1:
            raise SaveError(f"the save before it failed: {self._error}")

    def close(self) -> None:
        """Finishes what is running; the checkpointer may be used again afterwards."""
        self.wait()

    def keep_only(self, step: int | None) -> None:
        """Deletes all checkpoints but that of a step; what can't be deleted stays."""

        def delete() -> None:
            with contextlib.suppress(OSError):
                for name in self._names():
                    if _step_of(name) != step:
                        self._delete(name)

        self.wait()
        hosts.on_primary(delete)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints (not verified), oldest first."""
        return [_step_of(name) for name in self._names() if self._manifest(name).exists()]

    def _prepare(self, name: str) -> None:
        """Marks what is about to be written; removes what is left of saves that failed."""
        if self._known and not any(self._manifest(f"step_{step:08d}").exists() for step in self._known):
            raise FileNotFoundError(None, "The checkpoints that were there are gone")
        self._sweep()
        for path in list(self.directory.glob("step_*.unfinished")):
            if path != self._marker(name):
                self._discard(path.name.removesuffix(".unfinished"))
        self._mark(name)

    def _mark(self, name: str) -> None:
        """Makes a checkpoint unfinished; its directory may then be written or deleted."""
        self._marker(name).write_text("")
        _remove(self._manifest(name))
        _sync(self.directory)

    def _finish(
        self, name: str, here: epath.Path, reached: contextlib.ExitStack, response: Any, manifest: dict
    ) -> None:
        word = f"{self.directory.name}/{name}"
        try:
            with reached:
                response.result()
                _sync(here / name, whole=True)
                _sync(here)
                hosts.wait_for_all(f"{word} is on the disk")
                written = hosts.gather(manifests.written(here / name, hosts.index()), f"digests of {word}")
                if hosts.is_primary():
                    manifest["files"] = {file: about for of_process in written for file, about in of_process.items()}
                    _check_same_directory(here, self.directory)
                    manifests.write(here / f"{name}.json", manifest)
                    self._marker(name).unlink()
        except Exception as error:  # Orbax and TensorStore raise many kinds; a defect of ours is told by its text too
            self._discard(name)
            self._error = SaveError(_reason(error))
            return
        if hosts.is_primary():
            with contextlib.suppress(OSError):  # tried again after the next save
                self._delete_old()
            self._known = {step for step in self._known if self._manifest(f"step_{step:08d}").exists()}
            self._known.add(_step_of(name))
        with contextlib.suppress(RuntimeError):  # a process is gone, and this one will end as well
            hosts.wait_for_all(f"{word} is whole")

    def _discard(self, name: str) -> None:
        """Removes what a save that failed has left; where that fails too, the next save or start does it."""
        if not hosts.is_primary():
            return
        with contextlib.suppress(OSError):
            self._sweep()
            self._delete(name)

    def _sweep(self) -> None:
        """Removes what failed or killed saves have left under temporary names."""
        if not hosts.is_primary():
            return
        with contextlib.suppress(OSError):
            for path in self._entries():
                name, _, suffix = path.name.partition(".")
                if _STEP.fullmatch(name) and (suffix.startswith("orbax-checkpoint-tmp") or suffix == "json.tmp"):
                    _remove(path)
            if not is_bucket(self.directory):
                sweep(Path(self.directory))

    def _delete_old(self) -> None:
        finished = [step for step in self.steps() if step not in self._damaged]
        if len(finished) <= self.keep:
            return
        oldest_kept = finished[-self.keep]
        for name in self._names():
            # Damaged ones and half-written ones go with the finished ones of their age.
            if _step_of(name) < oldest_kept and _step_of(name) not in self.pinned:
                self._delete(name)

    def _delete(self, name: str) -> None:
        # The marker covers the time in which the directory is there and its manifest is not.
        self._mark(name)
        _remove(self.directory / name)
        self._marker(name).unlink()

    # --------------------------------------------------------------------------------------------- restoring

    def restore_latest(self, abstract_state: Any, at_most: int | None = None) -> tuple[int, Any, Any] | None:
        """Restores the newest checkpoint whose every file has the size and digest of its manifest, or the newest up to
        a step.

        Damage is named in a `CheckpointWarning`, and the next older checkpoint is tried. Leftovers of a save or a
        deletion that a killed run did not finish are removed.

        Args:
          abstract_state: the state's structure with `jax.ShapeDtypeStruct` leaves (or arrays); a leaf with a
            `sharding` is restored into it, one without onto the first device.
          at_most: no newer step is restored.

        Returns:
          (step, state, data_state), or None when no checkpoint was ever finished here.

        Raises:
          UserError: checkpoints exist (up to `at_most`) and none is whole, or the newest whole one holds another state.
        """
        self.wait()
        step = self._restored = self._find_latest(at_most)
        if step is None:
            return None
        self._known = {step}
        name = f"step_{step:08d}"
        wanted = tree.flatten(abstract_state)
        abstract = {path: _abstract_raw(leaf) for path, leaf in wanted.items()}
        saved = json.loads(self._manifest(name).read_text())["arrays"]
        _check_same_state(self.directory / name, saved, {path: _describe(leaf) for path, leaf in abstract.items()})
        with self._context:
            restored = ocp.load_checkpointables(
                self.directory / name, {"state": tree.unflatten(_nonempty(abstract)), "data": None}
            )
        arrays = tree.flatten(restored["state"])
        leaves = [_from_raw(arrays.get(path), leaf) for path, leaf in wanted.items()]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return step, state, _decode(restored["data"])

    def restore_part(self, part: str, abstract: Any, at_most: int | None = None) -> tuple[int, Any] | None:
        """Restores one field of the newest whole state, such as "params", and reads nothing else of it.

        Args:
          abstract, at_most: the field's structure with `jax.ShapeDtypeStruct` leaves, and see `restore_latest`.

        Returns:
          (step, the field), or None when no checkpoint was ever finished here.

        Raises:
          UserError: as `restore_latest`.
        """
        self.wait()
        step = self._find_latest(at_most)
        if step is None:
            return None
        name = f"step_{step:08d}"
        wanted = {f"{part}/{path}": leaf for path, leaf in tree.flatten(abstract).items()}
        saved = json.loads(self._manifest(name).read_text())["arrays"]
        of_part = {path: text for path, text in saved.items() if path.startswith(f"{part}/")}
        _check_same_state(self.directory / name, of_part, {path: _describe(leaf) for path, leaf in wanted.items()})
        arrays = {path: _abstract_raw(leaf) for path, leaf in wanted.items()}
        context = ocp.Context(self._context)
        context.pytree.loading.partial_load = True
        with context:
            restored = ocp.load_checkpointables(self.directory / name, {"state": tree.unflatten(_nonempty(arrays))})
        found = tree.flatten(restored["state"])
        leaves = [_from_raw(found.get(path), leaf) for path, leaf in wanted.items()]
        return step, jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def _find_latest(self, at_most: int | None) -> int | None:
        """Cleans up, verifies from the newest on, and returns the first whole step that is not beyond `at_most`."""
        hosts.on_primary(self._clean)
        damaged = []
        self._damaged.clear()
        for name in reversed(hosts.on_primary(self._names)):
            if at_most is not None and _step_of(name) > at_most:
                continue
            damage = self._damage(name)
            if damage is None:
                return _step_of(name)
            if hosts.is_primary():
                _warn(f"checkpoint {self.directory / name} is not used: {damage}")
            self._damaged.add(_step_of(name))
            if self._manifest(name).exists() or (self.directory / name / "_CHECKPOINT_METADATA").exists():
                damaged.append(name)
        if damaged:
            up_to = "" if at_most is None else f" up to step {at_most}"
            anew = ", or start anew in another working directory" if at_most is None else ""
            raise UserError(
                f"none of the checkpoints{up_to} in {self.directory} is whole ({', '.join(damaged)}): put a good copy"
                f" back{anew}"
            )
        return None

    def _damage(self, name: str) -> str | None:
        """What is wrong with a checkpoint, in words; None if nothing is. Each process verifies its share."""
        damage, files = hosts.on_primary(lambda: self._described(name))
        if damage is None:
            mine = manifests.share(files, hosts.index(), hosts.count())
            damage = next(filter(None, hosts.gather(manifests.altered(self.directory / name, mine))), None)
        return damage

    def _described(self, name: str) -> tuple[str | None, dict[str, manifests.File]]:
        """(what is wrong with a checkpoint, without reading its files; the files that it should have)"""
        directory, path = self.directory / name, self._manifest(name)
        if not directory.is_dir():
            return "it is not a directory" if directory.exists() else "its directory is missing", {}
        if not _is_file(path):
            return f"its manifest {path.name} is {'no file' if path.exists() else 'missing'}", {}
        try:
            files = manifests.read(path, _step_of(name))["files"]
        except ValueError as error:
            return f"its manifest {path.name} {error}", {}
        return manifests.missing_or_cut(directory, files), files

    def _clean(self) -> None:
        """Removes what an interrupted save or deletion left, and names what does not belong here."""
        self._sweep()
        for path in sorted(self._entries(), key=lambda path: path.name):
            name, _, suffix = path.name.partition(".")
            is_step = _STEP.fullmatch(name) is not None
            if is_step and suffix == "unfinished":
                if self._manifest(name).exists():
                    _remove(path)  # stopped between writing the manifest and removing the marker
                else:
                    self._delete(name)
            elif not (is_step and suffix in ("", "json")):
                _warn(f"{path} is no checkpoint of this program: ignored")

    # ------------------------------------------------------------------------------------------------- names

    def _entries(self) -> list[epath.Path]:
        """What is in the directory; one of a bucket is not there while it is empty."""
        try:
            return list(self.directory.iterdir())
        except FileNotFoundError:
            if is_bucket(self.directory):
                return []
            raise

    def _names(self) -> list[str]:
        entries = (path.name.removesuffix(".json") for path in self._entries())
        return sorted({name for name in entries if _STEP.fullmatch(name)}, key=_step_of)

    def _manifest(self, name: str) -> epath.Path:
        return self.directory / f"{name}.json"

    def _marker(self, name: str) -> epath.Path:
        return self.directory / f"{name}.unfinished"


def _step_of(name: str) -> int:
    match = _STEP.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=3)


def _reason(error: Exception) -> str:
    """Why a save failed, in the operating system's words where they are there."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = _SYSTEM_ERROR.search(str(error))
    return found[1].strip() if found else str(error).partition("\n")[0] or type(error).__name__


# ------------------------------------------------------------------------------------------------- the file system

_NUMBERS = itertools.cycle(range(192, 256))  # of descriptors, see `_reached`


@contextlib.contextmanager
def _reached(directory: epath.Path) -> Iterator[epath.Path]:
    """The directory, by a path that leads nowhere once it has vanished, or after the end of the block.

    TensorStore makes directories that are missing, also from threads that go on after a save has failed. By its path
    the directory would be made anew, and what was removed of a failed save be back. Linux has paths by a descriptor,
    whose number is not that of the save before. Several processes need one path for all: they get the plain one.
    """
    if is_bucket(directory) or sys.platform != "linux" or hosts.count() > 1:
        yield directory
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, next(_NUMBERS))
    except OSError:  # the process may not have so many
        descriptor = os.dup(opened)
    finally:
        os.close(opened)
    try:
        yield epath.Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _check_same_directory(reached: epath.Path, directory: epath.Path) -> None:
    """
    Raises:
      FileNotFoundError: `directory` is no longer the one that `reached` leads to.
    """
    if reached != directory and not os.path.samefile(reached, directory):
        raise FileNotFoundError(None, "The directory was replaced during the save")


def _is_file(path: epath.Path) -> bool:
    """`epath` takes a pipe for a file, too."""
    return path.is_file() if is_bucket(path) else os.path.isfile(path)


def _make(directory: epath.Path) -> None:
    if not is_bucket(directory):
        make_directory(Path(directory))


def _sync(directory: epath.Path, whole: bool = False) -> None:
    """Forces a local directory's list of names onto the disk; the `whole` of it, with all below."""
    if not is_bucket(directory):
        (sync_tree if whole else sync)(Path(directory))


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree(missing_ok=True)
    else:
        path.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- the state


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _check_same_state(directory: epath.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises one sentence that names what differs between the checkpoint's arrays and the state's."""
    if saved == wanted:
        return
    differences = []
    for path in sorted(saved.keys() | wanted.keys(), key=lambda path: (path in saved and path in wanted, path)):
        there, here = saved.get(path, "nothing"), wanted.get(path, "nothing")
        if there != here:
            differences.append(f"{path} ({there} there, {here} here)")
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise UserError(
        f"checkpoint {directory} holds another state than this configuration makes, differing in "
        f"{', '.join(differences[:3])}{more}: use the configuration that made it, or another working directory"
    )


# --------------------------------------------------------------------------------------------- leaves, data state


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _to_raw(leaf: Any) -> Any:
    """An array as Orbax takes it: typed keys as their uint32 words, numbers as NumPy arrays."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _abstract_raw(leaf: Any) -> Any:
    # Orbax wants to be told where an array goes.
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    if _is_key(leaf):
        words = jax.eval_shape(jax.random.key_data, _shape_of(leaf))
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.asarray(leaf)


def _from_raw(array: Any, wanted: Any) -> Any:
    if array is None:  # of size zero: not in the file
        return hosts.place(np.zeros(wanted.shape, wanted.dtype), getattr(wanted, "sharding", None))
    if _is_key(wanted):
        implementations: list[Any] = []  # `key_impl` takes no ShapeDtypeStruct, but it takes a traced key
        jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), _shape_of(wanted))
        return jax.random.wrap_key_data(array, impl=implementations[0])
    if isinstance(wanted, bool | int | float):
        return type(wanted)(array)
    return array


def _nonempty(arrays: dict[str, Any]) -> dict[str, Any]:
    # Orbax refuses arrays of size zero.
    return {path: leaf for path, leaf in arrays.items() if np.prod(leaf.shape) > 0}


def _encode(data_state: Any) -> dict[str, Any]:
    if isinstance(data_state, bytes):
        return {"base64": base64.b64encode(data_state).decode()}
    return {"json": json.dumps(data_state, default=lambda value: value.item())}


def _decode(encoded: dict[str, Any]) -> Any:
    if "base64" in encoded:
        return base64.b64decode(encoded["base64"])
    return json.loads(encoded["json"])
