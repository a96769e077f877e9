"""The judge's image preprocessing in JAX, differentiable: resize, normalise, patchify.

Equals `transformers.Qwen2VLImageProcessorPil`, except that it does not round to whole grey levels.
Shapes: B batch, H × W pixels, N patches.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL

from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.models.fields import Length, Range, Side, from_config, object_of

Grid = tuple[int, int]  # rows and columns of patches

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200

# From this version on, Pillow resizes vertically first if the height shrinks much more than the width.
_PILLOW_ORDERS_BY_SHAPE = int(PIL.__version__.split(".")[0]) >= 13


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """Image preprocessing: the content of `preprocessor_config.json`.

    Attributes:
      patch_size: side of a patch in pixels.
      merge_size: side of a token in patches.
      temporal_patch_size: frames per patch; a still image is repeated.
      min_pixels, max_pixels: images are resized to an area in this range.
      image_mean, image_std: mean and standard deviation of red, green and blue in [0, 1].
    """

    patch_size: Side = 14
    merge_size: Side = 2
    temporal_patch_size: Side = 2
    min_pixels: Annotated[int, Range(1, 2**40)] = 56 * 56
    max_pixels: Annotated[int, Range(1, 2**40)] = 28 * 28 * 1280
    image_mean: Annotated[tuple[Annotated[float, Range(-1e3, 1e3)], ...], Length(3, 3)] = CLIP_MEAN
    image_std: Annotated[tuple[Annotated[float, Range(1e-6, 1e3)], ...], Length(3, 3)] = CLIP_STD

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImageSettings":
        """Parse the content of `preprocessor_config.json`, from older or newer releases.

        Raises:
          UserError: a field has no possible value.
        """
        size = object_of(config, "size")
        smallest = config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or cls.min_pixels
        largest = config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or cls.max_pixels
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        fields = {name: config[name] for name in names if name in config}
        fields |= {"min_pixels": smallest, "max_pixels": largest}
        return from_config(cls, fields, {}, "the configuration of the image processor")

    @classmethod
    def from_file(cls, file: Path) -> "ImageSettings":
        """Read a `preprocessor_config.json`.

        Raises:
          FileNotFoundError: it is missing.
          UserError: it is damaged, or a field has no possible value.
        """
        try:
            return cls.from_config(read_json(file))
        except UserError as error:
            raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None

    def check_fields(self) -> None:
        """Check that the fields fit each other.

        Raises:
          UserError: they don't.
        """
        if self.min_pixels > self.max_pixels:
            raise UserError(
                f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}: use the file of the release"
            )

    def to_config(self) -> dict[str, Any]:
        """Make the content of `preprocessor_config.json` with which transformers opens the processor."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }


# From preprocessor_config.json in the Qwen2.5-VL releases.
OFFICIAL_SETTINGS = ImageSettings(max_pixels=12_845_056)


def patch_period(height: int, width: int, settings: ImageSettings) -> float:
    """Return the side of a patch in pixels of the image itself, the mean of both directions."""
    rows, columns = smart_resize(height, width, settings)
    return settings.patch_size * (height / rows + width / columns) / 2


def smart_resize(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Return the (height, width) to which an image is resized: sides divisible into tokens, area within the limits.

    Raises:
      UserError: the long side is more than 200 times the short side.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"an image of {height} x {width} is too elongated for the judge: crop it to at most {MAX_ASPECT_RATIO} : 1"
        )
    factor = settings.patch_size * settings.merge_size
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def grid_of(height: int, width: int, settings: ImageSettings) -> Grid:
    """Return the rows and columns of patches of an image of this size."""
    new_height, new_width = smart_resize(height, width, settings)
    return new_height // settings.patch_size, new_width // settings.patch_size


@functools.lru_cache(maxsize=64)
def bicubic_weights(size: int, new_size: int) -> np.ndarray:
    """Build PIL's bicubic filter (a = −1/2, widened when shrinking) as a float32 matrix (new_size, size)."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    weights = np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        x = np.abs((np.arange(first, last) + 0.5 - centre) / stretch)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        row = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[i, first:last] = row / row.sum()
    return weights.astype(np.float32)


def _vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    shrinks = new_height < height and height - new_height > 2 * (width - new_width)
    return _PILLOW_ORDERS_BY_SHAPE and shrinks


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Resize as PIL does, antialiased bicubic: one direction at a time, clipped to [0, 1] after each.

    The part of the input outside [0, 1] (a decoder's overshoot) is resized separately and not clipped: clipping
    would leave such pixels without a gradient. For images within [0, 1] this changes nothing.

    Args:
      images: (B, H, W, 3), float.

    Returns:
      (B, height, width, 3), float32; the images unchanged if they have that size.
    """
    images = images.astype(jnp.float32)
    old_height, old_width = images.shape[1:3]
    passes = []
    if old_width != width:
        passes.append(("bhwc,vw->bhvc", bicubic_weights(old_width, width)))
    if old_height != height:
        passes.append(("bhwc,vh->bvwc", bicubic_weights(old_height, height)))
    if not passes:
        return images
    if _vertical_first(old_height, old_width, height, width):
        passes.reverse()
    inside = jnp.clip(images, 0.0, 1.0)
    outside = images - inside
    for subscripts, weights in passes:
        apply = functools.partial(jnp.einsum, subscripts, precision=jax.lax.Precision.HIGHEST)
        inside = jnp.clip(apply(inside, weights), 0.0, 1.0)
        outside = apply(outside, weights)
    return inside + outside


def patchify(images: jax.Array, settings: ImageSettings) -> jax.Array:
    """Split images into patches, in the processor's order.

    Args:
      images: (B, H, W, 3), sides divisible by patch_size · merge_size.

    Returns:
      (B, N, 3 · temporal_patch_size · patch_size²), with the merge_size² patches of a token in sequence.
    """
    batch, height, width, channels = images.shape
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = height // (patch * merge), width // (patch * merge)
    x = images.reshape(batch, rows, merge, patch, columns, merge, patch, channels)
    x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # batch, rows, columns, merge, merge, channels, patch, patch
    x = jnp.repeat(x[..., None, :, :], settings.temporal_patch_size, axis=-3)
    return x.reshape(batch, rows * columns * merge**2, -1)


def preprocess(images: jax.Array, settings: ImageSettings) -> tuple[jax.Array, Grid]:
    """Preprocess images for the judge's vision tower.

    Args:
      images: (B, H, W, 3), float in [0, 1]; values outside are kept.

    Returns:
      patches (B, N, 3 · temporal_patch_size · patch_size²), float32, and their static grid.
    """
    height, width = smart_resize(images.shape[1], images.shape[2], settings)
    images = resize(images, height, width)
    images = (images - jnp.asarray(settings.image_mean)) / jnp.asarray(settings.image_std)
    return patchify(images, settings), (height // settings.patch_size, width // settings.patch_size)
