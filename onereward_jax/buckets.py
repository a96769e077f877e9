"""Directories in a bucket of an object store, gs://BUCKET/PATH.

A checkpoint is written and read there. Everything else of a run's working directory is written into a local copy,
which `push` brings to the bucket: at the start, every minute, before each checkpoint and at the end; but for encoded
prompts, of which every process makes its own. What others wrote, such as preferences and models, is read from a local
copy, too.

An object appears whole or not at all, is there for everyone once it was written, and has an MD5 of the store. There are
no directories, no renames and no locks. Credentials are found as Google's libraries find them; with
STORAGE_EMULATOR_HOST, and TENSORSTORE_GCS_HTTP_URL for the arrays of checkpoints, an emulator takes the store's place.

gcsfs and `etils.epath` are imported once they are needed: a wrong command line is answered at once.
"""

import base64
import contextlib
import datetime
import errno
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onereward_jax.atomic_files import OUTPUT_FILE, make_directory
from onereward_jax.errors import Fault, UserError

if TYPE_CHECKING:
    from etils import epath

_SCHEME = "gs://"
_NATIVE = ("checkpoints", "best", "programs")  # of a working directory: written to the bucket by Orbax and by JAX
_OWN = ("prompts",)  # of a working directory: large, and made by every process alike
_MARKS = {"config.json", OUTPUT_FILE}  # of a working directory, and of an output: none loses them
_RUN = {"config.json", "metrics.jsonl"}  # of a working directory, which may be read as the policy of its run
_LOCAL = re.compile(r"\.lock|\.[0-9a-f]{16}\.tmp|\..*\.(partial|replaced)|\.onereward_manifest.*")  # names of files
_RECORDS = (".json", ".jsonl")  # ends of names
_THREADS = 16
_AT_ONCE = 1 << 26  # bytes


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is of a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def path(name: str | os.PathLike) -> "epath.Path":
    """A local path, or one of a bucket.

    Raises:
      UserError: what reads buckets is not installed.
    """
    from etils import epath

    if is_bucket(name):
        _file_system()
    return epath.Path(name)


