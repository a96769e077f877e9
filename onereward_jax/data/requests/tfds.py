"""Requests as a TFDS dataset of array_record files: see `data.tfds_files`."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onereward_jax.data import tfds_files
from onereward_jax.data.manifest import FILE, Manifest, Stamp
from onereward_jax.errors import UserError
from onereward_jax.given_files import parse_json

NAME, VERSION = "requests", "1.0.0"
_TEXTS = ("id", "task", "prompt", "negative_prompt", "extend", "group")
_PICTURES = ("image", "mask", "target")


@functools.cache  # TFDS registers a class once
def builder_class() -> type:
    """Make the TFDS builder class of requests."""
    tfds: Any = tfds_files.library(NAME)
    text = tfds.features.Text
    features: dict[str, Any] = {name: text() for name in (*_TEXTS, "notes")}  # notes are JSON
    # At most one image, as the bytes of its file.
    features |= {name: tfds.features.Sequence(text()) for name in _PICTURES}
    return tfds_files.builder_class(NAME, VERSION, tfds.features.FeaturesDict(features), _example_of)


def _example_of(fields: dict[str, Any]) -> dict[str, Any]:
    example: dict[str, Any] = {name: fields.get(name) or "" for name in _TEXTS}
    example |= {name: [fields[name]] if name in fields else [] for name in _PICTURES}
    return example | {"notes": json.dumps(fields.get("notes") or {}, allow_nan=False)}


def write_tfds(directory: Path, requests: Iterable[dict[str, Any]]) -> None:
    """Write directory/requests/1.0.0/ atomically.

    Args:
      requests: fields as of `requests.jsonl`, with the bytes of image files in the place of paths.

    Raises:
      UserError: tensorflow-datasets is not installed.
    """
    tfds_files.write_dataset(directory, builder_class(), requests)


class StoredRequests:
    """Requests in a TFDS dataset, whose images are read on demand."""

    def __init__(self, directory: Path, manifest: Manifest):
        """
        Args:
          directory: holds dataset_info.json.
          manifest: keeps the requests' texts, so that they are read once.

        Raises:
          UserError: TFDS can't open it.
        """
        self.directory, self._manifest = directory, manifest
        self._source = tfds_files.open_dataset(directory, NAME, "make it again with `onereward requests convert`")
        self.stamp = Stamp.of(*sorted(path for path in directory.iterdir() if path.name != FILE))

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """Say where a request is, for messages."""
        return f"{self.directory}, record {index}"

    def fields(self, index: int) -> dict[str, Any]:
        """Return the fields of a request, with pictures in the place of paths.

        Raises:
          UserError: the stored example is not a request.
        """
        found = self._manifest.recall(f"request {index} of {len(self)}", self.stamp, lambda: self._texts(index))
        there = {name: StoredPicture(self, index, name) for name in _PICTURES if found[name]}
        return {name: found[name] for name in (*_TEXTS, "notes") if found[name]} | there

    def content(self, index: int, name: str) -> bytes:
        """Read the bytes of an image file.

        Raises:
          UserError: they can't be read.
        """
        return self._example(index)[name][0]

    def _texts(self, index: int) -> dict[str, Any]:
        example = self._example(index)
        try:
            texts: dict[str, Any] = {name: example[name].decode() for name in _TEXTS}
            texts["notes"] = parse_json(example["notes"])
            return texts | {name: bool(len(example[name])) for name in _PICTURES}
        except (KeyError, AttributeError, UnicodeDecodeError, UserError) as error:
            raise UserError(f"{self.name(index)} is no request ({error!r}): convert it again") from None

    def _example(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except Exception as error:  # of damaged bytes array_record, protobuf and TFDS raise anything
            raise UserError(f"{self.name(index)} can't be read ({error!r}): write the dataset again") from None


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPicture:
    """An image file in a dataset: a `record.Stored`."""

    requests: StoredRequests
    index: int
    field: str

    @property
    def name(self) -> str:
        return f"{self.requests.name(self.index)}: {self.field}"

    @property
    def key(self) -> str:
        return f"{self.field} {self.index} of {len(self.requests)}"

    @property
    def stamp(self) -> Stamp:
        return self.requests.stamp

    def content(self) -> bytes:
        return self.requests.content(self.index, self.field)
