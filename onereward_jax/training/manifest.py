"""The manifest of a checkpoint: size and digest of each of its files, what arrays it has.

A local file has a SHA-256, computed by the process that wrote it; an object in a bucket has the MD5 that the store
computed, so that nothing is read again. A checkpoint that is copied from one to the other is verified by what its
manifest has.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from onereward_jax.atomic_files import write_text
from onereward_jax.buckets import is_bucket, listed
from onereward_jax.given_files import parse_json

File = dict[str, Any]  # {"size": bytes, "sha256" or "md5": hexadecimal}

FORMATS = (1, 2)  # SHA-256 alone; MD5 too
_READ_BYTES = 1 << 24
_HASH_THREADS = 4
_OF_PROCESS = re.compile(r"process_(\d+)(/|$)")


def written(directory: epath.Path, process: int) -> dict[str, File]:
    """The files below a directory that a process wrote, by the names that Orbax gives them; what is not named after a
    process is the primary's."""
    stored = listed(directory) if is_bucket(directory) else {}
    return digests(directory, [file for file in stored or _walk(directory) if _writer(file) == process], stored)


def _writer(file: str) -> int:
    """0 for `state/manifest.ocdbt`, 3 for `state/ocdbt.process_3/d/8a31` and for `state/array_metadatas/process_3`."""
    found = _OF_PROCESS.search(file)
    return int(found[1]) if found else 0


def digests(directory: epath.Path, files: Iterable[str], stored: Mapping[str, File]) -> dict[str, File]:
    """Of the given files: those that the store has computed, the others by reading."""
    known = {file: stored[file] for file in files if "md5" in stored.get(file, ())}
    unknown = [file for file in files if file not in known]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return known | dict(
            zip(unknown, pool.map(lambda file: _digest(directory / file, "sha256"), unknown), strict=True)
        )


def _digest(path: epath.Path, kind: str) -> File:
    digest, size = hashlib.new(kind), 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return {"size": size, kind: digest.hexdigest()}


def share(files: Mapping[str, File], process: int, processes: int) -> dict[str, File]:
    """The files that a process verifies: each is one process's, and all have about as many bytes."""
    bytes_of = [0] * processes
    mine = {}
    for file in sorted(files, key=lambda file: (-files[file]["size"], file)):
        least = bytes_of.index(min(bytes_of))
        bytes_of[least] += files[file]["size"]
        if least == process:
            mine[file] = files[file]
    return mine


def missing_or_cut(directory: epath.Path, files: Mapping[str, File]) -> str | None:
    """The first file that is missing or has another size, in words."""
    stored = listed(directory) if is_bucket(directory) else None
    for file, expected in files.items():
        if stored is not None:
            size = stored[file]["size"] if file in stored else None
        else:
            size = os.path.getsize(directory / file) if os.path.isfile(directory / file) else None
        if size is None:
            return f"its file {file} is missing"
        if size != expected["size"]:
            return f"its file {file} has {size} bytes instead of {expected['size']}"
    return None


def altered(directory: epath.Path, files: Mapping[str, File]) -> str | None:
    """The first file that does not have its digest, in words."""
    stored = listed(directory) if is_bucket(directory) and files else {}

    def found(file: str) -> str | None:
        expected = files[file]
        if stored.get(file) == expected:
            return None
        try:
            if _digest(directory / file, "md5" if "md5" in expected else "sha256") == expected:
                return None
        except OSError as error:
            return f"its file {file} can't be read ({error.strerror or error})"
        return f"its file {file} does not have the digest it was written with (a flipped bit?)"

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return next(filter(None, pool.map(found, files)), None)


def _walk(directory: epath.Path) -> Iterator[str]:
    for above, _, names in os.walk(directory, onerror=_raise):
        yield from (Path(above, name).relative_to(directory).as_posix() for name in names)


def _raise(error: OSError) -> None:
    raise error


def read(path: epath.Path, step: int) -> dict[str, Any]:
    """
    Raises:
      ValueError: it can't be read, or is not what was written; the text continues the manifest's name.
    """
    try:
        manifest = parse_json(path.read_bytes())
        digest = manifest.pop("digest")
        form, step_of_it, _ = manifest["format"], manifest["step"], manifest["files"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ValueError("can not be read") from None
    if digest != _digest_of_manifest(manifest) or step_of_it != step:
        raise ValueError("was altered")
    if form not in FORMATS:
        raise ValueError(f"has format {form}, which a later release wrote")
    return manifest


def write(path: epath.Path, manifest: dict[str, Any]) -> None:
    """Write it at once, and onto the disk."""
    text = json.dumps({**manifest, "digest": _digest_of_manifest(manifest)}, sort_keys=True, indent=1)
    if is_bucket(path):
        path.write_text(text)  # an object appears whole
    else:
        write_text(Path(path), text)


def _digest_of_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
