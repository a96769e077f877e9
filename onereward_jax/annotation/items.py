"""The records that annotators judge: what each says, and its images' bytes, read when they are shown."""

import dataclasses
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

from onereward_jax.annotation.database import Unavailable
from onereward_jax.annotation.questions import GOOD_SAME_BAD, Question, questions_of
from onereward_jax.annotation.store import StoredRecord
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.preferences.dataset import BAD_SHARE, Stored
from onereward_jax.data.preferences.record import SOURCE, Record
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import BAD_PATHS

MAX_SHOWN = 9  # candidates side by side, each with a key of its own
# What the system says of a file that is not there; whatever else it says of one may be over in a moment.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, *BAD_PATHS}


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """What a record says, without its images.

    Attributes:
      index: in the stored records.
      name: the record's id.
      models: what made each candidate, "" where the record doesn't say.
      has_source, has_mask: whether it shows a source image, and a mask on it.
    """

    index: int
    name: str
    task: str
    prompt: str
    models: tuple[str, ...]
    has_source: bool
    has_mask: bool

    def questions(self, job: str) -> tuple[Question, ...]:
        return questions_of(job, self.task, self.prompt)


class Items:
    """The usable records of a dataset for one job, in an order of their own: tasks and sources are mixed.

    Nothing is decoded here: a record whose images turn out to be damaged is left out when it is drawn, or skipped by
    those who see it.
    """

    def __init__(self, records: Stored, job: str, bad_share: float = BAD_SHARE):
        """
        Args:
          job: one of `questions.JOBS`.
          bad_share: the share of the records that may be bad or of no use for the job.

        Raises:
          UserError: more are, or there is none left.
        """
        self._records, self.job = records, job
        found = sorted(self._usable(bad_share), key=lambda item: hashlib.sha256(item.name.encode()).digest())
        if not found:
            raise UserError(f"{records.directory} holds no record for {job}: collect candidates first")
        self._items = found
        self._places = {item.name: place for place, item in enumerate(found)}

    @property
    def directory(self) -> Path:
        return self._records.directory

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Item:
        return self._items[place]

    def place(self, name: str) -> int | None:
        """Return the place of the record with an id, or None."""
        return self._places.get(name)

    def image(self, place: int, name: str) -> bytes:
        """Read an image's file: "image", "mask" or "candidates[2].image".

        Raises:
          Unavailable: it can't be read now, but may be later: the disk fails, or too many files are open.
          OSError, UserError: it can't be read.
        """
        try:
            return self._records.image(self._items[place].index, name)
        except (OSError, UserError) as error:
            if _may_pass(error):
                raise Unavailable(f"{self.directory} can't be read now: check its disk, then try again") from error
            raise

    def stored(self, place: int) -> StoredRecord:
        """Return what answers say about a record, after reading its source image.

        The source is what the record's notes name, as of several crops of one photograph, or else its image's digest.

        Raises:
          Unavailable, OSError, UserError: see `image`.
        """
        item = self._items[place]
        content = self.image(place, "image") if item.has_source else b""
        source = self._records.outline(item.index).notes.get(SOURCE)
        if not isinstance(source, str) or not source:
            source = hashlib.sha256(content).hexdigest() if item.has_source else ""
        return StoredRecord(item.task, item.prompt, item.models, source)

    def _usable(self, bad_share: float) -> Iterator[Item]:
        records, seen = self._records, set()
        skipped = Skipped("records", str(records.directory), bad_share)
        for index in range(len(records)):
            try:
                item = _item_of(index, records.outline(index), self.job)
            except UserError as error:
                where = records.name(index)
                skipped.add(str(error) if str(error).startswith(where) else f"{where}: {error}")
                continue
            if item.name in seen:
                skipped.add(f"{records.name(index)}: id {shown(item.name)} is there twice: make ids unique")
                continue
            seen.add(item.name)
            yield item
        skipped.end(len(records))


def _may_pass(error: BaseException | None) -> bool:
    """Whether the operating system failed to read a file that is there, however the error was worded since."""
    while error is not None and (not isinstance(error, OSError) or error.errno is None):
        error = error.__context__
    return isinstance(error, OSError) and error.errno not in _LASTING


def _item_of(index: int, record: Record, job: str) -> Item:
    count = len(record.candidates)
    if job == GOOD_SAME_BAD and count != 2:
        raise UserError(f"candidates has length {count}: {job} compares two")
    if count > MAX_SHOWN:
        raise UserError(f"candidates has length {count}: at most {MAX_SHOWN} are shown side by side")
    models = tuple(str(candidate.sampling.get("model", "")) for candidate in record.candidates)
    has_source, has_mask = record.image is not None, record.mask is not None
    return Item(index, record.id, record.task, record.prompt, models, has_source, has_mask)
