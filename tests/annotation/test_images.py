"""Images as annotators get them: the pixels of the file and nothing else of it; made once, kept within a bound."""

import io
import threading

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
            gate.wait(5)
            made.append(key)
            return bytes([key]) * size

        return image

    cache.prepare(0, make(0))  # starts
    cache.prepare(1, make(1))  # waits behind it
    first = [cache.get(0, make(0)) for _ in range(3)]
    second = cache.get(1, make(1))  # is asked for: it comes before what is prepared
    cache.prepare(2, make(2))
    gate.set()
    assert {future.result(5) for future in first} == {b"\0" * 1000}
    assert second.result(5) == b"\1" * 1000
    cache.get(2, make(2)).result(5)
    assert sorted(made) == [0, 1, 2]
    for key in range(3, 20):
        cache.prepare(key, make(key))
    cache.get(20, make(20)).result(5)
    cache.close()
    assert cache._size == sum(map(len, cache._kept.values())) <= 4000
    failing = ImageCache(limit=4000, threads=1)
    for _ in range(2):  # an error is not kept
        with pytest.raises(OSError, match="gone"):
            failing.get(0, lambda: (_ for _ in ()).throw(OSError("gone"))).result(5)
    failing.close()
