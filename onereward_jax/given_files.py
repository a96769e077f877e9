"""Files that a user or another program wrote: opened only if they are files, and read as JSON or as JSON lines.

Whatever they hold, the answer is a value or one sentence; a bad line of a JSON-lines file is one bad record.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onereward_jax.errors import UserError

MAX_LINE = 2**26  # bytes of a line of JSON
MAX_JSON = 2**26  # bytes of a configuration, an index or a result; an official index has a hundred thousand
MAX_DEPTH = 200  # of nested JSON: far from where Python's own reader and writer fail, each at another depth
# Why the operating system refuses a path that no permission and no other file would mend.
BAD_PATHS = {
    errno.ELOOP: "is a symbolic link that leads back to itself: give the file itself",
    errno.ENAMETOOLONG: "is too long for a path: check it",
    errno.ENXIO: "is a socket and not a file: give a file",
}


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file to read its bytes; a pipe or a device, which might never end, is refused.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError: the path can't be opened.
      UserError: it is no path, or of no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else opening a pipe would wait
    except ValueError as error:  # a NUL, half of a character
        raise UserError(f"{os.fspath(path)!r} is no path ({error}): check it") from None
    except OSError as error:
        if error.errno in BAD_PATHS:
            shown = os.fspath(path)
            raise UserError(f"{shown if len(shown) < 100 else shown[:60] + '…'} {BAD_PATHS[error.errno]}") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise UserError(f"{path} is a pipe or a device and not a file: give a file")
    return open(descriptor, "rb")


def read_bytes(path: str | os.PathLike, limit: int | None = None) -> bytes:
    """Read a regular file: see `open_file`.

    Raises:
      UserError: it is longer than `limit`.
    """
    with open_file(path) as file:
        if limit is not None and (size := os.fstat(file.fileno()).st_size) > limit:
            raise UserError(f"{path} is too large, {size / 2**20:.0f} MiB: reduce it to at most {limit >> 20} MiB")
        return file.read()


def read_text(path: str | os.PathLike, limit: int | None = None) -> str:
    """Read text as any editor saves it; what is no UTF-8 becomes U+FFFD. See `read_bytes`."""
    return read_bytes(path, limit).decode("utf-8-sig", errors="replace")


def path_beside(folder: Path, name: Any, inside_only: bool = False) -> Path:
    """Return the path that a record names: relative to a folder, or absolute.

    Args:
      inside_only: refuse one that leads out of the folder, by "..", from the root, or by a symbolic link.

    Raises:
      UserError: it is no path, or leads out.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{name!r} is no path: give one relative to {folder}")
    if "\0" in name or any("\ud800" <= character < "\udc80" for character in name):
        raise UserError(f"{name!r} is no path: check it")
    path = folder / name
    if inside_only and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{name} leads out of {folder}, which must hold all its files: copy it there")
    return path


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that can be written again: no NaN or infinity, and only whole characters.

    Args:
      content: UTF-8, with or without a byte order mark.

    Raises:
      UserError: it is not that; says why, as in "it is no JSON (...)".
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
            raise RecursionError
        return value
    except UnicodeDecodeError as error:
        raise UserError(f"it is no UTF-8 text ({error.reason} at byte {error.start})") from None
    except UnicodeEncodeError:
        raise UserError("it is no JSON (a \\u escape stands for half of a character)") from None
    except RecursionError:
        raise UserError("it is no JSON that can be read (it is nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"it is no JSON ({error})") from None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level if isinstance(item, (dict, list)) for child in _children(item)]
    return bool(level)


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text)


def read_json(path: str | os.PathLike, advice: str = "put another copy there", limit: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object from a file that another program wrote: see `open_file` and `parse_json`.

    Args:
      advice: what to do if it is damaged.
      limit: bytes that it may have.

    Raises:
      UserError: the file holds no JSON object.
    """
    try:
        value = parse_json(read_bytes(path, limit))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path} can't be read, {error}: {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} can't be read, it is no JSON object: {advice}")
    return value


@dataclass(frozen=True)
class Line:
    """A line of a JSON-lines file: an object, or a bad record.

    Attributes:
      where: "requests.jsonl, line 3", for messages.
      content: its bytes, without the end of the line.
    """

    where: str
    content: bytes

    def fields(self) -> dict[str, Any]:
        """The object.

        Raises:
          UserError: it is none; the sentence leaves `where` to the caller.
        """
        if len(self.content) > MAX_LINE:
            raise UserError(f"it is longer than {MAX_LINE >> 20} MiB: write one object per line")
        try:
            value = parse_json(self.content)
        except UserError as error:
            raise UserError(f"{error}: write one object per line") from None
        if not isinstance(value, dict):
            raise UserError(f"it is {type(value).__name__} and no object: write one object per line")
        return value


def json_lines(path: str | os.PathLike) -> Iterator[Line]:
    """Read a JSON-lines file line by line: only LF, or CR LF, ends a line, and empty lines are no records.

    Raises:
      FileNotFoundError, ..., UserError: see `open_file`; never because of what a line holds.
    """
    with open_file(path) as file:
        number = 0
        while content := file.readline(MAX_LINE + 1):
            number += 1
            rest = content
            while len(rest) > MAX_LINE and not rest.endswith(b"\n"):  # too long to be a record: look for its end
                rest = file.readline(MAX_LINE + 1)
            content = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
            if content.strip():
                yield Line(f"{path}, line {number}", content.rstrip(b"\r\n"))
