"""A user's own pictures with captions: a folder as it lies, or described by metadata.jsonl; see docs/finetune.md."""

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from onereward_jax.atomic_files import fingerprint
from onereward_jax.config.load import did_you_mean
from onereward_jax.data import masks
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.buckets import BucketDraw, Size, aspect_distance, bucket_sizes, common_shapes
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source
from onereward_jax.errors import UserError
from onereward_jax.images import reading
from onereward_jax.tasks import FIXED_PROMPTS, TASKS

METADATA = "metadata.jsonl"  # as of the `datasets` library's ImageFolder
_CAPTIONS = ("text", "caption", "prompt")  # names that the field has in public data, the first that is there counts
# Tasks of a picture that names none: what is under a mask of these can be any picture's own.
_ANY_TASK = ("image_fill", "image_extend")
_CACHED = 256  # pictures, at the size at which they are cut


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture and what it shows.

    Attributes:
      id: path of the picture as the folder or its metadata names it.
      image, mask: picture files; white in the mask is what the model is asked for. Without a mask, masks are drawn.
      caption: empty only for a task that has a fixed prompt.
      tasks: for which it is shown.
      size: of the picture, upright.
    """

    id: str
    image: Path
    mask: Path | None
    caption: str
    tasks: tuple[str, ...]
    size: Size = (0, 0)


def read_captioned(path: Path, caption: str = "", bad_share: float = 0.0, num_threads: int = 4) -> list[Captioned]:
    """Every picture that can be used, after it was decoded; the others are named on stderr.

    Args:
      path: a folder of pictures or a .jsonl file whose paths are relative to it.
      caption: of pictures that have none.
      bad_share: of the pictures, that may be bad.

    Raises:
      FileNotFoundError: there is no such folder or file.
      UserError: it holds no picture, or none has a caption, or more are bad than may be.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path} of pictures: check data.path")
    found: list[Captioned | str] = list(_listed(path, caption))
    if not found:
        raise UserError(f"{path} holds no picture ({', '.join(reading.PICTURES)}): give another data.path")
    if all(isinstance(item, Captioned) and not item.caption and item.tasks == _ANY_TASK for item in found):
        raise UserError(
            f"no picture of {path} has a caption: write NAME.txt beside each, or {METADATA}, or one for all in"
            " data.caption"
        )
    skipped = Skipped("pictures", str(path), bad_share)
    with ThreadPoolExecutor(num_threads) as pool:
        read = tqdm(pool.map(_checked, found), total=len(found), desc="reading pictures", disable=None)
        good = []
        for item in read:
            if isinstance(item, Captioned):
                good.append(item)
            else:
                skipped.add(item)
    skipped.end(len(found))
    if not good:
        raise UserError(f"no picture of {path} can be used, see above: mend them, or give another data.path")
    return good


def _checked(item: Captioned | str) -> Captioned | str:
    """The picture with its size, or what is wrong with it."""
    if isinstance(item, str):
        return item
    try:
        if not item.caption and not all(task in FIXED_PROMPTS for task in item.tasks):
            raise UserError(f"it has no caption: write {item.image.stem}.txt beside it, or set data.caption")
        image = reading.read_image(item.image)
        if item.mask is not None:
            reading.check_size(image, reading.read_mask(item.mask), (str(item.image), str(item.mask)))
    except OSError as error:
        return f"{error.filename} can't be opened ({error.strerror}): check the path"
    except ValueError as error:
        return str(error) if str(item.image) in str(error) else f"{item.image}: {error}"
    return dataclasses.replace(item, size=image.shape[:2])


# -------------------------------------------------------------------------------------------------------- the layout


def _listed(path: Path, caption: str) -> Iterator[Captioned | str]:
    """What the folder or the file names, unread; a text for a line that is none."""
    metadata = path / METADATA if path.is_dir() else path
    if metadata.is_file() and metadata.suffix == ".jsonl":
        for number, line in enumerate(_text(metadata).splitlines(), start=1):
            if line.strip():
                try:
                    yield _of_line(line, metadata.parent, caption)
                except (ValueError, OSError) as error:
                    yield f"{metadata}, line {number}: {error}"
        return
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder of pictures nor a .jsonl file: give another data.path")
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in reading.PICTURES and file.is_file()]
    given = {file: mask for file in files if (mask := _mask_beside(file)) is not None}
    masks_there = set(given.values())
    for file in files:
        if (file.parent.name == "masks" and file.parent != path) or file in masks_there:
            continue
        note = file.with_suffix(".txt")
        text = _text(note).strip() if note.is_file() else ""
        mask = given.get(file)
        yield Captioned(str(file.relative_to(path)), file, mask, text or caption, _tasks(None, mask))


