"""Preference data as a TFDS dataset of array_record files, written and read without TensorFlow.

    builder = tfds.builder_from_directory("DIR/preferences/1.0.0")
    source = builder.as_data_source("train")        # a random-access sequence, as grain takes it

Images are stored as the bytes of their files: nothing is re-encoded, and the reader decodes them.
Needs the package tensorflow-datasets (the extra `tfds`).
"""

import functools
import json
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.data import tfds_files
from onereward_jax.data.manifest import FILE, Manifest, Stamp
from onereward_jax.data.preferences.record import BadRecord, Checked, Record, fields_of, image_sizes, record_of
from onereward_jax.given_files import parse_json

NAME, VERSION = "preferences", "1.0.0"
_RECENT = 8  # records that are kept, since their images are asked for one by one
_NONE = -1  # best and worst of "no difference"


@functools.cache  # TFDS registers a class once
def builder_class() -> type:
    """Make the TFDS builder class `Builder(records, data_dir=..., file_format="array_record")`.

    `records` is a function that returns the records to write.
    """
    tfds: Any = tfds_files.library(NAME)
    text, sequence = tfds.features.Text, tfds.features.Sequence
    features = tfds.features.FeaturesDict(
        {
            "id": text(),
            "task": text(),
            "prompt": text(),
            # At most one image, as the bytes of its file.
            "image": sequence(text()),
            "mask": sequence(text()),
            # `sampling` and `notes` are JSON.
            "candidates": sequence({"image": text(), "sampling": text()}),
            # best and worst are −1 for no difference.
            "votes": sequence({"dimension": text(), "annotator": text(), "best": np.int32, "worst": np.int32}),
            "pairs": sequence({"dimension": text(), "winner": np.int32, "loser": np.int32}),
            "notes": text(),
        }
    )

    return tfds_files.builder_class(NAME, VERSION, features, _example_of)


def _example_of(record: Record) -> dict[str, Any]:
    fields = fields_of(record, lambda name, image: image)
    fields |= {name: [fields[name]] if name in fields else [] for name in ("image", "mask")}
    for candidate in fields["candidates"]:
        candidate["sampling"] = json.dumps(candidate["sampling"], allow_nan=False)
    for vote in fields["votes"]:
        vote |= {end: _NONE if vote[end] is None else vote[end] for end in ("best", "worst")}
    return fields | {"notes": json.dumps(dict(record.notes), allow_nan=False)}


def write_tfds(directory: Path, records: Iterable[Record]) -> None:
    """Write directory/preferences/1.0.0/ atomically.

    Raises:
      UserError: tensorflow-datasets is not installed.
    """
    tfds_files.write_dataset(directory, builder_class(), records)


class TfdsRecords:
    """Records in a TFDS dataset, read on demand."""

    def __init__(self, directory: Path):
        """
        Args:
          directory: holds dataset_info.json.

        Raises:
          UserError: TFDS can't open it as a dataset of array_record files.
        """
        self.directory = directory
        again = "make it again with `onereward convert-preferences`"
        self._source = tfds_files.open_dataset(directory, NAME, again)
        self._count = len(self._source)
        self._recent: deque[tuple[int, Record]] = deque(maxlen=_RECENT)
        self._stamp = Stamp.of(*sorted(path for path in directory.iterdir() if path.name != FILE))

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Say where the record is, for messages."""
        return f"{self.directory}, record {index}"

    def __getitem__(self, index: int) -> Record:
        """Read a record.

        Raises:
          BadRecord: the stored example is not a record.
        """
        if index >= len(self):  # iteration ends with IndexError; array_record raises another error
            raise IndexError(index)
        where = self.name(index)
        try:
            example = self._source[index]
            fields = _fields_of(example)
        except Exception as error:  # of damaged bytes array_record, protobuf and TFDS raise anything, as above
            raise BadRecord(f"{where}: can't be read ({error!r}): write the dataset again") from None
        return record_of(fields, where, lambda name, value: value)

    def checked(self, index: int, manifest: Manifest) -> Checked:
        """Check a record; it is read, and its images decoded, unless the manifest has it from these files.

        Raises:
          BadRecord: see `__getitem__`, or an image can't be decoded.
        """

        def read() -> dict[str, Any]:
            record = self[index]
            sizes = image_sizes(record, self.name(index))
            return {"fields": fields_of(record, lambda name, image: ""), "sizes": sizes}

        found = manifest.recall(f"record {index} of {len(self)}", self._stamp, read)
        record = record_of(found["fields"], self.name(index), lambda name, value: b"")
        return Checked(index, record, [(height, width) for height, width in found["sizes"]])

    def outline(self, index: int) -> Record:
        """Return a record with its images, of which a folder's outline has none.

        Raises:
          BadRecord: see `__getitem__`.
        """
        return self._recall(index)

    def image(self, index: int, name: str) -> bytes:
        """Return the file of one image: "image", "mask" or "candidates[2].image".

        Raises:
          BadRecord: see `__getitem__`, or the record has no such image.
        """
        record = self._recall(index)
        images = {"image": record.image, "mask": record.mask}
        images |= {f"candidates[{number}].image": one.image for number, one in enumerate(record.candidates)}
        found = images.get(name)
        if found is None:
            raise BadRecord(f"{self.name(index)}: {name} is missing: give it")
        return found

    def _recall(self, index: int) -> Record:
        """Return a record, if it is one of the latest without reading it again; calls may come from any thread."""
        for number, known in list(self._recent):
            if number == index:
                return known
        record = self[index]
        self._recent.append((index, record))
        return record

    def candidates(self, index: int, numbers: Sequence[int]) -> list[bytes]:
        """Return the image files of some candidates."""
        candidates = self[index].candidates
        return [candidates[number].image for number in numbers]


def _fields_of(example: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: example[name].decode() for name in ("id", "task", "prompt")}
    fields |= {name: example[name][0] for name in ("image", "mask") if len(example[name])}
    fields["candidates"] = [item | {"sampling": parse_json(item["sampling"])} for item in _items(example["candidates"])]
    fields["votes"] = [
        {
            "dimension": vote["dimension"].decode(),
            "annotator": vote["annotator"].decode(),
            **{end: None if vote[end] == _NONE else int(vote[end]) for end in ("best", "worst")},
        }
        for vote in _items(example["votes"])
    ]
    fields["pairs"] = [
        {"dimension": pair["dimension"].decode(), "winner": int(pair["winner"]), "loser": int(pair["loser"])}
        for pair in _items(example["pairs"])
    ]
    return fields | {"notes": parse_json(example["notes"])}


def _items(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Transpose TFDS's object of sequences into a list of objects."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
