"""Outlines of objects that others have drawn: a COCO annotation file, or a folder of label images.

They are found by the name of an image, and decoded when they are asked for. An annotation that is malformed is one bad
record; one that marks nothing inside its image is passed over.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt

from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.buckets import Size
from onereward_jax.data.masks import bounding_box
from onereward_jax.data.requests.run_lengths import run_lengths
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import read_json
from onereward_jax.images import reading
from onereward_jax.images.decoding import decode

_MAX_BYTES = 2**31  # of an annotation file; COCO's own of 118,000 images has 450 MB
_FARTHEST = 1e6  # pixels from the origin that a corner may be
_EDGES = 256  # of a polygon that are looked at together
_MOST_COLOURS = 1024  # of a label image; a photograph has more
_VOC_BORDER = 0xE0E0C0  # the colour of PASCAL VOC's index 255, a frame around objects that is none itself


class Segment(NamedTuple):
    """An outline that is decoded when it is asked for.

    Attributes:
      name: of its category, or its colour.
      mask: makes uint8 (H, W), 1 = inside; raises UserError if it is malformed or marks nothing.
    """

    name: str
    mask: Callable[[], np.ndarray]


class Segmentations(Protocol):
    """Outlines of many images."""

    def of(self, names: Sequence[str], size: Size) -> list[Segment]:
        """Return the outlines of an image, in the order of the file; none if there are none of it.

        Args:
          names: that it may have there, the likeliest first.
          size: (height, width).

        Raises:
          UserError: what is there of the image is damaged, or of another size.
        """
        ...


class Opened(NamedTuple):
    """Segmentations, and what is malformed in them.

    Attributes:
      bad: is told of it.
      total: number of what may be malformed.
    """

    segmentations: Segmentations
    bad: Skipped
    total: int


def open_segmentations(
    coco: Path | None, folder: Path | None, categories: Sequence[str], bad_share: float
) -> Opened | None:
    """Open one of a COCO annotation file and a folder of label images; None without either.

    Raises:
      OSError, UserError: it can't be read; both are given, or categories without `coco`.
    """
    if coco and folder:
        raise UserError("there are both COCO annotations and a folder of label images: give one of them")
    if categories and not coco:
        raise UserError("categories are those of COCO annotations: give --coco, or leave them out")
    if coco:
        bad = Skipped("annotations", str(coco), bad_share)
        annotations = Coco(coco, categories)
        for sentence in annotations.bad:
            bad.add(sentence)
        return Opened(annotations, bad, annotations.total)
    if folder:
        labels = LabelImages(folder)
        return Opened(labels, Skipped("label images", str(folder), bad_share), labels.total)
    return None


# ----------------------------------------------------------------------------------------------------------------- COCO


class Coco:
    """A COCO annotation file: instances with polygons or run lengths. Crowds are left out.

    Attributes:
      bad: one sentence for each entry that is none.
      total: number of entries.
    """

    def __init__(self, file: Path, categories: Sequence[str] = ()):
        """
        Args:
          file: JSON with `images`, `annotations` and `categories`.
          categories: names or numbers; only their instances count. All do if it is empty.

        Raises:
          OSError, UserError: it can't be read, is no such file, or has no such category.
        """
        content = read_json(file, "give COCO annotations", _MAX_BYTES)
        self._file = file
        self.bad: list[str] = []
        for name in ("images", "annotations"):
            if not isinstance(content.get(name), list):
                raise UserError(f"{file} has no list {name}: give COCO annotations of instances")
        self.total = len(content["images"]) + len(content["annotations"])
        self._categories = self._chosen(content.get("categories"), categories)
        self._images, self._numbers = self._read_images(content["images"])
        self._annotations: dict[Any, list[Mapping[str, Any]]] = {}
        for place, annotation in enumerate(content["annotations"]):
            self._read_annotation(place, annotation, bool(categories))

    def _chosen(self, found: Any, categories: Sequence[str]) -> dict[Any, str]:
        """{number: name} of the categories that count."""
        entries = found if isinstance(found, list) else []
        known = {
            entry["id"]: entry["name"]
            for entry in entries
            if isinstance(entry, dict) and _is_id(entry.get("id")) and isinstance(entry.get("name"), str)
        }
        for category in categories:
            if category not in {*known.values(), *map(str, known)}:
                raise UserError(
                    f"{self._file} has no category {shown(category)}: choose among"
                    f" {', '.join(sorted(known.values())[:20]) or 'none'}"
                )
        return {key: name for key, name in known.items() if not categories or {name, str(key)} & {*categories}}

    def _read_images(self, entries: list[Any]) -> tuple[dict[Any, Mapping[str, Any]], dict[str, Any]]:
        """{number: entry}, and {file name, or its last part: number}; a name that two share is none."""
        images: dict[Any, Mapping[str, Any]] = {}
        numbers: dict[str, Any] = {}
        shared: set[str] = set()
        for place, entry in enumerate(entries):
            where = f"{self._file}, images[{place}]"
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.bad.append(f"{where} has no id: give a number")
            elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
                self.bad.append(f"{where}.file_name is {shown(entry.get('file_name'))}: write a path")
            elif entry["id"] in images:
                self.bad.append(f"{where}.id {shown(entry['id'])} is there twice: make ids unique")
            else:
                images[entry["id"]] = entry
                path = PurePosixPath(entry["file_name"])
                for name in {str(path), path.name}:
                    if name in numbers:
                        shared.add(name)
                    numbers[name] = entry["id"]
        return images, {name: number for name, number in numbers.items() if name not in shared}

    def _read_annotation(self, place: int, annotation: Any, chosen: bool) -> None:
        where = f"{self._file}, annotations[{place}]"
        if not isinstance(annotation, dict) or not _is_id(annotation.get("image_id")):
            self.bad.append(f"{where} has no image_id: give the number of an image")
        elif annotation["image_id"] not in self._images:
            self.bad.append(f"{where}.image_id is {shown(annotation['image_id'])}, but there is no such image")
        elif not annotation.get("iscrowd"):
            category = annotation.get("category_id")
            if not chosen or (_is_id(category) and category in self._categories):
                self._annotations.setdefault(annotation["image_id"], []).append({"where": where, **annotation})

    def of(self, names: Sequence[str], size: Size) -> list[Segment]:
        number = next((self._numbers[name] for name in names if name in self._numbers), None)
        if number is None:
            return []
        entry = self._images[number]
        there = entry.get("height"), entry.get("width")
        if None not in there and there != size:
            raise UserError(
                f"{self._file} has {shown(entry['file_name'])} with {shown(there[1])}x{shown(there[0])} pixels, the"
                f" image {size[1]}x{size[0]}: give annotations of these files"
            )
        return [self._segment(annotation, size) for annotation in self._annotations.get(number, ())]

    def _segment(self, annotation: Mapping[str, Any], size: Size) -> Segment:
        category = annotation.get("category_id")
        name = self._categories.get(category) if _is_id(category) else None
        return Segment(name or "object", lambda: _decoded(annotation, size))


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _decoded(annotation: Mapping[str, Any], size: Size) -> np.ndarray:
    """Decode an annotation's polygons or run lengths.

    Raises:
      UserError: they are none, or mark nothing.
    """
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, Mapping):
            mask = run_lengths(segmentation).mask()
            reading.check_sizes(size, mask.shape, ("the image", "segmentation"))
        else:
            mask = _filled(segmentation, size)
    except UserError as error:
        raise UserError(f"{annotation['where']}: {error}") from None
    if not mask.any():
        raise UserError(f"{annotation['where']} marks nothing inside its image: leave it out")
    return mask


def _filled(polygons: Any, size: Size) -> np.ndarray:
    """Fill polygons, lists x0, y0, x1, y1, ...: pixels whose centre is inside one of them."""
    mask = np.zeros(size, np.uint8)
    if not isinstance(polygons, list) or not polygons:
        raise UserError(f"segmentation is {shown(polygons)}: give polygons or run lengths")
    for corners in polygons:
        if not isinstance(corners, list) or len(corners) < 6 or len(corners) % 2 or not all(map(_is_place, corners)):
            raise UserError(f"segmentation holds {shown(corners)}: give x and y of at least three corners")
        mask |= _inside(np.array(corners[0::2], np.float64), np.array(corners[1::2], np.float64), size)
    return mask


def _inside(x: np.ndarray, y: np.ndarray, size: Size) -> np.ndarray:
    """Mark the pixels whose centre is inside a polygon, by the parity of its crossings to their left."""
    height, width = size
    centres = np.arange(height)[:, None] + 0.5  # pixel 0 reaches from 0 to 1
    crossings = np.zeros((height, width + 1), np.int32)
    for first in range(0, len(x), _EDGES):
        ends = np.arange(first, min(first + _EDGES, len(x)))
        x0, y0, x1, y1 = x[ends - 1], y[ends - 1], x[ends], y[ends]
        rows, edges = np.nonzero((y0 <= centres) != (y1 <= centres))
        slope = (x1 - x0)[edges] / (y1 - y0)[edges]
        at = x0[edges] + slope * (rows + 0.5 - y0[edges])
        np.add.at(crossings, (rows, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int32)), 1)
    return (np.cumsum(crossings[:, :width], axis=1) % 2).astype(np.uint8)


def _is_place(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FARTHEST


# --------------------------------------------------------------------------------------------------------- label images


class LabelImages:
    """A folder of PNG files with the images' names: each colour but black is an outline, white as well as a label's.

    The colour of PASCAL VOC's borders is none.

    Attributes:
      total: number of files.
    """

    def __init__(self, folder: Path):
        """
        Raises:
          OSError: it can't be listed.
          UserError: it has no images.
        """
        files = reading.files_in(folder, recursive=True)
        if not files:
            raise UserError(f"{folder} holds no label images: give PNG files with the names of the images")
        self.total = len(files)
        self._files: dict[str, Path | None] = {}
        for file in files:
            stem = file.relative_to(folder).with_suffix("")
            self._files[stem.as_posix()] = file
        for file in files:  # the last part alone, where one file has it
            stem = file.relative_to(folder).with_suffix("")
            if len(stem.parts) > 1:
                self._files[stem.name] = None if stem.name in self._files else file

    def of(self, names: Sequence[str], size: Size) -> list[Segment]:
        stems = (PurePosixPath(name).with_suffix("").as_posix() for name in names if PurePosixPath(name).name)
        file = next((found for stem in stems if (found := self._files.get(stem))), None)
        if file is None:
            return []
        try:
            decoded = decode(file, str(file), profile=False)  # labels are numbers, not colours
        except OSError as error:
            raise UserError(f"{file} can't be opened ({error.strerror}): check it") from None
        if decoded.transparent:
            raise UserError(f"{file} has transparent pixels: give labels on black")
        pixels = np.asarray(decoded.image).astype(np.int32)
        reading.check_sizes(size, pixels.shape[:2], ("the image", str(file)), "label image")
        labels = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        colours = np.unique(labels)
        if len(colours) > _MOST_COLOURS:
            raise UserError(f"{file} has {len(colours)} colours: give one for each object")
        chosen = [int(colour) for colour in colours if colour not in (0, _VOC_BORDER)]
        return [Segment(f"#{colour:06x}", functools.partial(_of_colour, labels, colour)) for colour in chosen]


def _of_colour(labels: np.ndarray, colour: int) -> np.ndarray:
    return (labels == colour).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- preparation


def dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Grow a mask, (H, W) with some ones, by a distance in pixels."""
    if pixels == 0:
        return mask
    left, top, right, bottom = bounding_box(mask)
    rows, columns = slice(max(0, top - pixels), bottom + pixels), slice(max(0, left - pixels), right + pixels)
    grown = np.zeros_like(mask)
    grown[rows, columns] = distance_transform_edt(mask[rows, columns] == 0) <= pixels
    return grown


def usable(
    segments: Sequence[Segment],
    area: tuple[float, float],
    dilate: int,
    bad: Callable[[str], None],
) -> Iterator[np.ndarray]:
    """Yield the masks whose share of the image is in a range, dilated; the others are passed over.

    Args:
      area: of the share, before dilation.
      dilate: pixels.
      bad: is told of malformed ones.
    """
    for segment in segments:
        try:
            mask = segment.mask()
        except UserError as error:
            bad(str(error))
            continue
        if area[0] <= mask.mean() <= area[1] and not (grown := dilated(mask, dilate)).all():
            yield grown
