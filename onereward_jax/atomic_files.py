"""Files and directories written whole or not at all, if the process is killed or the power fails; a directory lock.

What a function here has written when it returns is on the disk: its content, its name, and the names of the
directories that were made for it.
"""

import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onereward_jax.errors import UserError
from onereward_jax.given_files import open_file, read_json

_BLOCK = 1 << 20  # bytes
_WEIGHTS_OR_DATA = re.compile(r"\.(safetensors|jsonl|array_record.*)$")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_SYNC_THREADS = 16  # the file system makes one write of what many wait for
# Answers of a file system that syncs no directories, as some over a network, or shows us no list of this one.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)
OUTPUT_FILE = ".onereward.json"  # in a directory that `atomic_directory` wrote: the entries that are from it


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader, or the next start, sees either the old content or the new.

    Other processes, on this machine or another, may write the same file at the same time.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # A new file, never one that is there or that a symbolic link leads to.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # a full disk, say, or Ctrl-C: nothing may be left of it
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # messages name the file that was to be written
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sweep(directory: Path, older_than: float = 0.0) -> None:
    """Remove what `write_bytes` left in a directory when its process was killed.

    Args:
      older_than: seconds; more than a write takes, where other processes may be writing.
    """
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.lstat().st_mtime >= older_than:
                    path.unlink()


# ---------------------------------------------------------------------------------------------------- onto the disk


def sync(path: Path) -> None:
    """Force a file's content, or a directory's list of names, onto the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise


def sync_tree(directory: Path) -> None:
    """Force all below a directory onto the disk, and its own list of names."""
    paths = [directory]
    for above, directories, files in os.walk(directory, onerror=_raise):
        paths += [Path(above, name) for name in (*directories, *files)]
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        collections.deque(pool.map(sync, (path for path in paths if not path.is_symlink())), 0)


def _raise(error: OSError) -> None:
    raise error


def make_directory(directory: Path) -> None:
    """Make a directory, and those above it that are missing."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


# -------------------------------------------------------------------------------------------------------- directories


def check_writable(directory: Path) -> None:
    """Check that a directory, existing or to be made, can be written to; writes nothing.

    Raises:
      UserError: it can't.
    """
    above = directory.absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{directory} can't be written, since {above} is a file: choose another output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{directory} can't be written: change the permissions of {above}, or choose another output")


def check_output(directory: Path) -> None:
    """Check that `atomic_directory` may put an output in a directory's place; writes nothing.

    It is new, empty, or an earlier output: then files that were added to it are kept, but it holds no other
    directories. So no working directory is replaced, and nothing that other programs or runs lie in.

    Raises:
      UserError: it may not, or can't be written.
    """
    check_writable(directory)
    _entries_to_keep(_resolved(directory))


def _entries_to_keep(directory: Path) -> list[Path]:
    """The files in a directory that were added to an earlier output; see `check_output`."""
    if not os.path.lexists(directory):
        return []
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: choose a directory to export to")
    entries = sorted(directory.iterdir())
    if not entries:
        return []
    made = files = None
    if (directory / OUTPUT_FILE).is_file():
        described = read_json(directory / OUTPUT_FILE, "choose another directory")
        made, files = described.get("entries"), described.get("files")
    elif any((held / "export") in (directory, *directory.parents) for held in _held):
        return []  # of the run that this process goes on with, from before outputs had an OUTPUT_FILE
    if not isinstance(made, list):
        raise UserError(
            f"{directory} is not empty, and no earlier output of this program (which holds {OUTPUT_FILE}): choose a"
            " new directory"
        )
    others = [entry for entry in entries if entry.name not in (OUTPUT_FILE, *made)]
    foreign = [entry.name for entry in others if entry.is_dir() or not (entry.is_file() or entry.is_symlink())]
    if files is not None:
        foreign += [name for name in _files_below(directory) if "/" in name and name not in files]
    if foreign:
        raise UserError(
            f"{directory} holds {foreign[0]}, which is no part of the output there: choose another directory"
        )
    return others


