"""Reference images of Algorithm 1 on disk: its reference never changes, so a condition's image is made once.

An entry is of one condition and the one noise that the run's seed gives it. It is made by the update that first needs
it, in the program that would make it again: a run with a cache takes the steps of the run without, whether the
cache was empty, full or anything between.
"""

import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import check_writable, fingerprint, make_directory, sweep, write_bytes
from onereward_jax.config.load import is_of, names_with
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.source import Source
from onereward_jax.parallel import hosts
from onereward_jax.rl.batch import Batch, KnownReferences
from onereward_jax.tasks import NEGATIVE_PROMPT
from onereward_jax.weights.hub import model_directory

_DIGEST_BYTES = hashlib.sha256().digest_size
# Raised with every change of scenes, sampler or models that makes other references.
_FORMAT = 1
_LEFTOVER = 3600.0  # seconds after which no run is still writing an entry


class ReferenceCache:
    """A directory of reference images, float32 (H, W, 3) in [0, 1], by the number of their condition.

    A file holds the SHA-256 of what follows it, and the image in NumPy's format. Files appear whole or not at all;
    several runs may fill one cache.
    """

    def __init__(self, directory: str | Path, made_from: Mapping[str, Any]):
        """Opens the cache, or makes it.

        Args:
          directory: of many caches.
          made_from: JSON values that tell this cache's entries from others.

        Raises:
          UserError: it can't be written.
        """
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        check_writable(Path(directory))
        self.directory = Path(directory) / digest
        make_directory(self.directory)
        sweep(self.directory, older_than=_LEFTOVER)
        self._full = False
        if not (self.directory / "made_from.json").exists():
            readable = json.dumps(dict(made_from), indent=2) + "\n"
            write_bytes(self.directory / "made_from.json", readable.encode())

    def path(self, condition: int) -> Path:
        return self.directory / f"{condition:09d}.reference"

    def read(self, condition: int) -> np.ndarray | None:
        """The entry, or None where there is none; a damaged one is warned of and counts as none."""
        path = self.path(condition)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            warnings.warn(f"{path} can't be read ({error.strerror or error}): it is made again", stacklevel=2)
            return None
        digest, image = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(image).digest() != digest:
            warnings.warn(f"{path} is damaged (its digest is of other bytes): it is made again", stacklevel=2)
            return None
        return np.load(io.BytesIO(image), allow_pickle=False)

    def write(self, condition: int, image: np.ndarray) -> None:
        """Adds an entry, or replaces it."""
        content = io.BytesIO()
        np.save(content, image, allow_pickle=False)
        digest = hashlib.sha256(content.getvalue()).digest()
        write_bytes(self.path(condition), digest + content.getvalue())

    def around(self, step: Callable[[Any, Batch], tuple[Any, Any]]) -> Callable[[Any, Batch], tuple[Any, dict]]:
        """The update, given what the cache has of its batch; what it had to make is added to the cache.

        Read when the update starts, and no earlier: the updates before it have then added theirs, whatever was read
        ahead. In multi-process runs the primary process reads and writes for all.

        Args:
          step: (state, batch) -> (state, (metrics, reference images)), as of `rl.reference_images.Cached`.
        """

        def call(state: Any, batch: Batch) -> tuple[Any, dict]:
            conditions = hosts.fetch(batch.condition)
            entries = [self.read(int(condition)) if hosts.is_primary() else None for condition in conditions]
            blank = np.zeros(batch.image.shape[1:], np.float32)
            images = np.stack([blank if entry is None else entry for entry in entries])
            found = np.array([entry is not None for entry in entries], np.int32)
            images, found = hosts.broadcast((images, found))
            known = found.astype(bool)
            placed = hosts.place(KnownReferences(images, known), batch.image.sharding)
            state, (metrics, references) = step(state, dataclasses.replace(batch, references=placed))
            added = 0
            if hosts.is_primary() and not known.all():
                for condition, image in zip(conditions[~known], np.asarray(references)[~known], strict=True):
                    added += self._add(int(condition), image)
            return state, metrics | {"perf/references_added": np.float32(added)}

        return call

    def _add(self, condition: int, image: np.ndarray) -> bool:
        """Writes an entry that may be used again: an image, and not what a skipped update had instead of one.

        What can't be written is made again when it is needed; training continues.
        """
        if not np.isfinite(image).all():
            return False
        try:
            self.write(condition, image)
        except OSError as error:
            if not self._full:
                reason = error.strerror or error
                warnings.warn(
                    f"{self.directory} takes no more references ({reason}): training continues without them",
                    RuntimeWarning,
                    stacklevel=3,
                )
            self._full = True
            return False
        self._full = False
        return True


def open_cache(config: RewardFeedback, source: Source) -> ReferenceCache:
    """The cache of a run's references in `config.rl.reference_cache`.

    Args:
      source: of the conditions.
    """
    makers = names_with(type(config), "in_reference")
    made_from: dict[str, Any] = {name: value for name, value in config.flat().items() if is_of(name, makers)}
    made_from |= {"rl.num_steps": config.rl.steps_of_reference, "format": _FORMAT, "negative_prompt": NEGATIVE_PROMPT}
    base = Path(model_directory(config.model.base))
    made_from["weights"] = fingerprint(base)
    made_from["configurations"] = {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(base.rglob("[!.]*.json"))
    }
    made_from |= source.fingerprint()
    return ReferenceCache(config.rl.reference_cache, made_from)
