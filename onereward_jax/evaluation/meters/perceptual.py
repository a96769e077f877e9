"""LPIPS, the distance of two images in the features of a network (Zhang et al. 2018), where its weights are given."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.atomic_files import fingerprint
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.evaluation.meters.meter import Measured, Meter
from onereward_jax.tasks import TASKS
from onereward_jax.weights.load import mismatches
from onereward_jax.weights.safetensors import read_header

# AlexNet's convolutions, as the package `lpips` names and sizes them: (name, out, in, side, stride, padding, whether a
# maximum over 3 x 3 pixels, every second, comes before it).
_LAYERS = (
    ("net.slice1.0", 64, 3, 11, 4, 2, False),
    ("net.slice2.3", 192, 64, 5, 1, 2, True),
    ("net.slice3.6", 384, 192, 3, 1, 1, True),
    ("net.slice4.8", 256, 384, 3, 1, 1, False),
    ("net.slice5.10", 256, 256, 3, 1, 1, False),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
_MIN_SIDE = 32  # pixels: of smaller images the last features would have no size


def shapes() -> dict[str, tuple[int, ...]]:
    """{tensor's name: shape} of the weights, as `lpips.LPIPS(net="alex").state_dict()` has them."""
    found: dict[str, tuple[int, ...]] = {}
    for number, (name, features, channels, side, *_) in enumerate(_LAYERS):
        found |= {f"{name}.weight": (features, channels, side, side), f"{name}.bias": (features,)}
        found[f"lin{number}.model.1.weight"] = (1, features, 1, 1)
    return found


def distance(weights: Mapping[str, jax.Array], first: jax.Array, second: jax.Array) -> jax.Array:
    """Compute LPIPS with AlexNet's features, equal to the package `lpips` (version 0.1).

    Args:
      weights: {name: array}, see `shapes`.
      first, second: (B, H, W, 3) in [0, 1].

    Returns:
      float32 (B,).
    """
    total = jnp.zeros(len(first))
    for number, (a, b) in enumerate(zip(_features(weights, first), _features(weights, second), strict=True)):
        a, b = (x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (a, b))
        of_channels = weights[f"lin{number}.model.1.weight"].reshape(-1)
        total += (jnp.square(a - b) @ of_channels).mean(axis=(1, 2))
    return total


def _features(weights: Mapping[str, jax.Array], images: jax.Array) -> list[jax.Array]:
    x = (2 * images - 1 - jnp.array(_SHIFT)) / jnp.array(_SCALE)
    found = []
    for name, _, _, _, stride, padding, pooled in _LAYERS:
        if pooled:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x,
            weights[f"{name}.weight"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision="highest",
        )
        x = jax.nn.relu(x + weights[f"{name}.bias"])
        found.append(x)
    return found


def perceptual(path: str) -> Meter:
    """Make the meter of LPIPS.

    "lpips_outside" sees the request's own pixels inside the mask; "lpips_target" compares with the right answer.

    Args:
      path: a .safetensors file with the tensors of `lpips.LPIPS(net="alex").state_dict()`; others in it are ignored.

    Raises:
      FileNotFoundError, UserError: it is missing, or has other tensors.
    """
    file = Path(path)
    header, expected = read_header(file), shapes()
    tensors = {name: tensor for name, tensor in header.items() if name in expected}
    if problems := mismatches(tensors, expected):
        raise UserError(f"{file} does not hold the weights of LPIPS with AlexNet: {'; '.join(problems)}")
    weights = {name: jnp.asarray(tensor.read(), jnp.float32) for name, tensor in tensors.items()}
    compute = jax.jit(distance)

    def between(first: np.ndarray, second: np.ndarray) -> float:
        return float(compute(weights, *(jnp.asarray(x, jnp.float32)[None] / 255 for x in (first, second)))[0])

    def of_image(sample: Sample, image: np.ndarray) -> dict[str, float]:
        if min(image.shape[:2]) < _MIN_SIDE:
            return {}
        untouched = np.where(sample.mask[..., None] == 0, image, sample.image)
        found = {"lpips_outside": between(sample.image, untouched)} if (sample.mask == 0).any() else {}
        return found if sample.target is None else found | {"lpips_target": between(sample.target, image)}

    def measure(samples: Sequence[Sample], images: Sequence[np.ndarray]) -> Measured:
        return list(itertools.starmap(of_image, zip(samples, images, strict=True)))

    return Meter(
        name="perceptual",
        tasks=TASKS,
        measure=measure,
        about={"version": 1, "weights": fingerprint(file)},
        values={
            "lpips_outside": ("LPIPS outside the mask", False),
            "lpips_target": ("LPIPS with the right answer", False),
        },
    )
