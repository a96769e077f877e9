"""Images as annotators see them: decoded, written anew as PNG without metadata, kept in memory for a while.

What a client gets was never a file of the data: whatever hides in one (metadata, a script, a second image) stays there.
"""

import os
import struct
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from onereward_jax.images.decoding import decode

CACHE_BYTES = 2**30
_SERVED = 8  # images that were served are kept while all take less than one such part of the limit
_FORESEEN = 16  # and what is foreseen takes one such part of it from the rest, more only while there is room
_UP = 2  # PNG's filter: the difference from the row above


def as_png(content: bytes, name: str, fast: bool = True) -> bytes:
    """Write an image file anew: 8-bit RGB, upright, sRGB, pixels and nothing else.

    Args:
      name: for messages.
      fast: don't compress, which takes longer than the network on one machine.

    Raises:
      UserError: it is no image, or a damaged one.
    """
    return png(np.asarray(decode(content, name).image), level=0 if fast else 1)


def mask_as_png(content: bytes, name: str) -> bytes:
    """Write a mask anew: black and white, white where it was painted.

    Raises:
      UserError: see `as_png`.
    """
    grey = np.asarray(decode(content, name, profile=False).image.convert("L"))
    return png(np.where(grey >= 128, 255, 0).astype(np.uint8), level=1)


def png(pixels: np.ndarray, level: int) -> bytes:
    """Encode uint8 (H, W, 3) or (H, W) as PNG: several times as fast as Pillow, which tries five filters for each row.

    Args:
      level: of zlib, 0 to 9; 0 stores pixels as they are.
    """
    rows = pixels.reshape(pixels.shape[0], -1)
    filtered = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    colours = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, colours, 0, 0, 0)
    chunks = (*_chunk(b"IHDR", header), *_chunk(b"IDAT", packed), *_chunk(b"IEND", b""))
    return b"".join((b"\x89PNG\r\n\x1a\n", *chunks))


def _chunk(kind: bytes, content: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


class ImageCache:
    """Images that are being made or were made, within a bound; each is made once, however many wait for it.

    What was asked for is made before what an annotator is about to ask for, and that before what is foreseen: what
    anybody may ask for next. The latter waits until nothing else is being made, and has a part of the room alone.
    """

    def __init__(self, limit: int = CACHE_BYTES, threads: int | None = None):
        """
        Args:
          limit: bytes.
        """
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()  # the first goes first
        self._making: dict[Hashable, Future[bytes]] = {}
        self._idle: set[Hashable] = set()  # of those, which nobody has asked for yet
        self._awaited: Counter[Hashable] = Counter()  # how many will ask for it: an overlap is shown to several
        self._foreseen: dict[Hashable, Callable[[], bytes]] = {}
        self._failed: set[Hashable] = set()  # of those, which could not be made
        self._lock = threading.Lock()
        count = threads or max(2, os.cpu_count() or 1)
        self._now = ThreadPoolExecutor(count, "images")
        self._ahead = ThreadPoolExecutor(max(1, count // 2), "images-ahead")  # half, so that it slows nobody's request

    def close(self) -> None:
        """Make no more images."""
        self.foresee({})
        for pool in (self._now, self._ahead):
            pool.shutdown(wait=True, cancel_futures=True)

    def get(self, key: Hashable, make: Callable[[], bytes]) -> "Future[bytes]":
        """Return an image that is or will be there.

        Args:
          make: called in a thread, if need be; what it raises, the future does.
        """
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._served(key)
                there: Future[bytes] = Future()
                there.set_result(kept)
                return there
            making, was_idle = self._making.get(key), key in self._idle
            self._idle.discard(key)
            if making is not None and not (was_idle and making.cancel()):
                return making
            return self._start(self._now, key, make)

    def prepare(self, key: Hashable, make: Callable[[], bytes]) -> None:
        """Make an image that somebody will ask for, when nothing else is to be done."""
        with self._lock:
            self._awaited[key] += 1
            if key in self._kept:
                self._kept.move_to_end(key)
            elif key not in self._making:
                self._idle.add(key)
                self._start(self._ahead, key, make)

    def foresee(self, makers: Mapping[Hashable, Callable[[], bytes]]) -> None:
        """Make the images that anybody may ask for next, in this order, one by one, instead of those foreseen before.

        Args:
          makers: as for `get`; one that raises is left out.
        """
        with self._lock:
            self._foreseen = dict(makers)
            self._failed &= self._foreseen.keys()
            self._make_foreseen()

    def _make_foreseen(self) -> None:
        """Begin with the next image that is foreseen, unless something else is being made or there is no room."""
        next_one = self._size // len(self._kept) if self._kept else 0  # about as large as the others
        has_room = self._size + next_one <= self._limit
        if self._making or not (has_room or self._foreseen_bytes() + next_one <= self._limit // _FORESEEN):
            return
        for key, make in self._foreseen.items():
            if key not in self._kept and key not in self._failed:
                self._idle.add(key)
                self._start(self._ahead, key, make)
                return

    def _foreseen_bytes(self) -> int:
        return sum(len(self._kept[key]) for key in self._foreseen if key in self._kept)

    def _start(self, pool: ThreadPoolExecutor, key: Hashable, make: Callable[[], bytes]) -> "Future[bytes]":
        self._making[key] = pool.submit(self._make, key, make)
        return self._making[key]

    def _make(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        content = None
        try:
            content = make()
            return content
        finally:
            with self._lock:
                self._making.pop(key, None)
                if content is not None:
                    self._keep(key, content)
                if key in self._foreseen and key not in self._kept:  # it can't be made, or is too large
                    self._failed.add(key)
                self._idle.discard(key)
                self._make_foreseen()

    def _keep(self, key: Hashable, content: bytes) -> None:
        self._kept[key] = content
        self._size += len(content)
        if key not in self._idle:
            self._served(key)
        while self._size > self._limit:
            if self._foreseen_bytes() > self._limit // _FORESEEN:
                self._drop(next(key for key in reversed(self._foreseen) if key in self._kept))
            else:
                self._drop(next(key for key in self._kept if key not in self._foreseen))

    def _served(self, key: Hashable) -> None:
        """Let an image go first, unless others may ask for it: browsers keep what they were given."""
        others = self._awaited.pop(key, 0) - 1
        if others > 0:
            self._awaited[key] = others
        if key in self._foreseen or others > 0:
            return
        self._kept.move_to_end(key, last=False)
        if self._size > self._limit // _SERVED:
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._size -= len(self._kept.pop(key))
        self._awaited.pop(key, None)
