"""A small folder of candidates without votes, whose images say which record and candidate they are of."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Candidate, Record
from onereward_jax.tasks import TASKS

FILE = "candidates-0000.jsonl"
STEP = 40  # levels of blue between candidates

# One of every kind that a page could get wrong: markup, right to left, several scripts, longer than any box, none.
PROMPTS = (
    "a red beetle on the leaf",
    "<img src=x onerror=\"document.title='broken in'\"> & <b>bold</b>",
    "קנקן כחול על השולחן, משמאל לחלון",
    "ein roter Käfer 🐞 auf einem Blatt, 赤いてんとう虫",
    "a lighthouse on a cliff above a stormy sea, painted in oil, with gulls that circle its lantern; " * 40,
)


def picture(record: int, candidate: int | None, height: int = 48, width: int = 64) -> bytes:
    """A PNG; `candidate` None is the source. See `who` for what its colour says."""
    image = Image.new(
        "RGB", (width, height), (record % 256, record // 256, STEP * (0 if candidate is None else candidate + 1))
    )
    if candidate is not None:
        ImageDraw.Draw(image).text((width // 3, height // 3), str(candidate), fill="white")
    return _png(image)


def who(pixel: tuple[int, ...]) -> tuple[int, int | None]:
    """Record and candidate, or None for the source, of a `picture` by its pixel in the upper left corner."""
    red, green, blue = pixel[:3]
    return red + 256 * green, round(blue / STEP) - 1 if blue else None


def request(number: int) -> dict[str, str]:
    """Task and prompt of a record, by its number."""
    return {"task": TASKS[number % len(TASKS)], "prompt": PROMPTS[number % len(PROMPTS)]}


def records(
    count: int = 6, candidates: int = 4, models: tuple[str, ...] = (), size: tuple[int, int] = (48, 64)
) -> list[Record]:
    """`count` requests of all tasks by turns, every one with a source image of its own.

    Args:
      candidates: of each record.
      models: what made the candidates, by turns; nothing is said of it by default.
      size: height and width of the images.
    """
    height, width = size
    mask = np.zeros(size, np.uint8)
    mask[height // 4 : height // 2, width // 4 : width * 3 // 4] = 255
    made = []
    for number in range(count):
        sampling = [{"model": models[which % len(models)]} if models else {} for which in range(candidates)]
        made.append(
            Record(
                id=f"record-{number}",
                **request(number),
                candidates=tuple(
                    Candidate(picture(number, which, *size), sampling[which]) for which in range(candidates)
                ),
                image=picture(number, None, *size),
                mask=_png(Image.fromarray(mask)),
            )
        )
    return made


def write_candidates(
    directory: Path, count: int = 6, candidates: int = 4, models: tuple[str, ...] = (), **options
) -> Path:
    """Write `records` as `onereward collect` leaves them, and return the directory."""
    write_folder(directory, records(count, candidates, models, **options), file=FILE)
    return directory


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