def listed(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """{path below the directory: {"size": bytes, "md5": hexadecimal}} of all objects; composite ones have no MD5.

    Raises:
      OSError: the bucket is not there, or can't be read.
    """
    return {name: _described(about) for name, about in _found(directory).items()}


def _found(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """{path below the directory: the store's description} of all objects."""
    prefix = os.fspath(directory).removeprefix(_SCHEME).rstrip("/") + "/"
    found = _asked(lambda: _file_system().find(_SCHEME + prefix, detail=True))
    return {
        name.removeprefix(prefix): about
        for name, about in found.items()
        if name.startswith(prefix) and not name.endswith("/")
    }


def _described(about: dict[str, Any]) -> dict[str, Any]:
    md5 = about.get("md5Hash")
    return {"size": about["size"]} | ({"md5": base64.b64decode(md5).hex()} if md5 else {})


# --------------------------------------------------------------------------------------------------------- local copies


class _Copy:
    """A local directory that is a copy of one in a bucket.

    Attributes:
      url: of that one.
      pushed: whether what changes here is for the bucket.
      left: names at the top that are not copied. Only a working directory has such: in a user's own data, a folder of
        the same name is data.
    """

    def __init__(self, local: Path, url: str, pushed: bool, left: tuple[str, ...]):
        self.local, self.url, self.pushed, self.left = local, url, pushed, left
        self._lock = threading.Lock()
        self._times: dict[str, str] = {}  # name -> when the bucket's was written
        self._same: dict[str, tuple[int, int]] = {}  # name -> (size, time) of the files that the bucket has, too

    def pull(self, below: str = "") -> None:
        with self._lock:
            there, gone, missing = self._behind(below)
            for name in gone:
                (self.local / name).unlink()
                self._same.pop(name, None)
            self._each(self._get, missing)
            for name in there:
                self._set_time(name, self.local / name)
            self._same |= {name: _stamp(self.local / name) for name in there}

    def is_as_the_bucket(self, below: str) -> bool:
        with self._lock:
            _, gone, missing = self._behind(below)
            return not gone and not missing

    def _behind(self, below: str) -> tuple[dict[str, dict[str, Any]], set[str], list[str]]:
        """What the bucket has, and of its names those that are only here, and those that are not here."""
        found = _found(self.url)
        if found.keys() >= _RUN:
            self.left = _NATIVE + _OWN
        there = {name: _described(about) for name, about in found.items() if self._is_copied(name, below)}
        self._times = {name: found[name].get("timeCreated", "") for name in there}
        here = {name for name in self._files() if self._is_copied(name, below)}
        return there, here - there.keys(), [name for name, about in there.items() if not self._has(name, about)]

    def push(self) -> None:
        with self._lock:
            here = {}
            for name in self._files():
                with contextlib.suppress(FileNotFoundError):  # it has just been removed
                    if self._is_copied(name):
                        here[name] = _stamp(self.local / name)
            marks_there = self._same.keys() & _MARKS
            if marks_there and not marks_there & here.keys():
                raise OSError(
                    errno.ENOENT, f"its local copy, {self.local}, was removed or cleaned: nothing is removed there"
                )
            changed = [name for name, stamp in here.items() if self._same.get(name) != stamp]
            gone = self._same.keys() - here.keys()
            # An output is whole where its OUTPUT_FILE is: that goes first and comes last.
            marks = {name for name in changed if name.rpartition("/")[2] == OUTPUT_FILE}
            self._remove({*gone, *(marks & self._same.keys())})
            for names in ([name for name in changed if name not in marks], marks):
                self._each(self._put, names)
                self._same |= {name: here[name] for name in names}

    def _files(self) -> Iterator[str]:
        for above, _, names in os.walk(self.local):
            yield from (Path(above, name).relative_to(self.local).as_posix() for name in names)

    def _is_copied(self, name: str, below: str = "") -> bool:
        parts = name.split("/")
        return (
            parts[0] not in self.left
            and not any(_LOCAL.fullmatch(part) for part in parts)
            and (not below or name == below or name.startswith(f"{below}/"))
        )

    def _has(self, name: str, about: dict[str, Any]) -> bool:
        file = self.local / name
        if not file.is_file() or file.stat().st_size != about["size"]:
            return False
        if self._same.get(name) == _stamp(file):
            return True
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "md5").hexdigest() == about.get("md5")

    def _each(self, transfer: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: _asked(lambda: transfer(name)), names))

    def _get(self, name: str) -> None:
        file, temporary = self.local / name, self.local / f"{name}.part"
        file.parent.mkdir(parents=True, exist_ok=True)
        _file_system().get_file(f"{self.url}/{name}", str(temporary))
        self._set_time(name, temporary)
        temporary.replace(file)

    def _set_time(self, name: str, file: Path) -> None:
        """Give a file the bucket's time: what is known of it, by its time, then holds for the copies of all hosts."""
        if time := self._times.get(name):
            seconds = datetime.datetime.fromisoformat(time).timestamp()
            os.utime(file, (seconds, seconds))

    def _put(self, name: str) -> None:
        file, url = self.local / name, f"{self.url}/{name}"
        try:
            content = file.read_bytes() if file.stat().st_size <= _AT_ONCE else None
        except FileNotFoundError:  # it was removed meanwhile, which the next push sees
            return
        if content is None:
            _file_system().put_file(str(file), url)
        else:  # it may grow meanwhile
            _file_system().pipe_file(url, content)

    def _remove(self, names: set[str]) -> None:
        if names:
            _asked(lambda: _file_system().rm([f"{self.url}/{name}" for name in names]))
            for name in names:
                self._same.pop(name, None)


_copies: dict[Path, _Copy] = {}


def local(name: str | os.PathLike, owner: str = "workdir", pushed: bool = True) -> Path:
    """The local path of a directory: itself, or for one in a bucket the place of its copy, which `pull` fills.

    Args:
      owner: a word; each has a copy of its own.
      pushed: whether what changes in it is for the bucket.
    """
    if not is_bucket(name):
        return Path(name)
    url = os.fspath(name).rstrip("/")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if ".." in Path(url).parts or not url.removeprefix(_SCHEME):
        raise UserError(f"{name} is no path in a bucket: write gs://BUCKET/PATH")
    directory = Path(os.path.realpath(caches / "onereward_jax" / "gs" / owner)) / url.removeprefix(_SCHEME)
    if directory not in _copies:
        left = _NATIVE + _OWN if owner.startswith("workdir") else ()
        _copies[directory] = _Copy(directory, url, pushed, left)
    return directory


