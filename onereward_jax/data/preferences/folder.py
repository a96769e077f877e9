"""The plain form of preference data: a folder with preferences*.jsonl, one record per line, and the image files."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onereward_jax.atomic_files import make_directory, sync_tree, write_text
from onereward_jax.data.manifest import Manifest, Stamp
from onereward_jax.data.preferences.record import BadRecord, Checked, Read, Record, fields_of, image_sizes, record_of
from onereward_jax.errors import UserError
from onereward_jax.given_files import json_lines, path_beside, read_bytes
from onereward_jax.images.decoding import MAX_BYTES, suffix_of

PATTERN = "preferences*.jsonl"
CANDIDATES = "candidates*.jsonl"  # of records that nobody has voted on yet
FILE = "preferences.jsonl"


class Folder:
    """Records in a folder, read on demand, in the order of file names and lines."""

    def __init__(self, directory: Path, files: Iterable[Path] | None = None):
        """
        Args:
          files: the .jsonl files to read; None reads all in the folder.
        """
        self.directory = directory
        chosen = sorted(directory.glob(PATTERN)) if files is None else sorted(files)
        self._lines = [line for path in chosen for line in json_lines(path)]

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        """Say where the record is, for messages."""
        return self._lines[index].where

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
          BadRecord: the line is not a record.
        """
        return self._record(index, self._read)

    def checked(self, index: int, manifest: Manifest) -> Checked:
        """Check a record; its images are decoded unless the manifest knows that they are good.

        Raises:
          BadRecord: see `__getitem__`, or an image can't be decoded.
        """
        files: list[str] = []

        def listed(name: str, value: Any) -> bytes:
            files.append(os.path.join(self.directory, value))
            return b""

        try:
            record = self._record(index, listed)
            stamp = Stamp.of(*files)
        except (OSError, TypeError, ValueError):  # a path that is wrong: reading it says how
            record = self[index]
            return Checked(index, record, image_sizes(record, self.name(index)))
        key = hashlib.blake2b(self._lines[index].content, digest_size=12).hexdigest()
        read = lambda: {"sizes": image_sizes(self[index], self.name(index))}
        found = manifest.recall(f"record {key}", stamp, read)
        return Checked(index, record, [(height, width) for height, width in found["sizes"]])

    def candidates(self, index: int, numbers: Sequence[int]) -> list[bytes]:
        """Read the image files of some candidates.

        Raises:
          BadRecord: one can't be read any more.
        """
        wanted = {f"candidates[{number}].image" for number in numbers}
        record = self._record(index, lambda name, value: self._read(name, value) if name in wanted else b"")
        return [record.candidates[number].image for number in numbers]

    def outline(self, index: int) -> Record:
        """Read a record without opening its files: every image it names is empty.

        Raises:
          BadRecord: the line is not a record.
        """
        return self._record(index, lambda name, value: b"")

    def image(self, index: int, name: str) -> bytes:
        """Read the file of one image, and no other: "image", "mask" or "candidates[2].image".

        Raises:
          BadRecord: the record has no such image, or it can't be read any more.
        """
        found: list[bytes] = []

        def read(field: str, value: Any) -> bytes:
            if field == name:
                found.append(self._read(field, value))
            return b""

        self._record(index, read)
        if not found:
            raise BadRecord(f"{self.name(index)}: {name} is missing: give it")
        return found[0]

    def _record(self, index: int, read: Read) -> Record:
        where = self.name(index)
        try:
            fields = self._lines[index].fields()
        except UserError as error:
            raise BadRecord(f"{where}: {error}") from None
        return record_of(fields, where, read)

    def _read(self, name: str, value: Any) -> bytes:
        return read_bytes(path_beside(self.directory, value, inside_only=True), MAX_BYTES)


def write_folder(directory: Path, records: Iterable[Record], file: str = FILE) -> None:
    """Write records and their images, byte for byte; the .jsonl file is written last, atomically, when the images are
    on the disk.

    Args:
      directory: may hold other .jsonl files of this form.
      file: name of the .jsonl file; images go to images/<its stem>/.
    """
    folder = Path("images") / Path(file).stem
    make_directory(directory / folder)
    lines = []
    for number, record in enumerate(records):

        def write(name: str, image: bytes, number: int = number) -> str:
            short = name.removesuffix(".image").replace("candidates[", "").replace("]", "")
            path = folder / f"{number:06d}-{short}.{suffix_of(image)}"
            (directory / path).write_bytes(image)
            return path.as_posix()

        lines.append(json.dumps(fields_of(record, write), ensure_ascii=False, allow_nan=False))
    sync_tree(directory / folder)
    write_text(directory / file, "".join(f"{line}\n" for line in lines))
