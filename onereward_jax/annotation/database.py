"""A SQLite file of votes: whose it is, how it is opened, transactions that are on the disk at their end, errors told.

Kept apart from what is stored in it, which is in `annotation.store`.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onereward_jax.errors import UserError

APPLICATION = 0x4F52564F  # "ORVO", in the file's header: other programs' databases are refused
VERSION = 1
BUSY = 2.0  # seconds to wait for another process's write


class Unavailable(UserError):
    """The database can't be written or read now; the message is one sentence, and nothing was half-saved."""


class Clock:
    """Seconds since the epoch that never go back, whatever is done to the machine's clock.

    Differences are those of the monotonic clock; at a start, time is at least the latest that was stored.
    """

    def __init__(self, at_least: float):
        self._offset = max(time.time(), at_least) - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset


class Database:
    """A file in WAL mode, with one connection that writes and one that reads; calls may come from any thread."""

    def __init__(self, path: Path, schema: str, create: bool):
        """
        Args:
          schema: the tables of a new file, SQL.
          create: make the file if it is not there.

        Raises:
          UserError: it is no database of votes, or one of a newer release, or not there.
          Unavailable: it can't be opened for writing.
        """
        self.path = path
        if path.exists() and not path.is_file():  # a device would take anything
            raise UserError(f"{path} is no file: give another by --votes")
        if not create and not path.exists():
            raise UserError(f"{path} does not exist: annotate first, or give another file by --votes")
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} is no directory: give the votes a file in one that is there")
        self._lock, self._reading = threading.RLock(), threading.RLock()
        with self._sqlite_errors():
            self._writer = self._connect()
            self._prepare(schema)
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only=ON")

    def close(self) -> None:
        """Close the file; what was stored stays."""
        with self._lock, self._reading:
            self._reader.close()
            self._writer.close()

    def lock(self) -> int:
        """Keep other processes from giving out assignments, as long as this one lives; they may read.

        Returns:
          a descriptor that holds the lock until it is closed.

        Raises:
          UserError: another process does.
        """
        path = self.path.with_name(f"{self.path.name}.lock")
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise UserError(f"another process uses {self.path}: stop it, or give another file by --votes") from None
        return held

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)

    def _prepare(self, schema: str) -> None:
        """Check whose file it is, and make the tables in an empty one."""
        value = lambda query: self._writer.execute(query).fetchone()[0]
        self._writer.execute("PRAGMA trusted_schema=OFF")
        empty = value("SELECT count(*) FROM sqlite_master") == 0
        if not empty and value("PRAGMA application_id") != APPLICATION:
            raise UserError(f"{self.path} is another program's database: give another file by --votes")
        if value("PRAGMA user_version") > VERSION:
            raise UserError(f"{self.path} is of a newer release: install that, or give another file by --votes")
        if value("PRAGMA journal_mode=WAL") != "wal":
            raise UserError(f"{self.path} is on a file system without shared memory: put the votes on a local disk")
        self._writer.execute("PRAGMA synchronous=FULL")
        self._writer.execute("PRAGMA foreign_keys=ON")
        if empty:
            with self._writing():
                for statement in schema.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA application_id={APPLICATION}")
                self._writer.execute(f"PRAGMA user_version={VERSION}")

    @contextlib.contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise _sentence(error, self.path) from error

    @contextlib.contextmanager
    def _writing(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction, which is on the disk at its end or, after an error, has changed nothing.

        Args:
          durable: False spares the wait for the disk: a power cut may take it back as a whole, a kill may not.
        """
        with self._lock, self._sqlite_errors():
            if not durable:
                self._writer.execute("PRAGMA synchronous=NORMAL")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:  # whatever ends it, nothing of it may stay
                if self._writer.in_transaction:  # of a full disk, SQLite may have ended it itself
                    self._writer.execute("ROLLBACK")
                raise
            finally:
                if not durable:
                    self._writer.execute("PRAGMA synchronous=FULL")

    def _read(self, query: str, *values: Any) -> list[tuple]:
        with self._reading, self._sqlite_errors():
            return self._reader.execute(query, values).fetchall()


def _sentence(error: sqlite3.DatabaseError, path: Path) -> UserError:
    """Say what is wrong with a database, and what to do."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return Unavailable(f"the disk is full at {path}: make room, then try again")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(f"{path} is in use by another program: close it, then try again")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_AUTH")):
        return Unavailable(f"{path} can't be written: check its permissions and its disk, then try again")
    if name.startswith("SQLITE_IOERR"):
        return Unavailable(f"{path} can't be read or written ({name}): check its disk, then try again")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return UserError(f"{path} is no database, or is damaged: give another file by --votes")
    return Unavailable(f"{path} can't be used ({error}): try again")
