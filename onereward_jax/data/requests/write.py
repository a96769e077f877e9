"""Writes requests, from whatever form they were read, as a folder with requests.jsonl or as a TFDS dataset."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.data.requests.layouts import REQUESTS
from onereward_jax.data.requests.record import Picture, Request
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.data.requests.tfds import write_tfds
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_bytes
from onereward_jax.images.decoding import suffix_of
from onereward_jax.tasks import NEGATIVE_PROMPT

FORMS = ("folder", "tfds")
_PICTURES = ("image", "mask", "target")


def check_apart(source: Path, out: Path) -> None:
    """Check that an output is not written among the images of its source, which would have them, too, the next time.

    Raises:
      UserError: it is inside.
    """
    if source.is_dir() and out.resolve().is_relative_to(inside := source.resolve()) and out.resolve() != inside:
        raise UserError(f"{out} is inside the source {source}: choose a directory outside")


def write_requests(directory: Path, requests: Iterable[Request], form: str) -> None:
    """Write requests atomically; image files are copied byte for byte, and run lengths become PNG files.

    The image of several requests is written once, so that in a folder they are of one group again.

    Args:
      form: one of `FORMS`.

    Raises:
      UserError: `directory` holds something else; a TFDS dataset without tensorflow-datasets.
    """
    if form == "tfds":
        write_tfds(directory, map(_fields_of, requests))
        return
    with atomic_directory(directory) as partial, (partial / REQUESTS).open("w", encoding="utf-8") as file:
        (partial / "images").mkdir()
        images: dict[tuple[str, bytes], str] = {}  # what is read again has the image's path for its group
        for number, fields in enumerate(map(_fields_of, requests)):
            group = fields.pop("group")
            for name in _PICTURES:
                if name in fields:
                    content = fields[name]
                    key = group, hashlib.sha256(content).digest()
                    if name == "image" and key in images:
                        fields[name] = images[key]
                        continue
                    path = Path("images") / f"{number:06d}-{name}.{suffix_of(content)}"
                    (partial / path).write_bytes(content)
                    fields[name] = path.as_posix()
                    if name == "image":
                        images[key] = fields[name]
            file.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")


def _fields_of(request: Request) -> dict[str, Any]:
    """The fields of a request as in `requests.jsonl`, without those that say nothing; its group; images as bytes."""
    fields: dict[str, Any] = {"id": request.id, "group": request.group}
    if len(request.tasks) == 1:
        fields["task"] = request.tasks[0]
    fields["prompt"] = request.prompt
    fields |= dict(_contents(request))
    if request.negative_prompt != NEGATIVE_PROMPT:
        fields["negative_prompt"] = request.negative_prompt
    optional = {"extend": request.extend, "notes": dict(request.notes)}
    return fields | {name: value for name, value in optional.items() if value}


def _contents(request: Request) -> Iterator[tuple[str, bytes]]:
    for name in _PICTURES:
        if (picture := getattr(request, name)) is not None:
            yield name, _content(picture)


def _content(picture: Picture | RunLengths) -> bytes:
    if isinstance(picture, RunLengths):
        file = io.BytesIO()
        Image.fromarray(picture.mask() * np.uint8(255)).save(file, "PNG", optimize=True)
        return file.getvalue()
    return read_bytes(picture) if isinstance(picture, Path) else picture.content()
