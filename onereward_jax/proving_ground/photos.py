"""Photographs behind the scenes: their files, credits and splits.

They come with the scikit-image and scikit-learn packages (nothing is downloaded), or from the user's folder. The split
is by photograph, so that no test scene shows a place seen in training; `motorcycle_right` is left out because it shows
the same place as `motorcycle_left`.
"""

import dataclasses
import functools
import importlib.util
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from onereward_jax.images.reading import files_in, read_image

SPLITS = ("train", "test")
# Shorter side of the downscaled copies, in units of the crop's side: from the whole view to fine texture.
SCALES = (1.15, 1.6, 2.3, 3.2)
_UNKNOWN = "no known copyright restrictions"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph on disk.

    Attributes:
      name: file name without extension.
      path: the file.
      split: "train" or "test".
      credit: maker and licence, as the package that ships it states them.
    """

    name: str
    path: Path
    split: str
    credit: str


# (package, path inside it, split, credit)
_BUNDLED = (
    ("skimage", "data/astronaut.png", "train", "Eileen Collins, NASA Great Images database, public domain"),
    ("skimage", "data/brick.png", "train", "CC0Textures Bricks25, CC0"),
    ("skimage", "data/camera.png", "train", "Lav Varshney, CC0"),
    ("sklearn", "datasets/images/china.jpg", "train", "danielbuechele (Flickr), CC BY 2.0 as scikit-learn states"),
    ("skimage", "data/coins.png", "train", f"coins of Pompeii, Brooklyn Museum Collection, {_UNKNOWN}"),
    ("sklearn", "datasets/images/flower.jpg", "train", "Flickr page of vultilion, CC BY 2.0 as scikit-learn states"),
    ("skimage", "data/grass.png", "train", "linolafett (DeviantArt), CC0"),
    ("skimage", "data/ihc.png", "train", f"Center for Microscopy and Molecular Imaging (CMMI), {_UNKNOWN}"),
    ("skimage", "data/moon.png", "train", f"surface of the moon, scikit-image, {_UNKNOWN}"),
    (
        "skimage",
        "data/motorcycle_left.png",
        "train",
        "Scharstein et al., Middlebury 2014 stereo benchmark, shipped by scikit-image, licence not stated",
    ),
    ("skimage", "data/retina.jpg", "train", "Mikael Häggström, Wikimedia Commons, CC0"),
    ("skimage", "data/chelsea.png", "test", "Stéfan van der Walt, CC0"),
    ("skimage", "data/coffee.png", "test", "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0"),
    ("skimage", "data/gravel.png", "test", "CC0Textures Gravel04, CC0"),
    ("skimage", "data/rocket.jpg", "test", "SpaceX, released into the public domain"),
)


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the proving ground needs the photographs of {package!r}: install that package")
    return Path(spec.origin).parent


@functools.cache
def bundled() -> tuple[Photo, ...]:
    """Return the photographs inside scikit-image and scikit-learn.

    Raises:
      FileNotFoundError: a package or one of its photographs is missing.
    """
    photos = []
    for package, inner, split, credit in _BUNDLED:
        path = _package_folder(package) / inner
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: install a release of {package!r} that ships {inner}")
        photos.append(Photo(path.stem, path, split, credit))
    return tuple(photos)


@functools.cache
def in_folder(folder: Path) -> tuple[Photo, ...]:
    """Return the photographs in a user's folder; a quarter, chosen by a hash of the name, is the test split.

    Raises:
      FileNotFoundError: the folder is missing or holds fewer than two images.
    """
    paths = files_in(folder) if folder.is_dir() else []
    if len(paths) < 2:
        raise FileNotFoundError(f"{folder} holds {len(paths)} images: name a folder with at least two")
    by_hash = sorted(paths, key=lambda path: (zlib.crc32(path.name.encode()), path.name))
    test = set(by_hash[: max(1, len(paths) // 4)])
    return tuple(Photo(p.stem, p, "test" if p in test else "train", "the user's own") for p in paths)


def find(folder: str | Path | None = None) -> tuple[Photo, ...]:
    """Return the photographs in a folder, or the bundled ones."""
    return bundled() if folder is None else in_folder(Path(folder))


@functools.lru_cache(maxsize=512)
def pyramid(photo: Photo, resolution: int) -> tuple[tuple[np.ndarray, ...], bool]:
    """Downscale a photograph to several sizes; decoded once per process.

    Returns:
      uint8 (h, w, 3) arrays whose shorter side is `resolution` times one of `SCALES` (at most that of the photograph,
      at least `resolution`), and whether the photograph is grey.

    Raises:
      FileNotFoundError, PermissionError, UserError: see `read_image`.
    """
    # Scenes are made of the numbers in the file, whatever their colour profile, as they have always been.
    rgb = Image.fromarray(read_image(photo.path, profile=False))
    shorter = min(rgb.size)
    sides = sorted({max(resolution, min(shorter, round(scale * resolution))) for scale in SCALES})
    levels = []
    for side in sides:
        width, height = (max(side, round(extent * side / shorter)) for extent in rgb.size)
        levels.append(
            np.asarray(
                rgb.resize((width, height), Image.Resampling.BOX if side < shorter else Image.Resampling.BICUBIC)
            )
        )
    small = levels[0].astype(np.int16)
    grey = bool(np.abs(small - small.mean(axis=-1, keepdims=True)).max() < 3)
    return tuple(levels), grey