def _text(file: Path) -> str:
    """As any editor saves it."""
    return file.read_text(encoding="utf-8-sig", errors="replace")


def _mask_beside(image: Path) -> Path | None:
    """NAME_mask.* beside the picture, or masks/NAME.* in its folder."""
    for suffix in reading.PICTURES:
        for mask in (image.with_name(f"{image.stem}_mask{suffix}"), image.parent / "masks" / f"{image.stem}{suffix}"):
            if mask.is_file():
                return mask
    return None


def _tasks(task: str | None, mask: Path | None) -> tuple[str, ...]:
    if task is not None:
        return (task,)
    return _ANY_TASK if mask is None else ("image_fill",)


def _of_line(line: str, directory: Path, caption: str) -> Captioned:
    """
    Raises:
      UserError: the line describes no picture.
    """
    try:
        fields: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"it is no JSON ({error}): write one object a line") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
        raise UserError("it names no picture: write its path into file_name")
    for name in (*_CAPTIONS, "mask", "task"):
        if not isinstance(fields.get(name, ""), str | None):
            raise UserError(f"{name} is {fields[name]!r}: write a text")
    task, mask = fields.get("task") or None, fields.get("mask") or None
    if task is not None and task not in TASKS:
        hint = did_you_mean(task, TASKS) or f": choose one of {', '.join(TASKS)}"
        raise UserError(f"task is {task!r}{hint}")
    image = directory / fields["file_name"]
    mask = directory / mask if mask else _mask_beside(image)
    text = next((fields[name].strip() for name in _CAPTIONS if fields.get(name)), "")
    # The caption for all pictures is none of a removal.
    text = text or ("" if task == "object_removal" else caption)
    return Captioned(fields["file_name"], image, mask, text, _tasks(task, mask))


# ----------------------------------------------------------------------------------------------------------- samples


class CaptionedFolder(Source):
    """An endless source: images cut to the sizes of batches, at random places, under masks of their own or drawn ones.

    The target of a sample is its image.

    Attributes:
      images: of which samples are made.
      sizes: of which there are batches.
      weights: {task: weight} of the tasks that an image has.
    """

    def __init__(self, config: ConfigDict, images: Sequence[Captioned]):
        """
        Args:
          config: its `seed`, `train.batch_size` and `data`: `task_weights`, `resolution`, `bucket_step`, `max_aspect`,
            `min_hole` and `max_hole`.
          images: at least one. Sizes that few of them have are left to the nearest others.

        Raises:
          UserError: no task that an image has has a weight.
        """
        data = config.data
        self.images = tuple(images)
        there = {task for image in images for task in image.tasks}
        self.weights = {task: weight for task, weight in data.task_weights.items() if weight and task in there}
        if not self.weights:
            raise UserError(f"the pictures are of {', '.join(sorted(there))}, whose data.task_weights are 0: raise one")
        self.tasks = tuple(self.weights)
        sizes = bucket_sizes(data.resolution, data.bucket_step, data.max_aspect)
        nearest = [_nearest(image.size, sizes) for image in images]
        self.sizes = tuple(sorted(set(common_shapes(nearest, config.train.batch_size, aspect_distance).values())))
        self._seed, self._hole = config.seed, (data.min_hole, data.max_hole)
        items = [(self.size_of(image), task, image) for image in images for task in image.tasks if task in self.tasks]
        self._drawn: BucketDraw[Size, Captioned] = BucketDraw(items, config.train.batch_size, self.weights)

    @property
    def drawn_sizes(self) -> tuple[Size, ...]:
        """Sizes of which there are samples of a task that has a weight, in the order of the images."""
        return self._drawn.shapes

    def size_of(self, image: Captioned) -> Size:
        """At which an image is shown."""
        return _nearest(image.size, self.sizes)

    def sample(self, index: int, task: str) -> Sample:
        """Sample `index` of the run; all of a batch have one size, and where there are several, it draws the task."""
        generator = np.random.default_rng((self._seed, index))
        _, task, image = self._drawn.draw(generator, self._seed, index, task)
        return self._cut(image, task, generator)

    def fixed_sample(self, image: Captioned, *stream: int) -> Sample:
        """The same in every run: task, place and mask are chosen by the image and the numbers of `stream`.

        Args:
          image: one of the source's own or another, such as one that is held out.
        """
        generator = np.random.default_rng((self._seed, zlib.crc32(image.id.encode()), *stream))
        tasks = [task for task in image.tasks if task in self.tasks] or image.tasks
        return self._cut(image, tasks[generator.integers(len(tasks))], generator)

    def fingerprint(self) -> dict[str, Any]:
        return {"images": fingerprint_of(self.images)}

    def _cut(self, image: Captioned, task: str, generator: np.random.Generator) -> Sample:
        sample = draw_sample(image, self.size_of(image), task, generator, self._hole)
        return dataclasses.replace(sample, target=sample.image)