def _files_below(directory: Path) -> list[str]:
    """The paths of all files below a directory, relative to it."""
    walked = os.walk(directory, onerror=_raise)
    return sorted(Path(above, name).relative_to(directory).as_posix() for above, _, names in walked for name in names)


def _resolved(directory: Path) -> Path:
    return Path(os.path.realpath(directory))  # `Path.resolve` raises RuntimeError for a symbolic link to itself


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `directory` once it is complete.

    Of an earlier output, files that were added to it are kept; new ones of the same name win.

    Raises:
      UserError: `directory` may not be replaced, see `check_output`.
    """
    directory = _resolved(directory)
    partial, replaced = (directory.with_name(f".{directory.name}.{word}") for word in ("partial", "replaced"))
    if replaced.is_dir() and not replaced.is_symlink():
        _entries_to_keep(replaced)  # or it is not ours to move or remove
        if not directory.exists():  # a process was killed between the two renames below
            replaced.rename(directory)
    _entries_to_keep(directory)
    make_directory(directory.parent)
    held = _claimed(partial, directory)
    try:
        yield partial
        names = sorted(entry.name for entry in partial.iterdir() if entry.name != OUTPUT_FILE)
        write_json(partial / OUTPUT_FILE, {"entries": names, "files": _files_below(partial)})
        for entry in _entries_to_keep(directory):
            if entry.name not in names:
                shutil.copy2(entry, partial / entry.name, follow_symlinks=False)
        sync_tree(partial)
        remove(replaced)
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        sync(directory.parent)
        remove(replaced)
    except BaseException:  # an export that failed, or Ctrl-C: nothing may be left of it
        with contextlib.suppress(OSError):
            remove(partial)
        raise
    finally:
        os.close(held)


def _claimed(partial: Path, directory: Path) -> int:
    """Make the empty directory in which an output is written, and lock it against other processes.

    Returns:
      A descriptor that holds the lock until it is closed, or the process ends.

    Raises:
      UserError: another process writes there.
    """
    if not partial.is_dir() or partial.is_symlink():
        remove(partial)
    busy = UserError(f"another process is writing {directory}: wait for it, or choose another directory")
    for _ in range(2):  # once more, if it is what a killed process left
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
        held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held), os.stat(partial)) and not os.listdir(held):
                return held
        except (BlockingIOError, FileNotFoundError):
            os.close(held)
            raise busy from None
        remove(partial)
        os.close(held)
    raise busy


def remove(directory: Path) -> None:
    """Remove a directory, or what else has its name."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)
    else:
        directory.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- the lock


def lock(directory: Path, argument: str = "--workdir") -> None:
    """Lock a working directory against other processes until this one ends, however it ends.

    What killed processes left in it is removed.

    Args:
      argument: of the command line, that names the directory.

    Raises:
      UserError: another process holds the lock.
    """
    directory = _resolved(directory)
    if directory in _held:
        return
    make_directory(directory)
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise UserError(
            f"another process is using {directory}: wait for it, stop it, or choose another {argument}"
        ) from None
    _held[directory] = file
    for path in (directory, *(entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink())):
        sweep(path)


_held: dict[Path, int] = {}  # directory -> descriptor of its lock, open as long as the process lives


def fingerprint(directory: Path) -> str:
    """Identify the weights and preferences below a directory without reading tens of gigabytes.

    The digest covers the name, the size and three blocks of every .safetensors, .jsonl and array_record file at most
    two folders down, where models and data have them, or of `directory` itself if it is a file. Empty where there are
    no such files. Deeper ones are not looked for, since the directory may turn out to be a whole disk.
    """
    digest = hashlib.sha256()
    files: list[Path] = []
    for folder, below, names in os.walk(directory):
        files += (Path(folder, name) for name in names if _WEIGHTS_OR_DATA.search(name))
        if len(Path(folder).relative_to(directory).parts) == 2:
            below.clear()
    files.sort()
    if directory.is_file():
        files, directory = [directory], directory.parent
    for path in files:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.relative_to(directory)} {size}".encode())
            for start in (0, size // 2, max(0, size - _BLOCK)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16] if files else ""