def _copy_of(path: Path) -> tuple[_Copy | None, str]:
    """The local copy that a path is of, and its path there, "" for all of it."""
    for above in (path, *path.parents):
        if above in _copies:
            return _copies[above], path.relative_to(above).as_posix().removeprefix(".")
    return None, ""


def native(path: Path) -> str | Path:
    """Where a path of a local copy is in the bucket; the path itself, where it is of none."""
    copy, below = _copy_of(path)
    return path if copy is None else f"{copy.url}/{below}".rstrip("/")


def pull(directory: Path) -> None:
    """Make a local copy, or a directory of it, as the bucket is; does nothing with other directories.

    Raises:
      UserError: the bucket is not there, or can't be read.
    """
    copy, below = _copy_of(directory)
    if copy is not None:
        with _readable(copy):
            copy.pull(below)


@contextlib.contextmanager
def _readable(copy: _Copy) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{copy.url} can't be read ({error.strerror}): check its name, and your access") from None


def push(directory: Path) -> None:
    """Bring what has changed in the local copy that a directory is of to the bucket; does nothing with others.

    Raises:
      OSError: it can't be done now.
    """
    copy, _ = _copy_of(directory)
    if copy is not None and copy.pushed:
        copy.push()


def push_all() -> None:
    """Bring what has changed in every local copy to its bucket.

    Raises:
      Fault: it can't be done now.
    """
    for directory, copy in _copies.items():
        try:
            push(directory)
        except OSError as error:
            raise Fault(
                f"{copy.url} can't be written ({error.strerror}): put it right, and give the same command again"
            ) from None


def reading(name: str | os.PathLike) -> Path:
    """A file or directory to read: itself, or the local copy of one in a bucket, brought up to date once.

    A file of records names others beside it, so all of its directory is copied.

    All processes of a machine share the copy, and none changes it while another reads it.

    Raises:
      UserError: the bucket is not there, can't be read, or has changed since a process that still runs has read it.
    """
    if not is_bucket(name):
        return Path(name)
    url = os.fspath(name).rstrip("/")
    if url not in _read:
        above, _, last = url.rpartition("/")
        if not _file_system().isfile(url):
            _read[url] = _pulled(local(name, "reading", pushed=False))
        elif last.endswith(_RECORDS):
            _read[url] = reading(above) / last
        else:
            _read[url] = _pulled(local(above, "reading", pushed=False) / last)
    return _read[url]


_read: dict[str, Path] = {}  # url -> its local copy


def _pulled(place: Path) -> Path:
    make_directory(place.parent)
    lock = os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # other processes of this machine read it
            fcntl.flock(lock, fcntl.LOCK_SH)
            _check_current(place)
        else:
            pull(place)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:  # or the lock would outlive what failed
        os.close(lock)
        raise
    return place  # locked as long as the process lives


def _check_current(place: Path) -> None:
    copy, below = _copy_of(place)
    assert copy is not None
    with _readable(copy):
        if not copy.is_as_the_bucket(below):
            raise UserError(
                f"{native(place)} has changed since another process of this machine has read it: wait for that one to"
                " end, or set XDG_CACHE_HOME to another directory"
            )


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def _asked(request: Callable[[], Any]) -> Any:
    """
    Raises:
      OSError: whatever gcsfs, aiohttp or Google's libraries raise; its `strerror` says why.
    """
    try:
        return request()
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "there is no such bucket") from error
    except Exception as error:  # of several libraries, with no class in common
        if isinstance(error, OSError) and error.strerror:
            raise
        raise OSError(None, str(error).partition("\n")[0][:200] or type(error).__name__) from error


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Who may not ask for a bucket's type would be told so at every request."""
    return "bucket type" not in record.getMessage()


def _file_system() -> Any:
    """What `etils.epath` uses for gs://, too."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # else epath takes TensorFlow, where that happens to be installed
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        raise UserError("a path in a bucket (gs://) needs gcsfs: pip install 'onereward-jax[gs]'") from None
    logging.getLogger("gcsfs").addFilter(_is_of_interest)
    # Other processes and TensorStore write there as well: what a listing said a while ago is of no use.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)
