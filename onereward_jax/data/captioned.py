"""A user's own captioned images: a plain folder, or one described by metadata.jsonl; see docs/how-to/finetune.md."""

import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from onereward_jax.atomic_files import fingerprint
from onereward_jax.config.option import did_you_mean
from onereward_jax.config.schema import Finetuning
from onereward_jax.data import masks
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.buckets import BucketDraw, Size, aspect_distance, bucket_sizes, common_shapes
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import MAX_LINE, json_lines, path_beside, read_text
from onereward_jax.images import reading
from onereward_jax.tasks import FIXED_PROMPTS, TASKS

METADATA = "metadata.jsonl"  # as in the `datasets` library's ImageFolder
_CAPTIONS = ("text", "caption", "prompt")  # names of the field in public data; the first that is present counts
# Tasks of an image that names none: for these, any image is a right answer under any mask.
_ANY_TASK = ("image_fill", "image_extend")
_CACHED = 256  # resized images


@dataclasses.dataclass(frozen=True)
class Captioned:
    """An image and its caption.

    Attributes:
      id: path of the image, relative to the folder or as in the metadata.
      image, mask: image files; the mask is white where the model should generate. Without a mask, masks are drawn.
      caption: empty only for a task that has a fixed prompt.
      tasks: the tasks it can be used for.
      size: (height, width) of the image, upright.
    """

    id: str
    image: Path
    mask: Path | None
    caption: str
    tasks: tuple[str, ...]
    size: Size = (0, 0)