def _nearest(size: Size, sizes: Sequence[Size]) -> Size:
    return min(sizes, key=lambda other: aspect_distance(size, other))


def fingerprint_of(images: Sequence[Captioned]) -> str:
    """Digest of image files, masks, captions and tasks."""
    described = [
        (x.id, fingerprint(x.image), x.mask and fingerprint(x.mask), x.caption, x.tasks, x.size) for x in images
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def prompt_of(picture: Captioned, task: str) -> str:
    """The caption, or the task's fixed prompt."""
    return picture.caption or FIXED_PROMPTS[task]


def draw_sample(
    picture: Captioned, size: Size, task: str, generator: np.random.Generator, hole: tuple[float, float]
) -> Sample:
    """The picture at `size`, cut to its aspect at a random place, under its own mask or one that is drawn.

    Args:
      hole: least and most of a side of the picture that a drawn mask takes, see `data.masks`.
    """
    image = _covering(picture.image, size)
    slack = np.subtract(image.shape[:2], size)
    if picture.mask is None:
        top, left = (int(generator.integers(room + 1)) for room in slack)
        draw = masks.random_borders if task == "image_extend" else masks.random_cover
        mask = draw(*size, generator, *hole)
    else:
        whole = _covering_mask(picture.mask, size)
        rows, columns = np.nonzero(whole)
        place = generator.integers(len(rows))  # a pixel of the mask, so that some of it is within
        top, left = (
            int(np.clip(at[place] - side // 2, 0, room))
            for at, side, room in zip((rows, columns), size, slack, strict=True)
        )
        mask = whole[top : top + size[0], left : left + size[1]]
    cut = image[top : top + size[0], left : left + size[1]]
    return Sample(cut, mask, prompt_of(picture, task), task, picture.id)


def _covering_size(source: Size, size: Size) -> Size:
    """`source` made as small or as large as covers `size`."""
    scale = max(size[0] / source[0], size[1] / source[1])
    return max(size[0], round(source[0] * scale)), max(size[1], round(source[1] * scale))


@functools.lru_cache(maxsize=_CACHED)
def _covering(path: Path, size: Size) -> np.ndarray:
    image = reading.read_image(path)
    height, width = _covering_size(image.shape[:2], size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


@functools.lru_cache(maxsize=_CACHED)
def _covering_mask(path: Path, size: Size) -> np.ndarray:
    """Every pixel is asked for that has a part in the mask: none of it may stay in sight."""
    mask = reading.read_mask(path)
    height, width = _covering_size(mask.shape[:2], size)
    shares = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(shares) > 0).astype(np.uint8)


def hold_out(pictures: Sequence[Captioned], share: float, seed: int) -> tuple[list[Captioned], list[Captioned]]:
    """(to train on, held out): at least one of each if a share is held out, and of a growing folder mostly the same."""

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    names = sorted({picture.id for picture in pictures}, key=digest)  # one may be there under several masks
    held_out = set(names[: min(max(1, round(share * len(names))), len(names) - 1) if share else 0])
    return (
        [picture for picture in pictures if picture.id not in held_out],
        [picture for picture in pictures if picture.id in held_out],
    )
