"""What a power cut may leave: a program's system calls, which strace records, and the disk at any moment of them.

A write is on the disk for certain once an fsync of the file that began after it has ended; a name in a directory once
an fsync of the directory has. Before that, POSIX and a file system with delayed allocation allow any mixture: a file
without content, with zeros or with a part of it; names that are missing, removed or renamed in another order.
"""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_CALLS = (
    "open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,lseek,truncate,ftruncate,rename,renameat,renameat2,mkdir,"
    "mkdirat,unlink,unlinkat,rmdir,fsync,fdatasync,fcntl,dup,dup2,dup3,link,linkat,symlink,symlinkat,sendfile,"
    "copy_file_range,splice,msync,io_uring_setup"
)
_UNKNOWN = {"link", "linkat", "symlink", "symlinkat", "truncate", "pwritev", "pwritev2", "copy_file_range", "splice"}
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\((.*)| resumed>(.*))")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_RESULT = re.compile(r"\) += (-?\d+)(?:<((?:\\x[0-9a-f]{2})*)>)?")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(eq=False)
class File:
    """A file: what was written when, as (moment, offset, bytes); a truncation has None for bytes."""

    writes: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)  # moments of start and end

    def size(self) -> int:
        return len(_content(self.writes))


@dataclass(eq=False)
class Directory:
    """A directory: its names now, and the changes to them, as (moment, {name: what it means, None for nothing})."""

    names: dict[str, "File | Directory"] = field(default_factory=dict)
    changes: list[tuple[int, "dict[str, File | Directory | None]"]] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)


def synced(node: File | Directory, moment: int) -> int:
    """The moment up to which a file or directory is on the disk for certain."""
    return max((start for start, end in node.syncs if end <= moment), default=-1)


class Recording:
    """What a program did below a directory.

    Attributes:
      root: the directory.
      said: (moment, line) of its standard output.
      moments: those at which something changed or was synced.
    """

    def __init__(self, root: Path, trace: Path):
        self._path = str(root)
        self.root = Directory()
        self.said: list[tuple[int, str]] = []
        self.moments: list[int] = []
        self._descriptors: dict[str, str] = {}
        self._positions: dict[str, int] = {}
        waiting: dict[str, tuple[int, str]] = {}
        for moment, line in enumerate(trace.read_text().splitlines()):
            found = _LINE.match(line)
            if not found:
                continue
            thread, call, begun, rest = found.groups()
            if begun is not None and begun.endswith("<unfinished ...>"):
                waiting[thread] = (moment, begun.removesuffix("<unfinished ...>"))
                continue
            start, text = moment, begun
            if begun is None:
                start, text = waiting.pop(thread)
                text += rest
            result = _RESULT.search(text)
            if result and int(result[1]) >= 0:
                arguments = text[: result.start()]
                self._call(call, arguments, int(result[1]), result[2], start, moment)

    def _call(self, call: str, arguments: str, result: int, opened: str | None, start: int, moment: int) -> None:
        strings = [_bytes(text) for text in _STRING.findall(arguments)]
        descriptors = [(number, _bytes(path).decode()) for number, path in _DESCRIPTOR.findall(arguments)]
        if call == "write" and arguments.startswith("1<"):
            self.said += [(start, line) for line in strings[0].decode().splitlines()]
        if opened is not None:
            self._descriptors[str(result)] = _bytes(opened).decode()
        match call:
            case "open" | "openat" | "creat" if opened is not None:
                path = _bytes(opened).decode()
                if (node := self._find(path)) is None:
                    if "O_CREAT" not in arguments or not self._below(path):
                        return
                    node = File()
                    self._set(path, node, moment)
                elif "O_TRUNC" in arguments and isinstance(node, File) and node.size():
                    node.writes.append((moment, 0, None))
                    self.moments.append(moment)
                self._positions[str(result)] = node.size() if "O_APPEND" in arguments else 0
            case "write" | "writev" | "pwrite64" | "sendfile" if descriptors:
                number, path = descriptors[0]
                node = self._find(path)
                if isinstance(node, File):
                    assert call != "sendfile", "the program is not to copy files: strace doesn't say what"
                    place = int(arguments.rpartition(",")[2]) if call == "pwrite64" else self._positions[number]
                    node.writes.append((moment, place, b"".join(strings)[:result]))
                    self._positions[number] = place + result
                    self.moments.append(moment)
            case "lseek" if descriptors:
                self._positions[descriptors[0][0]] = result
            case "ftruncate" if descriptors:
                node = self._find(descriptors[0][1])
                assert not isinstance(node, File) or not node.size(), "the program is not to truncate files"
            case "fsync" | "fdatasync" if descriptors:
                if (node := self._find(descriptors[0][1])) is not None:
                    node.syncs.append((start, moment))
                    self.moments.append(moment)
            case "mkdir" | "mkdirat":
                self._set(self._where(strings[0], descriptors), Directory(), moment)
            case "unlink" | "unlinkat" | "rmdir":
                self._set(self._where(strings[0], descriptors), None, moment)
            case "rename" | "renameat" | "renameat2":
                between = [*descriptors, *descriptors][1:2]
                self._rename(self._where(strings[0], descriptors), self._where(strings[1], between), moment)
            case _ if call in _UNKNOWN:
                assert not self._below(self._where(strings[0], descriptors) if strings else descriptors[0][1]), call

    def _where(self, path: bytes, descriptors: list[tuple[str, str]]) -> str:
        text = path.decode()
        if not text.startswith("/"):
            return f"{descriptors[0][1]}/{text}" if descriptors else text
        if found := re.match(r"/proc/self/fd/(\d+)", text):
            return self._descriptors[found[1]] + text[found.end() :]
        return text

    def _below(self, path: str) -> bool:
        return path.startswith(f"{self._path}/")

    def _find(self, path: str) -> File | Directory | None:
        if path == self._path:
            return self.root
        if not self._below(path):
            return None
        node: File | Directory | None = self.root
        for name in path[len(self._path) + 1 :].split("/"):
            node = node.names.get(name) if isinstance(node, Directory) else None
        return node

    def find(self, path: str) -> File | Directory:
        node = self._find(f"{self._path}/{path}")
        assert node is not None, path
        return node

    def _set(self, path: str, node: File | Directory | None, moment: int) -> None:
        if not self._below(path):
            return
        above, _, name = path.rpartition("/")
        directory = self._find(above)
        assert isinstance(directory, Directory), path
        self._change(directory, {name: node}, moment)

    def _change(self, directory: Directory, change: dict[str, File | Directory | None], moment: int) -> None:
        directory.changes.append((moment, change))
        directory.names = {name: node for name, node in (directory.names | change).items() if node is not None}
        self.moments.append(moment)

    def _rename(self, source: str, target: str, moment: int) -> None:
        if not (self._below(source) or self._below(target)):
            return
        node = self._find(source)
        assert node is not None, source
        assert self._below(target), target
        above, _, name = source.rpartition("/")
        new_above, _, new_name = target.rpartition("/")
        if above == new_above:  # one change: a rename is never half done
            directory = self._find(above)
            assert isinstance(directory, Directory)
            self._change(directory, {name: None, new_name: node}, moment)
        else:
            self._set(source, None, moment)
            self._set(target, node, moment)

    # --------------------------------------------------------------------------------------------- after a power cut

    def leave(self, directory: Path, moment: int, rng: np.random.Generator) -> list[str]:
        """Makes one of the states that a power cut at a moment may leave; returns what the program had said by then."""
        share = rng.choice([0.0, 0.5, 0.9, 1.0])  # of the names that are not for certain on the disk
        _leave(self.root, directory, moment, rng, share)
        return [line for at, line in self.said if at <= moment]