def read_captioned(
    path: Path, caption: str = "", bad_share: float = 0.0, inside_only: bool = False, num_threads: int = 4
) -> list[Captioned]:
    """List all usable images, after decoding them; bad ones are reported on stderr.

    Args:
      path: a folder of images, or a .jsonl file whose paths are relative to it.
      caption: caption of images that have none.
      bad_share: the share of the images that may be bad.
      inside_only: an image or a mask is bad if its path leads out of the folder, by a symbolic link too.

    Raises:
      FileNotFoundError: there is no such folder or file.
      UserError: there are no images, none has a caption, or too many are bad.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no image folder {path}: check data.path")
    found: list[Captioned | str] = list(_listed(path, caption, inside_only))
    if not found:
        raise UserError(f"{path} holds no images ({', '.join(reading.SUFFIXES)}): give another data.path")
    if all(isinstance(item, Captioned) and not item.caption and item.tasks == _ANY_TASK for item in found):
        raise UserError(
            f"no image in {path} has a caption: write NAME.txt beside each, or {METADATA}, or one caption for all in"
            " data.caption"
        )
    skipped = Skipped("images", str(path), bad_share)
    with ThreadPoolExecutor(num_threads) as pool:
        read = tqdm(pool.map(_checked, found), total=len(found), desc="reading images", disable=None)
        good = []
        for item in read:
            if isinstance(item, Captioned):
                good.append(item)
            else:
                skipped.add(item)
    skipped.end(len(found))
    if not good:
        raise UserError(f"no image in {path} can be used, see above: correct them, or give another data.path")
    return good


def _checked(item: Captioned | str) -> Captioned | str:
    """Decode an image and fill in its size, or return the error message."""
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
    except UserError as error:
        return str(error) if str(item.image) in str(error) else f"{item.image}: {error}"
    return dataclasses.replace(item, size=image.shape[:2])


# -------------------------------------------------------------------------------------------------------- the layout


def _listed(path: Path, caption: str, inside_only: bool) -> Iterator[Captioned | str]:
    """List the images in a folder or .jsonl file without reading them; what names none gives an error message."""
    metadata = path / METADATA if path.is_dir() else path
    if metadata.suffix == ".jsonl" and os.path.lexists(metadata):
        for line in json_lines(metadata):
            try:
                yield _of_fields(line.fields(), metadata.parent, caption, inside_only)
            except UserError as error:
                yield f"{line.where}: {error}"
        return
    if not path.is_dir():
        raise UserError(f"{path} is neither an image folder nor a .jsonl file: give another data.path")
    files = reading.files_in(path, recursive=True)
    given = {file: mask for file in files if (mask := _mask_beside(file)) is not None}
    masks_there = set(given.values())
    for file in files:
        if (file.parent.name == "masks" and file.parent != path) or file in masks_there:
            continue
        note, mask = file.with_suffix(".txt"), given.get(file)
        try:
            for beside in (file, mask):
                if beside is not None:
                    path_beside(path, str(beside.relative_to(path)), inside_only)
            text = read_text(note, MAX_LINE).strip() if os.path.lexists(note) else ""
        except OSError as error:
            yield f"{error.filename} can't be opened ({error.strerror}): check the path"
        except UserError as error:
            yield str(error)
        else:
            yield Captioned(str(file.relative_to(path)), file, mask, text or caption, _tasks(None, mask))


def _mask_beside(image: Path) -> Path | None:
    """Find NAME_mask.* beside the image, or masks/NAME.* in its folder."""
    for suffix in reading.SUFFIXES:
        for mask in (image.with_name(f"{image.stem}_mask{suffix}"), image.parent / "masks" / f"{image.stem}{suffix}"):
            if os.path.lexists(mask):
                return mask
    return None


def _tasks(task: str | None, mask: Path | None) -> tuple[str, ...]:
    if task is not None:
        return (task,)
    return _ANY_TASK if mask is None else ("image_fill",)


def _of_fields(fields: Mapping[str, Any], folder: Path, caption: str, inside_only: bool) -> Captioned:
    """Make an image of the fields of a line of the metadata.

    Raises:
      UserError: they do not describe an image.
    """
    if not isinstance(fields.get("file_name"), str):
        raise UserError("it names no image: write its path into file_name")
    for name in (*_CAPTIONS, "mask", "task"):
        if not isinstance(fields.get(name, ""), str | None):
            raise UserError(f"{name} is {shown(fields[name])}: write a text")
    task, mask = fields.get("task") or None, fields.get("mask") or None
    if task is not None and task not in TASKS:
        hint = did_you_mean(task, TASKS) or f": choose one of {', '.join(TASKS)}"
        raise UserError(f"task is {shown(task)}{hint}")
    image = path_beside(folder, fields["file_name"], inside_only)
    mask = path_beside(folder, mask, inside_only) if mask else _mask_beside(image)
    text = next((fields[name].strip() for name in _CAPTIONS if fields.get(name)), "")
    # The common caption does not apply to removal, which has a fixed prompt.
    text = text or ("" if task == "object_removal" else caption)
    return Captioned(fields["file_name"], image, mask, text, _tasks(task, mask))


# ----------------------------------------------------------------------------------------------------------- samples


class CaptionedFolder(Source):
    """An endless source: images randomly cropped to the batch sizes, with their own masks or drawn ones.

    The target of a sample is its image.

    Attributes:
      images: the images.
      sizes: the batch sizes, (height, width).
      weights: {task: weight} of the tasks that some image has.
    """

    def __init__(self, config: Finetuning, images: Sequence[Captioned]):
        """
        Args:
          config: its `seed`, `train.batch_size` and `data`: `task_weights`, `resolution`, `bucket_step`, `max_aspect`,
            `min_hole` and `max_hole`.
          images: at least one. Images of rare sizes use the nearest common one.

        Raises:
          UserError: the tasks of the images all have weight 0.
        """
        data = config.data
        self.images = tuple(images)
        there = {task for image in images for task in image.tasks}
        self.weights = {task: weight for task, weight in data.task_weights.items() if weight and task in there}
        if not self.weights:
            raise UserError(f"the images are for {', '.join(sorted(there))}, whose data.task_weights are 0: raise one")
        self.tasks = tuple(self.weights)
        self.prompts = prompts_of(images)
        sizes = bucket_sizes(data.resolution, data.bucket_step, data.max_aspect)
        nearest = [_nearest(image.size, sizes) for image in images]
        self.sizes = tuple(sorted(set(common_shapes(nearest, config.train.batch_size, aspect_distance).values())))
        self._seed, self._hole = config.seed, (data.min_hole, data.max_hole)
        items = [(self.size_of(image), task, image) for image in images for task in image.tasks if task in self.tasks]
        self._drawn: BucketDraw[Size, Captioned] = BucketDraw(items, config.train.batch_size, self.weights)

    @property
    def drawn_sizes(self) -> tuple[Size, ...]:
        """Sizes that samples of weighted tasks have, in the order of the images."""
        return self._drawn.shapes

    def size_of(self, image: Captioned) -> Size:
        """Return the size to which an image is cropped."""
        return _nearest(image.size, self.sizes)

    def sample(self, index: int, task: str) -> Sample:
        """Make sample `index` of the run; all in a batch have one size. With several sizes, the task is drawn anew."""
        generator = np.random.default_rng((self._seed, index))
        _, task, image = self._drawn.draw(generator, self._seed, index, task)
        return self._cut(image, task, generator)

    def fixed_sample(self, image: Captioned, *stream: int) -> Sample:
        """Make a sample that is the same in every run: `image` and `stream` determine its task, crop and mask.

        Args:
          image: from this source or not, such as a held-out one.
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
    """Digest image files, masks, captions and tasks."""
    described = [
        (x.id, fingerprint(x.image), x.mask and fingerprint(x.mask), x.caption, x.tasks, x.size) for x in images
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def prompts_of(images: Iterable[Captioned]) -> tuple[str, ...]:
    """Return every prompt that samples of these images may have."""
    return tuple(dict.fromkeys(prompt_of(image, task) for image in images for task in image.tasks))


def prompt_of(item: Captioned, task: str) -> str:
    """Return the caption, or the task's fixed prompt."""
    return item.caption or FIXED_PROMPTS[task]


def draw_sample(
    item: Captioned, size: Size, task: str, generator: np.random.Generator, hole: tuple[float, float]
) -> Sample:
    """Resize and randomly crop an image to `size`, with its own mask or a drawn one.

    Args:
      hole: range of the share of the image's sides that a drawn mask covers, see `data.masks`.
    """
    image = _covering(item.image, size)
    slack = np.subtract(image.shape[:2], size)
    if item.mask is None:
        top, left = (int(generator.integers(room + 1)) for room in slack)
        draw = masks.random_borders if task == "image_extend" else masks.random_cover
        mask = draw(*size, generator, *hole)
    else:
        full_mask = _covering_mask(item.mask, size)
        rows, columns = np.nonzero(full_mask)
        pixel = generator.integers(len(rows))  # of the mask, so that the crop contains some of it
        top, left = (
            int(np.clip(at[pixel] - side // 2, 0, room))
            for at, side, room in zip((rows, columns), size, slack, strict=True)
        )
        mask = full_mask[top : top + size[0], left : left + size[1]]
    crop = image[top : top + size[0], left : left + size[1]]
    return Sample(crop, mask, prompt_of(item, task), task, item.id)


def _covering_size(source: Size, size: Size) -> Size:
    """Scale `source` to the smallest size that covers `size`."""
    scale = max(size[0] / source[0], size[1] / source[1])
    return max(size[0], round(source[0] * scale)), max(size[1], round(source[1] * scale))


@functools.lru_cache(maxsize=_CACHED)
def _covering(path: Path, size: Size) -> np.ndarray:
    image = reading.read_image(path)
    height, width = _covering_size(image.shape[:2], size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


@functools.lru_cache(maxsize=_CACHED)
def _covering_mask(path: Path, size: Size) -> np.ndarray:
    """Resize a mask; every pixel that overlaps it is generated, so that nothing under it stays visible."""
    mask = reading.read_mask(path)
    height, width = _covering_size(mask.shape[:2], size)
    shares = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(shares) > 0).astype(np.uint8)


def hold_out(images: Sequence[Captioned], share: float, seed: int) -> tuple[list[Captioned], list[Captioned]]:
    """Split into (training, held out), each with at least one image if a share is held out.

    The split is mostly the same when the folder grows.
    """

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    names = sorted({image.id for image in images}, key=digest)  # an image may occur with several masks
    held_out = set(names[: min(max(1, round(share * len(names))), len(names) - 1) if share else 0])
    return (
        [image for image in images if image.id not in held_out],
        [image for image in images if image.id in held_out],
    )
