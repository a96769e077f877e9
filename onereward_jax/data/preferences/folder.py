"""The plain form of preference data: a folder with preferences*.jsonl, one record per line, and the image files."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image

from onereward_jax.atomic_files import write_text
from onereward_jax.data.preferences.record import BadRecord, Record, fields_of, record_of
from onereward_jax.errors import UserError

PATTERN = "preferences*.jsonl"
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
        self._lines = [
            (path, number, line)
            for path in chosen
            for number, line in enumerate(path.read_bytes().splitlines(), start=1)
            if line.strip()
        ]

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        """Say where the record is, for messages."""
        path, number, _ = self._lines[index]
        return f"{path}, line {number}"

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
          BadRecord: the line is not a record.
        """
        where = self.name(index)
        try:
            fields = json.loads(self._lines[index][2])
        except ValueError as error:
            raise BadRecord(f"{where}: is not valid JSON ({error}): write one object a line") from None
        return record_of(fields, where, self._read)

    def _read(self, name: str, value: Any) -> bytes:
        if not isinstance(value, str) or not value:
            raise UserError("give a path relative to the folder")
        path = (self.directory / value).resolve()
        if not path.is_relative_to(self.directory.resolve()):
            raise UserError("it leads out of the folder, which must hold all its images")
        return path.read_bytes()


def write_folder(directory: Path, records: Iterable[Record], file: str = FILE) -> None:
    """Write records and their images, byte for byte; the .jsonl file is written last, atomically.

    Args:
      directory: may hold other .jsonl files of this form.
      file: name of the .jsonl file; images go to images/<its stem>/.
    """
    folder = Path("images") / Path(file).stem
    (directory / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for number, record in enumerate(records):

        def write(name: str, image: bytes, number: int = number) -> str:
            short = name.removesuffix(".image").replace("candidates[", "").replace("]", "")
            path = folder / f"{number:06d}-{short}.{_suffix(image)}"
            (directory / path).write_bytes(image)
            return path.as_posix()

        lines.append(json.dumps(fields_of(record, write), ensure_ascii=False, allow_nan=False))
    write_text(directory / file, "".join(f"{line}\n" for line in lines))


def _suffix(image: bytes) -> str:
    try:
        with PIL.Image.open(io.BytesIO(image)) as opened:
            return {"JPEG": "jpg"}.get(str(opened.format), str(opened.format).lower())
    except (OSError, SyntaxError, ValueError):  # not an image: reading the record will report it
        return "bin"
