"""Files and directories written whole or not at all, even if the process is killed, and a directory lock."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onereward_jax.errors import UserError
from onereward_jax.given_files import open_file

_BLOCK = 1 << 20  # bytes
_WEIGHTS_OR_DATA = re.compile(r"\.(safetensors|jsonl|array_record.*)$")


def write_bytes(path: Path, content: bytes, several_writers: bool = False) -> None:
    """Write a file atomically: a reader sees either the old content or the new.

    Args:
      several_writers: other processes, on this machine or another, may write the same file at the same time.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp" if several_writers else f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, say
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def check_writable(directory: Path) -> None:
    """Check that a directory, existing or to be made, can be written to; writes nothing.

    Raises:
      UserError: it can't.
    """
    above = directory.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{directory} can't be written, since {above} is a file: choose another output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{directory} can't be written: change the permissions of {above}, or choose another output")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def lock(directory: Path) -> None:
    """Lock a working directory against other processes until this one ends, however it ends.

    Raises:
      UserError: another process holds the lock.
    """
    directory = directory.resolve()
    if directory in _held:
        return
    directory.mkdir(parents=True, exist_ok=True)
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise UserError(
            f"another process is using {directory}: wait for it, stop it, or choose another --workdir"
        ) from None
    _held[directory] = file


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


@contextlib.contextmanager
def atomic_directory(directory: Path, keep: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """Yield a temporary directory that replaces `directory` once it is complete.

    Args:
      keep: decides by name which entries of the existing `directory` are kept; new entries of that name win.

    Raises:
      UserError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose a directory to export to")
    partial, replaced = (directory.with_name(f".{directory.name}.{word}") for word in ("partial", "replaced"))
    if replaced.exists() and not directory.exists():  # a process was killed between the two renames below
        replaced.rename(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for entry in directory.iterdir() if directory.exists() else ():
            if keep(entry.name) and not (partial / entry.name).exists():
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, partial / entry.name)
        shutil.rmtree(replaced, ignore_errors=True)
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
