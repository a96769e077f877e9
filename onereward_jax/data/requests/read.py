"""Requests at a path, checked: bad ones are named and left out, and no start reads an image twice."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from onereward_jax.buckets import native
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.buckets import Size
from onereward_jax.data.manifest import Manifest
from onereward_jax.data.requests.layouts import REQUESTS, Defaults, Found, listed
from onereward_jax.data.requests.record import ANY_TASK, BadRequest, Picture, Request, Stored, name_of
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.errors import UserError, shown_name
from onereward_jax.given_files import BAD_PATHS, read_bytes
from onereward_jax.images import reading
from onereward_jax.images.decoding import MAX_BYTES


def check_there(path: Path) -> None:
    """Check that there is a folder or a file.

    Raises:
      FileNotFoundError: there is not.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there are no requests at {native(path)}: set data.source to a folder of images or a .jsonl file, see"
            " docs/reference/requests.md"
        )


@dataclasses.dataclass(frozen=True)
class Checked:
    """All records at a path.

    Attributes:
      requests: the good ones, with their sizes and digests.
      bad: the others.
    """

    requests: list[Request]
    bad: list[BadRequest]


def read_requests(
    path: Path,
    defaults: Defaults = Defaults(),  # noqa: B008 (frozen)
    bad_share: float = 0.0,
    inside_only: bool = False,
    drawn: tuple[str, ...] = ANY_TASK,
    workdir: Path | None = None,
) -> list[Request]:
    """Read all good requests at a path; bad ones are reported on stderr. All processes call this together.

    Args:
      bad_share: the share of the records that may be bad.
      defaults, inside_only: see `layouts.listed`.
      drawn: tasks whose masks may be drawn.
      workdir: where the manifest is kept if the data's folder can't be written.

    Raises:
      FileNotFoundError, UserError: there is nothing at the path, no good request, or too many are bad.
    """
    checked = check_requests(path, defaults, inside_only, drawn, workdir)
    skipped = Skipped("requests", str(native(path)), bad_share)
    for bad in checked.bad:
        skipped.add(str(bad))
    skipped.end(len(checked.bad) + len(checked.requests))
    if not checked.requests:
        raise UserError(
            f"no request in {native(path)} can be used, see above: correct them, or give another data.source"
        )
    return checked.requests


def check_requests(
    path: Path,
    defaults: Defaults = Defaults(),  # noqa: B008 (frozen)
    inside_only: bool = False,
    drawn: tuple[str, ...] = ANY_TASK,
    workdir: Path | None = None,
) -> Checked:
    """Read all records at a path: see `read_requests`.

    Raises:
      FileNotFoundError, UserError: there is nothing at the path.
    """
    check_there(path)
    manifest = Manifest.of(path, workdir)
    found = list(listed(path, defaults, inside_only, manifest))
    if not found:
        raise UserError(
            f"{native(path)} holds no requests: give a folder of images ({', '.join(reading.SUFFIXES)}) or {REQUESTS}"
        )
    results = manifest.map(lambda item: checked_request(item, drawn, manifest), found, "reading requests")
    checked = Checked([], [])
    for result in results:
        (checked.requests if isinstance(result, Request) else checked.bad).append(result)  # type: ignore[arg-type]
    return checked


def checked_request(item: Found, drawn: tuple[str, ...], manifest: Manifest) -> Found:
    """Read a request's images, or what the manifest knows of them; fill in size and digests.

    Args:
      drawn: tasks whose masks may be drawn.
    """
    if isinstance(item, BadRequest):
        return item
    try:
        item.check(drawn)
        size, image_digest = _facts(item.image, "image", manifest)
        digests = [image_digest]
        if item.extend is not None:
            size = reading.extended_size(size, reading.parse_sides(item.extend))
        for other, noun in ((item.mask, "mask"), (item.target, "target")):
            if other is not None:
                other_size, digest = _facts(other, "mask" if noun == "mask" else "image", manifest)
                reading.check_sizes(size, other_size, (name_of(item.image), name_of(other)), noun)
                digests.append(digest)
    except OSError as error:
        why = BAD_PATHS.get(error.errno or 0, f"can't be opened ({error.strerror}): check the path")
        return BadRequest(item.where, f"{shown_name(str(error.filename))} {why}")
    except UserError as error:
        return BadRequest(item.where, str(error))
    described = (item.id, digests, item.prompt, item.negative_prompt, item.tasks, item.extend, size)
    digest = hashlib.sha256(repr(described).encode()).hexdigest()
    return dataclasses.replace(item, size=size, digest=digest, image_digest=image_digest)


def _facts(picture: Picture | RunLengths, kind: str, manifest: Manifest) -> tuple[Size, str]:
    """(height, width) and digest of a picture.

    Raises:
      OSError, UserError: it can't be read.
    """
    if isinstance(picture, RunLengths):
        return picture.mask().shape[:2], repr(picture)
    decode = reading.read_mask if kind == "mask" else reading.read_image
    if isinstance(picture, Stored):
        facts = manifest.recall(picture.key, picture.stamp, lambda: _read(picture.content, picture.name, decode))
    else:
        content = lambda: read_bytes(picture, MAX_BYTES)
        facts = manifest.look(picture, lambda path: _read(content, str(path), decode), kind)
    if "error" in facts:
        raise UserError(facts["error"])
    height, width = facts["size"]
    return (height, width), facts["digest"]


def _read(content: Callable[[], bytes], name: str, decode: Callable[..., Any]) -> dict[str, Any]:
    """What the manifest keeps of a picture: size and digest, or what is wrong with it."""
    try:
        found = content()
        return {"size": list(decode(found, name).shape[:2]), "digest": hashlib.sha256(found).hexdigest()}
    except UserError as error:
        return {"error": str(error)}


def fingerprint_of(requests: Iterable[Request]) -> str:
    """Digest everything that requests say and show."""
    return hashlib.sha256("".join(request.digest for request in requests).encode()).hexdigest()


def prompts_of(requests: Sequence[Request]) -> tuple[str, ...]:
    """Return every prompt that samples of these requests may have."""
    return tuple(dict.fromkeys(request.text(task) for request in requests for task in request.tasks))
