"""What was read of image files, kept with each file's size and time, so that no later start reads them again."""

import hashlib
import itertools
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from onereward_jax.atomic_files import make_directory, sweep, write_bytes
from onereward_jax.errors import printable
from onereward_jax.given_files import open_file
from onereward_jax.parallel import hosts

Item = TypeVar("Item")
Result = TypeVar("Result")
Entry = tuple[int, int, dict[str, Any]]  # size, mtime_ns, what was read

FILE = ".onereward_manifest"  # in the data's folder; its name matches no pattern of data, images or weights
_FORMAT = 1
_SAVED_EVERY = 30.0  # seconds, in a long pass: a killed process loses no more
_CHUNK, _PART = 64, 4  # items read together, whose images may be in memory, and by a thread before it looks for more
_SENT = 5_000  # entries in a message, of some 150 bytes each
_LEFT_BEHIND = 3600.0  # seconds after which a temporary file is one of a killed process
_passes = itertools.count()  # of several processes together


class Stamp(NamedTuple):
    """A file's size in bytes and time of its last change in nanoseconds: what was read holds while both agree."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, *files: str | os.PathLike) -> "Stamp":
        """Return the stamp of a file, or of several together, in this order: then a digest of their times.

        Raises:
          OSError, ValueError: a file is not there, or it is no path.
        """
        found = [(x.st_size, x.st_mtime_ns) for x in map(os.stat, files)]
        if len(found) == 1:
            return cls(*found[0])
        digest = hashlib.blake2b(repr(found).encode(), digest_size=7).digest()
        return cls(sum(size for size, _ in found), int.from_bytes(digest, "big"))


class Manifest:
    """JSON objects that were read of files, each trusted while the file's stamp is the same.

    The file holds a line with the format and a checksum, then one entry per line: `[key, size, mtime_ns, object]`.
    One that is damaged, or of another format, counts as empty.
    """

    def __init__(self, file: Path | None = None, folder: Path | None = None):
        """
        Args:
          file: where it is kept; None keeps it in memory.
          folder: where the data lie; keys of files in it are relative to it. By default where `file` lies.
        """
        self._file = file
        folder = folder or (file.parent if file else None)
        self._prefix = os.path.join(os.path.abspath(folder), "") if folder else None
        self._entries: dict[str, Entry] = _load(file) if file else {}
        self._writable, self._unsaved = file is not None, False
        self._is_shared = True  # with the primary, until it shows that it is not
        self._saved_at, self._saving = time.monotonic(), threading.Lock()

    @classmethod
    def of(cls, data: Path, workdir: Path | None = None) -> "Manifest":
        """Open the manifest of a data folder, or of a data file's folder: there or, where it can't be written, in the
        working directory. All processes call this together and open the same one.

        Args:
          workdir: None keeps the manifest of data that can't be written in memory.
        """
        folder = data if data.is_dir() else data.parent
        if hosts.on_primary(lambda: os.access(folder, os.W_OK | os.X_OK)):
            return cls(folder / FILE)
        if workdir is None:
            return cls(None, folder)
        digest = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()[:16]
        return cls(workdir / f"{FILE}-{digest}", folder)

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, path: Path, read: Callable[[Path], dict[str, Any]], kind: str = "image") -> dict[str, Any]:
        """Return what was read of a file, reading it if that is not known, or the file has changed since.

        Safe in threads. What `read` raises is raised, and not kept.

        Args:
          read: returns a JSON object.
          kind: the kind of object that `read` returns; another kind of the same file is another entry.

        Raises:
          OSError: there is no such file.
        """
        return self.recall(f"{kind} {self._name(path)}", Stamp.of(path), lambda: read(path))

    def recall(self, key: str, stamp: Stamp, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is known under a key and a stamp, or read it: `look` for what is no file of its own."""
        entry = self._entries.get(key)
        if entry is not None and entry[0] == stamp.size and entry[1] == stamp.mtime_ns:
            return entry[2]
        found = read()
        self._entries[key] = (stamp.size, stamp.mtime_ns, found)
        self._unsaved = True
        return found

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        description: str,
        num_threads: int | None = None,
    ) -> Iterator[Result]:
        """Yield `function(item)`, which calls `look`, for all items in their order, called in threads.

        Saves the manifest at the end, and now and then. Several processes first read a part each, and then have what
        the others have read: of a file system that they share, or of copies of one bucket, which have its times. All of
        them call this in the same order.

        Args:
          description: word before the progress bar.
          num_threads: None for a number that suits this machine.
        """
        if (team := hosts.team()) is not None and self._file is not None:
            before = dict(self._entries)
            for _ in self._map(function, items[team.index :: team.count], description, num_threads):
                pass
            new = {key: entry for key, entry in self._entries.items() if before.get(key) != entry}
            parts = [self._file.with_name(f"{self._file.name}.{index}") for index in range(team.count)]
            self._write(parts[team.index])
            number = next(_passes)
            hosts.wait_for_all(f"manifest {number} is read")
            known = dict(self._entries)
            self._is_shared = parts[0].exists()  # a bucket's data have a copy, and a manifest, on each host
            for part in parts:
                self._entries |= _load(part)
            if not all(hosts.gather(self._is_shared, f"manifest {number} is shared")):
                self._entries |= _exchanged(new, f"manifest {number}")
            self._unsaved |= self._entries != known
            hosts.wait_for_all(f"manifest {number} is joined")
            parts[team.index].unlink(missing_ok=True)
        yield from self._map(function, items, description, num_threads)

    def _map(
        self, function: Callable[[Item], Result], items: Sequence[Item], description: str, num_threads: int | None
    ) -> Iterator[Result]:
        shown = tqdm(total=len(items), desc=description, disable=None if hosts.is_primary() else True, leave=False)
        try:
            with ThreadPoolExecutor(num_threads) as pool, shown:
                for start in range(0, len(items), _CHUNK):
                    chunk = items[start : start + _CHUNK]
                    parts = [chunk[first : first + _PART] for first in range(0, len(chunk), _PART)]
                    for results in pool.map(lambda part: [function(item) for item in part], parts):
                        yield from results
                        shown.update(len(results))
                    if time.monotonic() - self._saved_at > _SAVED_EVERY:
                        self.save()
        finally:  # after an error, or Ctrl-C, too
            self.save()

    def save(self) -> None:
        """Write what is new; the file appears whole or not at all. Of several processes, one per file does."""
        if self._is_shared and not hosts.is_primary():
            return
        if self._file is None or not (self._unsaved and self._writable):
            return
        with self._saving:
            self._unsaved, self._saved_at = False, time.monotonic()
            self._writable = self._write(self._file)

    def _write(self, file: Path) -> bool:
        """Write all entries to a file; where that fails, say so: the data are read again at the next start."""
        lines = "".join(
            json.dumps([key, *entry], separators=(",", ":")) + "\n" for key, entry in list(self._entries.items())
        ).encode()
        header = json.dumps({"format": _FORMAT, "crc32": zlib.crc32(lines)}) + "\n"
        try:
            make_directory(file.parent)
            sweep(file.parent, _LEFT_BEHIND)
            write_bytes(file, header.encode() + lines)
        except OSError as error:
            print(
                f"{printable(str(file))} can't be written ({error.strerror}): the next start reads all images again",
                file=sys.stderr,
            )
            return False
        return True

    def _name(self, path: Path) -> str:
        absolute = os.path.abspath(path)
        return absolute.removeprefix(self._prefix) if self._prefix else absolute


def _exchanged(new: dict[str, Entry], what: str) -> dict[str, Entry]:
    """What all processes have read, each of which gives what it has, in parts that a message holds."""
    lines: list[Any] = [[key, *entry] for key, entry in new.items()]
    found: dict[str, Entry] = {}
    for part in range(max(hosts.gather(-(-len(lines) // _SENT), f"{what} has parts"))):
        mine = lines[part * _SENT : (part + 1) * _SENT]
        for of_process in hosts.gather(mine, f"{what} part {part}"):
            found |= {key: (size, mtime_ns, facts) for key, size, mtime_ns, facts in of_process}
    return found


def _load(file: Path) -> dict[str, Entry]:
    """Read the entries of a file; none if it is missing, damaged, or of another format."""
    try:
        with open_file(file) as opened:
            header, lines = json.loads(opened.readline(1000)), opened.read()
        if header != {"format": _FORMAT, "crc32": zlib.crc32(lines)}:
            return {}
        entries: Iterable[list[Any]] = json.loads(b"[" + b",".join(lines.splitlines()) + b"]")
        return {key: (size, mtime_ns, found) for key, size, mtime_ns, found in entries}
    except (OSError, ValueError, RecursionError):
        return {}
