"""What a source of requests holds, as a table and as images."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import Requests
from onereward_jax.images.grid import image_grid, mask_overlay
from onereward_jax.tasks import TASKS

_SIDE = 192  # pixels of a longer side in the contact sheet


def table(source: Requests) -> str:
    """Describe requests in lines: per task, their number, masks, targets and words; then sizes and buckets."""
    rows: list[tuple[str, ...]] = [("", "requests", "own masks", "targets", "negative prompts", "words of a prompt")]
    for task in TASKS:
        if members := [request for request in source.requests if task in request.tasks]:
            rows.append((task, *_counts(members)))
    rows.append(("all", *_counts(source.requests)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    pixels = sorted(request.size[0] * request.size[1] for request in source.requests)
    lines += ["", f"megapixels: {_range([number / 1e6 for number in pixels])}"]
    buckets = Counter(source.size_of(request) for request in source.requests)
    lines += [f"{width}x{height} pixels: {count} requests" for (height, width), count in buckets.most_common()]
    return "\n".join(lines)


def _counts(requests: Sequence[Request]) -> tuple[str, ...]:
    words = sorted(len(request.prompt.split()) for request in requests)
    numbers = (
        len(requests),
        sum(request.has_mask for request in requests),
        sum(request.target is not None for request in requests),
        len({request.negative_prompt for request in requests}),
    )
    return (*map(str, numbers), _range(words))


def _range(values: Sequence[float]) -> str:
    """Least, median and greatest of sorted values."""
    return " to ".join(f"{values[place]:.3g}" for place in (0, len(values) // 2, -1))


def contact_sheet(source: Requests, per_task: int = 4) -> np.ndarray:
    """Draw requests as the policy gets them: image with its mask, and target; uint8 (H, W, 3)."""
    rows = []
    for task in source.tasks:
        for request in [request for request in source.requests if task in request.tasks][:per_task]:
            sample = source.fixed_sample(request, task=task)
            target = [] if sample.target is None else [sample.target]
            rows.append([_small(image) for image in (sample.image, mask_overlay(sample.image, sample.mask), *target)])
    return image_grid(rows, ("image", "mask", "target"))


def _small(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
