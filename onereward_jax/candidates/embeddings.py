"""Embeddings of images, kept in a directory as they are made: a pass that was killed loses at most a part of them.

The directory holds `embeddings.json`, which names the model, and parts `part-<number>.npy`: rows of an image's key, a
digest of its name, size and time of change, and its vector, float16. They are found by key, so images may be added to
the source, or removed from it, between two passes.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from onereward_jax.atomic_files import fingerprint, lock, write_bytes, write_json
from onereward_jax.data.manifest import Stamp
from onereward_jax.data.requests.record import Picture, name_of, read_image
from onereward_jax.errors import UserError, printable
from onereward_jax.given_files import BAD_PATHS, read_json
from onereward_jax.weights.clip_encoder import ClipEncoder

PART = 4096  # images of a part
_ABOUT, _PATTERN = "embeddings.json", "part-*.npy"
_FORMAT = 1
_KEY = 16  # bytes
_LONGEST = 200  # times the shorter side; scaled to what CLIP reads, a longer image would take gigabytes
_AHEAD = 2  # batches that threads decode ahead of the model


class Image(NamedTuple):
    """An image to embed.

    Attributes:
      name: unique in its source.
      file: where it is.
    """

    name: str
    file: Picture


class KeptEmbeddings:
    """The directory of embeddings that one model made.

    Attributes:
      directory: where they are.
      dimension: of the vectors.
    """

    def __init__(self, directory: Path, encoder: ClipEncoder):
        """Open the directory, or make it, and lock it until this process ends.

        Raises:
          UserError: it holds embeddings of another model, or something else; another process uses it.
        """
        self.directory, self.dimension, self._encoder = directory, encoder.dimension, encoder
        about = {"format": _FORMAT, "clip": fingerprint(encoder.directory), "dimension": encoder.dimension}
        path = directory / _ABOUT
        if path.exists():
            if read_json(path, f"delete {directory}") != about:
                raise UserError(f"{directory} holds embeddings of another model: delete it, or choose another --keep")
        elif directory.is_dir() and any(entry.name != ".lock" for entry in directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no embeddings: choose another --keep")
        lock(directory)
        write_json(path, about)
        self._dtype = np.dtype([("key", "u1", _KEY), ("vector", "<f2", encoder.dimension)])
        self._parts: list[np.ndarray] = []  # mapped from their files
        self._places = self._read()

    def _read(self) -> dict[bytes, int]:
        """{key: PART times the number of its part, plus its row}; a damaged part is left out, and made again."""
        places: dict[bytes, int] = {}
        for path in sorted(self.directory.glob(_PATTERN)):
            try:
                part = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError):  # a file that is damaged; NumPy loads no pickles
                continue
            whole = part.dtype == self._dtype and part.ndim == 1 and len(part) <= PART
            if whole and np.isfinite(part["vector"]).all():
                first = PART * len(self._parts)
                places |= {key.tobytes(): first + row for row, key in enumerate(part["key"])}
                self._parts.append(part)
        return places

    def of(self, images: Sequence[Image], bad: Callable[[int, str], None]) -> np.ndarray:
        """Embed images, or recall them: float16 (N, P), unit vectors; NaN for those that can't be read.

        The rows are those of a file in the directory, of which memory holds what is in use.

        Args:
          bad: is told the number of an image that can't be read, and one sentence.

        Raises:
          UserError: the model makes NaN.
        """
        file = self.directory / "vectors.npy"  # made anew by every pass, from the parts
        found = np.lib.format.open_memmap(file, "w+", np.float16, (len(images), self.dimension))
        with file.open("r+b") as opened:  # or a disk that is full would show as a signal, at any row
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        with tqdm(total=len(images), desc="embedding images", mininterval=1) as bar, ThreadPoolExecutor() as pool:
            for start in range(0, len(images), PART):  # the same parts after a kill, and so the same batches
                chunk = range(start, min(start + PART, len(images)))
                found[chunk.start : chunk.stop] = self._chunk(chunk, images, bad, pool, bar)
        found.flush()
        return np.load(file, mmap_mode="r")

    def _chunk(
        self,
        chunk: range,
        images: Sequence[Image],
        bad: Callable[[int, str], None],
        pool: ThreadPoolExecutor,
        bar: Any,
    ) -> np.ndarray:
        vectors = np.full((len(chunk), self.dimension), np.nan, np.float16)
        keys: dict[int, bytes] = {}
        for number in chunk:
            try:
                keys[number] = _key(images[number])
            except (OSError, ValueError) as error:
                bad(number, _sentence(error, images[number]))
        missing = []
        for number, key in keys.items():
            if (place := self._places.get(key)) is None:
                missing.append(number)
            else:
                part, row = divmod(place, PART)
                vectors[number - chunk.start] = self._parts[part]["vector"][row]
        bar.update(len(chunk) - len(missing))
        made = list(self._encoded(missing, images, bad, pool, bar))
        for number, vector in made:
            vectors[number - chunk.start] = vector
        self._write([(keys[number], vectors[number - chunk.start]) for number, _ in made])
        return vectors

    def _encoded(
        self,
        numbers: Sequence[int],
        images: Sequence[Image],
        bad: Callable[[int, str], None],
        pool: ThreadPoolExecutor,
        bar: Any,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, vector) of the images that can be read."""
        size = self._encoder.batch_size
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        prepare = lambda number: _prepared(images[number], self._encoder)
        ahead = [[pool.submit(prepare, number) for number in batch] for batch in batches[:_AHEAD]]
        for place, batch in enumerate(batches):
            ready = {number: future.result() for number, future in zip(batch, ahead.pop(0), strict=True)}
            if place + _AHEAD < len(batches):
                ahead.append([pool.submit(prepare, number) for number in batches[place + _AHEAD]])
            pixels = {}
            for number, found in ready.items():
                if isinstance(found, str):
                    bad(number, found)
                else:
                    pixels[number] = found
            if pixels:
                vectors = self._encoder.prepared(np.stack(list(pixels.values())))
                if not np.isfinite(vectors).all():
                    raise UserError(f"the CLIP model in {self._encoder.directory} made NaN: give another copy of it")
                yield from zip(pixels, vectors, strict=True)
            bar.update(len(batch))

    def _write(self, rows: Iterable[tuple[bytes, np.ndarray]]) -> None:
        part = np.array([(np.frombuffer(key, np.uint8), vector) for key, vector in rows], self._dtype)
        if len(part):
            digest = hashlib.sha256(part["key"].tobytes()).hexdigest()[:16]  # of its images: no name comes twice
            content = io.BytesIO()
            np.save(content, part)
            write_bytes(self.directory / f"part-{digest}.npy", content.getvalue())


def _key(image: Image) -> bytes:
    """Digest an image's name, size and time of change.

    Raises:
      OSError, ValueError: there is no such file.
    """
    stamp = Stamp.of(image.file) if isinstance(image.file, Path) else image.file.stamp
    return hashlib.blake2b(f"{image.name}\0{stamp}".encode(errors="surrogateescape"), digest_size=_KEY).digest()


def _prepared(image: Image, encoder: ClipEncoder) -> np.ndarray | str:
    """What the model sees of an image, or a sentence of why it can't be read."""
    try:
        pixels = read_image(image.file)
        shorter, longer = sorted(pixels.shape[:2])
        if longer > _LONGEST * shorter:
            return f"{name_of(image.file)} is more than {_LONGEST} times as long as it is wide: leave it out"
        return encoder.prepare(pixels)
    except (OSError, UserError) as error:
        return _sentence(error, image)


def _sentence(error: Exception, image: Image) -> str:
    if isinstance(error, OSError):
        why = BAD_PATHS.get(error.errno or 0, f"can't be opened ({error.strerror}): check the path")
        return printable(f"{os.fspath(error.filename or name_of(image.file))} {why}")
    return str(error)