def _leave(node: Directory, path: Path, moment: int, rng: np.random.Generator, share: float) -> None:
    path.mkdir()
    certain = synced(node, moment)
    names: dict[str, File | Directory] = {}
    lost: set[str] = set()
    for at, change in node.changes:
        if at > moment:
            break
        if at > certain and (lost & change.keys() or rng.random() >= share):
            lost |= change.keys()  # what came after it to the same names is lost with it
            continue
        names = {name: inner for name, inner in (names | change).items() if inner is not None}
    for name, inner in names.items():
        if isinstance(inner, Directory):
            _leave(inner, path / name, moment, rng, share)
        else:
            (path / name).write_bytes(_remains(inner, moment, rng))


def _remains(file: File, moment: int, rng: np.random.Generator) -> bytes:
    certain = synced(file, moment)
    kept = [write for write in file.writes if write[0] <= certain]
    rest = [write for write in file.writes if certain < write[0] <= moment]
    match rng.integers(4):
        case 0:  # nothing of it
            rest = []
        case 1:  # the size is there, and some of the blocks
            rest = [
                (at, place, data and (data if rng.random() < 0.5 else bytes(len(data)))) for at, place, data in rest
            ]
        case 2 if rest:  # up to some byte
            rest = rest[: rng.integers(len(rest)) + 1]
            at, place, data = rest[-1]
            rest[-1] = (at, place, data and data[: rng.integers(len(data) + 1)])
    return _content(kept + rest)


def _content(writes: list[tuple[int, int, bytes | None]]) -> bytes:
    content = bytearray()
    for _, place, data in writes:
        if data is None:
            content.clear()
            continue
        content.extend(bytes(max(0, place + len(data) - len(content))))
        content[place : place + len(data)] = data
    return bytes(content)


def record(root: Path, trace: Path, command: list[str], environment: dict[str, str]) -> Recording:
    """Runs a Python program under strace; what it does below `root`, which is empty, is recorded."""
    options = ["-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", f"trace={_CALLS}", "-o", str(trace)]
    subprocess.run(
        ["strace", *options, sys.executable, *command], check=True, env=environment, stdout=subprocess.PIPE, timeout=120
    )
    return Recording(root, trace)
