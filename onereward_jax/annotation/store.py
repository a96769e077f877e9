"""Votes in SQLite: annotators, what they were given, what they answered.

One file in WAL mode with `synchronous=FULL`: what a call has returned is on the disk. Any number of processes may read
it while one, `onereward annotate`, writes. Nothing is removed: an answer that was taken back stays there, marked.

    store = Store(Path("votes.sqlite"))
    for answer in store.answers(): ...
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onereward_jax.annotation.answer import Answer, Kind
from onereward_jax.annotation.ballot import Choice
from onereward_jax.annotation.database import Clock, Database

FILE = "votes.sqlite"  # in the data's directory, unless another is given
KINDS: tuple[Kind, ...] = ("plain", "repeat", "gold")
OPEN, ANSWERED, SKIPPED, PASSED_ON = range(4)  # states of an assignment; the last: it came back and others have it
_CHUNK = 1000  # rows

_SCHEMA = """
CREATE TABLE annotator (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token BLOB, organiser INTEGER NOT NULL DEFAULT 0);
CREATE TABLE session (
  digest BLOB PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotator, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE record (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, task TEXT NOT NULL, prompt TEXT NOT NULL, models TEXT NOT NULL,
  source TEXT NOT NULL);
CREATE TABLE assignment (
  id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, annotator INTEGER NOT NULL REFERENCES annotator,
  record INTEGER NOT NULL REFERENCES record, job TEXT NOT NULL, kind INTEGER NOT NULL, shown TEXT NOT NULL,
  state INTEGER NOT NULL, at REAL NOT NULL, due REAL NOT NULL);
CREATE UNIQUE INDEX assignment_once ON assignment (annotator, record, job, kind);
CREATE TABLE vote (
  id INTEGER PRIMARY KEY, assignment INTEGER NOT NULL REFERENCES assignment,
  annotator INTEGER NOT NULL REFERENCES annotator, key TEXT NOT NULL, answers TEXT NOT NULL, reason TEXT NOT NULL,
  points TEXT NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX vote_once ON vote (assignment) WHERE NOT undone;
CREATE UNIQUE INDEX vote_key ON vote (assignment, key);
CREATE INDEX vote_of ON vote (annotator, at);
"""
_VOTES = """
SELECT r.name, r.task, r.prompt, a.job, p.name, a.kind, v.seconds, v.at, v.answers, r.models, r.source, v.reason,
  v.points, v.id
FROM vote v JOIN assignment a ON a.id = v.assignment JOIN record r ON r.id = a.record
  JOIN annotator p ON p.id = v.annotator
WHERE NOT v.undone AND v.id > ? {} ORDER BY v.id LIMIT ?
"""


class Person(NamedTuple):
    """An annotator, or an organiser."""

    id: int
    name: str
    organiser: bool


class StoredRecord(NamedTuple):
    """What answers say about a record; see `Answer`."""

    task: str
    prompt: str
    models: tuple[str, ...]
    source: str


class Assignment(NamedTuple):
    """What an annotator was given.

    Attributes:
      id: 0 before it is stored.
      code: what the page calls it: tells nothing.
      record: name of the record.
      shown: the candidate at each place.
      state: `OPEN`, `ANSWERED`, `SKIPPED` or `PASSED_ON`.
      at, due: when it was given, and when it comes back, by the store's clock.
    """

    id: int
    code: str
    annotator: int
    record: str
    job: str
    kind: Kind
    shown: tuple[int, ...]
    state: int
    at: float
    due: float


class Vote(NamedTuple):
    """The answers to an assignment, candidates numbered as in the record."""

    assignment: int
    annotator: int
    key: str
    choices: Sequence[Choice]
    reason: str = ""
    points: Sequence[tuple[int, float, float]] = ()
    seconds: float = 0.0


class Store(Database):
    """A database of votes; calls may come from any thread.

    What can't be stored or read now is `database.Unavailable`, and nothing was half-saved.
    """

    def __init__(self, path: Path, create: bool = True):
        """
        Args:
          create: make the file if it is not there.

        Raises:
          UserError: it is no database of votes, or one of a newer release, or not there.
          Unavailable: it can't be opened for writing.
        """
        super().__init__(path, _SCHEMA, create)
        latest = "SELECT max(coalesce((SELECT max(at) FROM assignment), 0), coalesce((SELECT max(at) FROM vote), 0))"
        self._clock = Clock(self._read(latest)[0][0])

    def now(self) -> float:
        """The time, in seconds since the epoch; it never goes back."""
        return self._clock.now()

    # -------------------------------------------------------------------------------------------------- annotators

    def person(self, name: str) -> Person | None:
        """Return the annotator of a name."""
        found = self._read("SELECT id, name, organiser FROM annotator WHERE name = ?", name)
        return Person(found[0][0], found[0][1], bool(found[0][2])) if found else None

    def people(self) -> list[Person]:
        """Return all annotators and organisers, in order of their names."""
        found = self._read("SELECT id, name, organiser FROM annotator ORDER BY name")
        return [Person(number, name, bool(organiser)) for number, name, organiser in found]

    def add_person(self, name: str, token: bytes | None = None, organiser: bool = False) -> Person:
        """Add an annotator, or return the one of this name.

        Args:
          token: digest of the token; it replaces an earlier one, whose sessions end.
        """
        with self._writing() as writer:
            writer.execute("INSERT OR IGNORE INTO annotator (name, organiser) VALUES (?, ?)", (name, organiser))
            if token is not None:
                writer.execute("UPDATE annotator SET token = ? WHERE name = ?", (token, name))
                writer.execute(
                    "DELETE FROM session WHERE annotator = (SELECT id FROM annotator WHERE name = ?)", (name,)
                )
            row = writer.execute("SELECT id, name, organiser FROM annotator WHERE name = ?", (name,)).fetchone()
        return Person(row[0], row[1], bool(row[2]))

    def tokens(self) -> list[tuple[Person, bytes]]:
        """Return the digests of all tokens."""
        found = self._read("SELECT id, name, organiser, token FROM annotator WHERE token IS NOT NULL")
        return [(Person(number, name, bool(organiser)), token) for number, name, organiser, token in found]

    def add_session(self, digest: bytes, annotator: int, lasts: float) -> None:
        """Open a session; those that are older than `lasts` seconds end."""
        now = self.now()
        with self._writing() as writer:
            writer.execute("DELETE FROM session WHERE at < ?", (now - lasts,))
            writer.execute("INSERT INTO session (digest, annotator, at) VALUES (?, ?, ?)", (digest, annotator, now))

    def end_session(self, digest: bytes) -> None:
        with self._writing() as writer:
            writer.execute("DELETE FROM session WHERE digest = ?", (digest,))

    def session(self, digest: bytes, lasts: float) -> Person | None:
        """Return whose session it is, if it is open and not older than `lasts` seconds."""
        found = self._read(
            "SELECT p.id, p.name, p.organiser FROM session s JOIN annotator p ON p.id = s.annotator"
            " WHERE s.digest = ? AND s.at >= ?",
            digest,
            self.now() - lasts,
        )
        return Person(found[0][0], found[0][1], bool(found[0][2])) if found else None

    # -------------------------------------------------------------------------------------------------- assignments

    def records(self) -> dict[str, StoredRecord]:
        """{name: record} of all that were given to somebody."""
        found = self._read("SELECT name, task, prompt, models, source FROM record")
        return {
            name: StoredRecord(task, prompt, tuple(json.loads(models)), source)
            for name, task, prompt, models, source in found
        }

    def add_assignment(self, new: Assignment, record: StoredRecord) -> Assignment:
        """Store what was given to an annotator, and what answers say about its record, if that is not known.

        A power cut, unlike a kill, may take it back: the annotator then gets another.

        Returns:
          the assignment, with its id.
        """
        with self._writing(durable=False) as writer:
            writer.execute(
                "INSERT OR IGNORE INTO record (name, task, prompt, models, source) VALUES (?, ?, ?, ?, ?)",
                (new.record, record.task, record.prompt, json.dumps(record.models), record.source),
            )
            cursor = writer.execute(
                "INSERT INTO assignment (code, annotator, record, job, kind, shown, state, at, due)"
                " SELECT ?, ?, id, ?, ?, ?, ?, ?, ? FROM record WHERE name = ?",
                (new.code, new.annotator, new.job, KINDS.index(new.kind), json.dumps(new.shown), new.state, new.at)
                + (new.due, new.record),
            )
        return new._replace(id=int(cursor.lastrowid or 0))

    def change_assignment(self, assignment: int, state: int, due: float) -> None:
        with self._writing() as writer:
            writer.execute("UPDATE assignment SET state = ?, due = ? WHERE id = ?", (state, due, assignment))

    def assignment(self, code: str) -> Assignment | None:
        """Return the assignment of a code."""
        found = self._read(f"{_ASSIGNMENTS} WHERE a.code = ?", code)
        return _assignment(found[0]) if found else None

    def assignments(self, job: str) -> Iterator[Assignment]:
        """Yield all assignments of a job, in the order in which they were given."""
        last = 0
        while rows := self._read(f"{_ASSIGNMENTS} WHERE a.job = ? AND a.id > ? ORDER BY a.id LIMIT 1000", job, last):
            yield from map(_assignment, rows)
            last = rows[-1][0]

    # -------------------------------------------------------------------------------------------------------- votes

    def add_vote(self, vote: Vote) -> float:
        """Store a vote, and that its assignment is answered; return its time. It is on the disk then.

        Raises:
          sqlite3.IntegrityError: the assignment has one.
        """
        at = self.now()
        with self._writing() as writer:
            writer.execute(
                "INSERT INTO vote (assignment, annotator, key, answers, reason, points, seconds, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (vote.assignment, vote.annotator, vote.key, _json(vote.choices), vote.reason, _json(vote.points))
                + (vote.seconds, at),
            )
            writer.execute("UPDATE assignment SET state = ? WHERE id = ?", (ANSWERED, vote.assignment))
        return at

    def vote_of_key(self, assignment: int, key: str) -> bool | None:
        """Whether the vote with a key was taken back; None if there is none."""
        found = self._read("SELECT undone FROM vote WHERE assignment = ? AND key = ?", assignment, key)
        return bool(found[0][0]) if found else None

    def latest_vote(self, annotator: int, job: str) -> str | None:
        """Return the code of the assignment that an annotator answered last."""
        found = self._read(
            "SELECT a.code FROM vote v JOIN assignment a ON a.id = v.assignment WHERE v.annotator = ? AND a.job = ?"
            " AND NOT v.undone ORDER BY v.at DESC, v.id DESC LIMIT 1",
            annotator,
            job,
        )
        return found[0][0] if found else None

    def undo(self, assignment: int, due: float) -> None:
        """Take back the vote of an assignment, which is open again; what was answered stays in the file."""
        with self._writing() as writer:
            writer.execute("UPDATE vote SET undone = 1 WHERE assignment = ? AND NOT undone", (assignment,))
            writer.execute("UPDATE assignment SET state = ?, due = ? WHERE id = ?", (OPEN, due, assignment))

    def undone_vote(self, assignment: int) -> Vote | None:
        """Return what was last answered to an assignment and taken back."""
        found = self._read(
            "SELECT annotator, key, answers, reason, points, seconds FROM vote WHERE assignment = ? AND undone"
            " ORDER BY id DESC LIMIT 1",
            assignment,
        )
        if not found:
            return None
        annotator, key, choices, reason, points, seconds = found[0]
        return Vote(assignment, annotator, key, json.loads(choices), reason, json.loads(points), seconds)

    def votes_since(self, annotator: int, at: float) -> int:
        """Count an annotator's votes from a time on."""
        found = self._read("SELECT count(*) FROM vote WHERE annotator = ? AND at >= ? AND NOT undone", annotator, at)
        return found[0][0]

    def recent_votes(self, annotator: int, job: str, count: int) -> list[tuple[float, float]]:
        """Return (at, seconds) of an annotator's latest votes, in order."""
        found = self._read(
            "SELECT v.at, v.seconds FROM vote v JOIN assignment a ON a.id = v.assignment WHERE v.annotator = ?"
            " AND a.job = ? AND NOT v.undone ORDER BY v.at DESC, v.id DESC LIMIT ?",
            annotator,
            job,
            count,
        )
        return found[::-1]

    def answers(self, job: str | None = None) -> list[Answer]:
        """Return all answers in the order of time; those that were taken back are left out."""
        return list(self.iter_answers(job))

    def iter_answers(self, job: str | None = None, latest: int | None = None) -> Iterator[Answer]:
        """Yield all answers in the order of time, without keeping them in memory.

        Args:
          job: only those of a job.
          latest: only those of so many votes, the latest ones.
        """
        last = 0 if latest is None else (self._read("SELECT max(id) FROM vote")[0][0] or 0) - latest
        where, values = ("", ()) if job is None else (" AND a.job = ?", (job,))
        query = _VOTES.format(where)
        while rows := self._read(query, last, *values, _CHUNK):
            for row in rows:
                yield from _answers(row)
            last = rows[-1][-1]


_ASSIGNMENTS = (
    "SELECT a.id, a.code, a.annotator, r.name, a.job, a.kind, a.shown, a.state, a.at, a.due"
    " FROM assignment a JOIN record r ON r.id = a.record"
)


def _assignment(row: tuple) -> Assignment:
    number, code, annotator, record, job, kind, shown, *rest = row
    return Assignment(number, code, annotator, record, job, KINDS[kind], tuple(json.loads(shown)), *rest)


def _answers(row: tuple) -> Iterator[Answer]:
    record, task, prompt, job, annotator, kind, seconds, at, choices, models, source, reason, points, _ = row
    texts = {"record": record, "task": task, "prompt": prompt, "job": job, "annotator": annotator, "source": source}
    common: dict[str, Any] = {name: _shared(value) for name, value in texts.items()}
    common |= {"kind": KINDS[kind], "seconds": seconds, "at": at, "reason": reason}
    common |= {"models": _models(models), "points": tuple(map(tuple, json.loads(points)))}
    return answers_of(json.loads(choices), **common)


@functools.lru_cache(2**16)
def _shared(value: str) -> str:
    """Return one object for equal texts: many answers have the same, and all answers may be kept at once."""
    return value


@functools.lru_cache(2**12)
def _models(value: str) -> tuple[str, ...]:
    return tuple(map(_shared, json.loads(value)))


def answers_of(choices: Iterable[Choice], **common: Any) -> Iterator[Answer]:
    """Yield the answers that an item's choices are.

    Args:
      common: the fields of `Answer` that don't depend on the question.
    """
    for choice in choices:
        if "marks" in choice:
            for candidate, mark in enumerate(choice["marks"]):
                yield Answer(**common, question=choice["question"], candidate=candidate, mark=mark)
        else:
            yield Answer(**common, **choice)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
