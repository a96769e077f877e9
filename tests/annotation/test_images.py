"""Images as annotators get them: the pixels of the file and nothing else of it; made once, kept within a bound."""

import io
import threading
import time
from concurrent.futures import wait

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from onereward_jax.annotation.images import ImageCache, as_png, mask_as_png, png
from onereward_jax.errors import UserError


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 3), (9, 4)])
def test_pixels_come_through(shape, level):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert (np.asarray(PIL.Image.open(io.BytesIO(png(pixels, level)))) == pixels).all()


def test_nothing_of_the_file_but_its_pixels():
    said = PngInfo()
    said.add_text("prompt", "a secret prompt")
    image = PIL.Image.new("RGBA", (8, 6), (200, 10, 20, 255))
    exif = image.getexif()
    exif[0x010E] = "where it was taken"
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=said, exif=exif)
    assert b"secret" in buffer.getvalue()
    made = as_png(buffer.getvalue() + b"<script>", "x", fast=True)
    again = PIL.Image.open(io.BytesIO(made))
    assert (again.mode, again.size, dict(again.getexif()), again.info) == ("RGB", (8, 6), {}, {})
    assert not any(word in made for word in (b"secret", b"taken", b"script"))
    for content in (b"", b"<svg/>", buffer.getvalue()[:60]):
        with pytest.raises(UserError, match="x "):
            as_png(content, "x")


def test_masks_are_black_and_white():
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.array([[0, 100, 200, 255]], np.uint8)).save(buffer, "PNG")
    assert np.asarray(PIL.Image.open(io.BytesIO(mask_as_png(buffer.getvalue(), "m")))).tolist() == [[0, 0, 255, 255]]


def test_each_is_made_once_and_few_are_kept():
    cache, made, gate = ImageCache(limit=4000, threads=1), [], threading.Event()

    def make(key, size=1000):
        def image():
            gate.wait(30)
            made.append(key)
            return bytes([key]) * size

        return image

    cache.prepare(0, make(0))  # starts
    cache.prepare(1, make(1))  # waits behind it
    first = [cache.get(0, make(0)) for _ in range(3)]
    second = cache.get(1, make(1))  # is asked for: it comes before what is prepared
    cache.prepare(2, make(2))
    gate.set()
    assert {future.result(30) for future in first} == {b"\0" * 1000}
    assert second.result(30) == b"\1" * 1000
    cache.get(2, make(2)).result(30)
    assert sorted(made) == [0, 1, 2]
    for key in range(3, 20):
        cache.prepare(key, make(key))
    cache.get(20, make(20)).result(30)
    cache.close()
    assert cache._size == sum(map(len, cache._kept.values())) <= 4000
    failing = ImageCache(limit=4000, threads=1)
    for _ in range(2):  # an error is not kept
        with pytest.raises(OSError, match="gone"):
            failing.get(0, lambda: (_ for _ in ()).throw(OSError("gone"))).result(30)
    failing.close()


def foreseen(cache, count, size, made, broken=()):
    def maker(key):
        def make():
            made.append(key)
            if key in broken:
                raise OSError("gone")
            return bytes(size)

        return make

    cache.foresee({key: maker(key) for key in range(count)})


def idle(cache):
    """Wait until nothing is being made, nor about to be."""
    while True:
        with cache._lock:
            making = list(cache._making.values())
        if not making:
            return
        wait(making, 30)


def test_what_is_foreseen_is_made_in_order_within_its_part():
    cache, made = ImageCache(limit=3200, threads=2), []
    foreseen(cache, 40, 100, made, broken=(1,))
    idle(cache)
    assert made == list(range(33))  # 1 is broken, and there is room for no more
    for key in range(30):  # what somebody was given takes the room of what was foreseen last,
        cache.prepare(("given", key), lambda: bytes(100))
        idle(cache)
    assert sorted(key for key in cache._kept if isinstance(key, int)) == [0, 2]  # but not its part
    assert cache._size == sum(map(len, cache._kept.values())) == 3200
    assert made == list(range(33))  # nothing is made to be dropped
    cache.get(0, lambda: b"").result(0)
    assert 0 in cache._kept  # others may ask for it
    for key in range(30):
        cache._drop(("given", key))
    foreseen(cache, 40, 100, made := [], broken=(1,))
    idle(cache)
    assert made == list(range(3, 33))  # again, now that there is room
    foreseen(cache, 1, 100, [])
    cache.get(2, lambda: b"").result(0)
    assert 2 not in cache._kept
    foreseen(cache, 0, 0, [])
    cache._drop(0)
    foreseen(cache, 1, 4000, made := [])  # larger than the limit: it is not made again and again
    idle(cache)
    assert made == [0]
    cache.close()


def test_what_several_will_ask_for_stays_until_the_last_did():
    cache, made = ImageCache(limit=800, threads=1), []
    for _ in range(3):
        cache.prepare("shared", lambda: made.append("shared") or bytes(200))
    idle(cache)
    for left in (2, 1, 0):
        assert len(cache.get("shared", lambda: made.append("again") or bytes(200)).result(30)) == 200
        assert ("shared" in cache._kept) == (left > 0)
    assert made == ["shared"]
    cache.close()


def test_what_is_foreseen_waits_for_requests_and_ends_at_the_end():
    cache, made, gate, begun = ImageCache(limit=10_000, threads=2), [], threading.Event(), threading.Event()

    def slow():
        begun.set()
        gate.wait(30)
        return b"slow"

    cache.foresee({"first": slow, "second": lambda: made.append("second") or b""})
    assert begun.wait(30)
    assert cache.get("asked", lambda: b"asked").result(30) == b"asked"  # meanwhile
    asked = cache.get("long", slow)
    cache.foresee({"third": lambda: made.append("third") or b""})
    assert made == []  # a request is being answered
    gate.set()
    assert asked.result(30) == b"slow"
    idle(cache)
    assert made == ["third"]
    gate.clear()
    begun.clear()
    cache.foresee({"last": slow, "never": lambda: made.append("never") or b""})
    assert begun.wait(30)
    closing = threading.Thread(target=cache.close)
    closing.start()
    while cache._foreseen:
        time.sleep(0.01)
    gate.set()
    closing.join(30)
    assert made == ["third"]
