"""Preference data in either form: opening, skipping bad records, converting."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.manifest import Manifest
from onereward_jax.data.preferences.folder import CANDIDATES, FILE, PATTERN, Folder, write_folder
from onereward_jax.data.preferences.label_studio import write_tasks
from onereward_jax.data.preferences.record import Checked, Record, image_sizes
from onereward_jax.data.preferences.tfds import TfdsRecords, write_tfds
from onereward_jax.data.tfds_files import dataset_directory
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import read_json

FORMS = ("folder", "tfds")
LABEL_STUDIO = "label_studio"
# Files that `onereward make-preferences`, and `onereward collect`, write before their first and after their last part.
MADE_OF, COLLECTION, COMPLETE = "made_of.json", "collection.json", "complete.json"
BAD_SHARE = 0.01  # share of a dataset's records that may be bad; with more, the dataset is refused


class Records(Protocol):
    """A random-access sequence of records."""

    directory: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str: ...


class Stored(Records, Protocol):
    """Records in one of `FORMS`, which need not be read whole."""

    def checked(self, index: int, manifest: Manifest) -> Checked:
        """Check a record, its images by the manifest: they are decoded where it does not know them."""
        ...

    def candidates(self, index: int, numbers: Sequence[int]) -> list[bytes]:
        """Read some candidates' image files, and no others if each is a file."""
        ...

    def outline(self, index: int) -> Record:
        """Read a record for what it says; its images may be empty."""
        ...

    def image(self, index: int, name: str) -> bytes:
        """Read one image's file: "image", "mask" or "candidates[2].image"."""
        ...


def open_records(directory: Path) -> Stored:
    """Open a dataset in either form, or a directory made by `onereward make-preferences`.

    Raises:
      FileNotFoundError: there is no such directory.
      UserError: it holds no preferences, or `onereward make-preferences` has not finished there.
    """
    if not directory.is_dir():
        raise FileNotFoundError(2, "No such directory", str(directory))
    if (directory / "train").is_dir():
        directory = directory / "train"
    parts = len(list(directory.glob(PATTERN)))
    if not parts and any(directory.glob(CANDIDATES)):
        raise UserError(
            f"nobody has voted yet on the candidates in {directory}: have people choose with `onereward annotate`, then"
            " give the preference data that `onereward preferences` makes of their votes"
        )
    if (directory / MADE_OF).exists():
        _check_complete(directory, parts, "preference data", "make-preferences")
    if parts:
        return Folder(directory)
    found = dataset_directory(directory)
    if found is None:
        raise UserError(
            f"{directory} holds no preferences: give a folder with {FILE} or a TFDS directory, or make some with"
            " `onereward make-preferences`"
        )
    return TfdsRecords(found)


def open_candidates(directory: Path) -> Stored:
    """Open candidates, which nobody need have voted on: files candidates*.jsonl, or else what `open_records` opens.

    Raises:
      FileNotFoundError: there is no such directory.
      UserError: it holds neither, or `onereward collect` has not finished there.
    """
    if not directory.is_dir():
        raise FileNotFoundError(2, "No such directory", str(directory))
    files = list(directory.glob(CANDIDATES))
    if (directory / COLLECTION).exists():
        _check_complete(directory, len(files), "candidates", "collect")
    return Folder(directory, files) if files else open_records(directory)


def _check_complete(directory: Path, parts: int, what: str, command: str) -> None:
    """Check that the command that makes the parts in a directory has finished.

    Raises:
      UserError: it has not.
    """
    complete, again = directory / COMPLETE, f"run `onereward {command}` again"
    if not complete.exists() or read_json(complete, again).get("parts") != parts:
        raise UserError(f"{directory} holds incomplete {what}: {again}, which resumes where it stopped")


def good_records(
    records: Records, check: Callable[[Checked], None] = lambda found: None, bad_share: float = BAD_SHARE
) -> Iterator[Checked]:
    """Yield every usable record with its images, after decoding them all; bad ones are reported on stderr.

    Args:
      check: raises UserError for a record that the caller can't use.
      bad_share: the share of the records that may be bad.

    Raises:
      UserError: at the end, if more are bad.
    """

    def read(index: int) -> Checked:
        record = records[index]
        return Checked(index, record, image_sizes(record, records.name(index)))

    return _good(records, read, check, bad_share, Manifest())


def known_records(
    records: Stored,
    manifest: Manifest,
    check: Callable[[Checked], None] = lambda found: None,
    bad_share: float = BAD_SHARE,
) -> Iterator[Checked]:
    """Yield every usable record without its images, after decoding those that the manifest does not know.

    Of several processes each decodes a part; see `good_records`.
    """
    return _good(records, functools.partial(records.checked, manifest=manifest), check, bad_share, manifest)


def _good(
    records: Records,
    read: Callable[[int], Checked],
    check: Callable[[Checked], None],
    bad_share: float,
    manifest: Manifest,
) -> Iterator[Checked]:
    skipped = Skipped("records", str(records.directory), bad_share)
    seen: set[str] = set()

    def load(index: int) -> Checked | str:
        try:
            found = read(index)
        except UserError as error:
            return str(error)
        try:
            check(found)
        except UserError as error:
            return f"{records.name(index)}: {error}"
        return found

    for found in manifest.map(load, range(len(records)), "reading records"):
        if isinstance(found, Checked) and found.record.id in seen:
            found = f"{records.name(found.index)}: id {shown(found.record.id)} is there twice: make ids unique"
        if isinstance(found, Checked):
            seen.add(found.record.id)
            yield found
            continue
        skipped.add(str(found))
    skipped.end(len(records))


def write_records(directory: Path, records: Iterator[Record], form: str) -> None:
    """Write a dataset in one of `FORMS`, or as tasks of `LABEL_STUDIO`, atomically.

    Raises:
      UserError: the directory is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already: give a new directory")
    if form == "tfds":
        write_tfds(directory, records)
        return
    with atomic_directory(directory) as partial:
        (write_tasks if form == LABEL_STUDIO else write_folder)(partial, records)
