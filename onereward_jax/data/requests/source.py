"""Requests as samples: aspect buckets, masks drawn where there are none, crops."""

import dataclasses
import functools
import hashlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from onereward_jax import buckets
from onereward_jax.config.schema import Finetuning, Recipe, RequestData, RewardFeedback
from onereward_jax.data import masks
from onereward_jax.data.buckets import BucketDraw, Size, aspect_distance, bucket_sizes, common_shapes
from onereward_jax.data.requests.layouts import METADATA, Defaults
from onereward_jax.data.requests.read import check_there, fingerprint_of, prompts_of, read_requests
from onereward_jax.data.requests.record import ANY_TASK, Picture, Request, read_image, read_mask
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Outline, Source
from onereward_jax.errors import UserError
from onereward_jax.images import reading
from onereward_jax.parallel import hosts
from onereward_jax.tasks import TASKS

_CACHED = 256  # resized images
_TARGETS = 2  # the stream of random numbers of what flow matching learns


class Requests(Source):
    """An endless source: requests randomly cropped to the batch sizes, with their own masks or drawn ones.

    Attributes:
      requests: the requests.
      sizes: the batch sizes, (height, width).
      weights: {task: weight} of the tasks that some request has.
      seed: of the run.
      hole: range of the share of the image's sides that a drawn mask covers, see `data.masks`.
    """

    def __init__(self, config: Recipe, requests: Sequence[Request]):
        """
        Args:
          config: its `seed`, `train.batch_size` and `data`: `task_weights`, `resolution`, `bucket_step`, `max_aspect`,
            `min_hole` and `max_hole`. Fine-tuning declares images to be the targets where there is no other.
          requests: at least one. Images of rare sizes use the nearest common one.

        Raises:
          UserError: the tasks of the requests all have weight 0.
        """
        data = config.data
        assert isinstance(data, RequestData)
        self.requests = tuple(requests)
        there = {task for request in requests for task in request.tasks}
        self.weights = {task: weight for task, weight in data.task_weights.items() if weight and task in there}
        if not self.weights:
            raise UserError(
                f"the requests are for {', '.join(sorted(there))}, whose data.task_weights are 0: raise one"
            )
        self.tasks = tuple(self.weights)
        self.prompts = prompts_of(requests)
        sizes = bucket_sizes(data.resolution, data.bucket_step, data.max_aspect)
        nearest = [_nearest(request.size, sizes) for request in requests]
        self.sizes = tuple(sorted(set(common_shapes(nearest, config.train.batch_size, aspect_distance).values())))
        self.negative_prompts = tuple(dict.fromkeys(request.negative_prompt for request in requests))
        self.seed, self.hole, self._batch_size = config.seed, (data.min_hole, data.max_hole), config.train.batch_size
        self._image_is_target = isinstance(config, Finetuning)
        if not self._image_is_target:
            self.target_share = sum(request.target is not None for request in requests) / len(requests)
        items = [(self.size_of(r), task, r) for r in requests for task in r.tasks if task in self.tasks]
        self._drawn: BucketDraw[Size, Request] = BucketDraw(items, config.train.batch_size, self.weights)

    @property
    def drawn_sizes(self) -> tuple[Size, ...]:
        """Sizes that samples of weighted tasks have, in the order of the requests."""
        return self._drawn.shapes

    def size_of(self, request: Request) -> Size:
        """Return the size to which a request is cropped."""
        return _nearest(request.size, self.sizes)

    def size_at(self, index: int) -> Size:
        """Return the size of the batch that contains sample `index` of the run."""
        return self._drawn.shape(self.seed, index)

    def sample(self, index: int, task: str) -> Sample:
        """Make sample `index` of the run; all in a batch have one size. With several sizes, the task is drawn anew."""
        generator = np.random.default_rng((self.seed, index))
        _, task, request = self._drawn.draw(generator, self.seed, index, task)
        return self._cut(request, task, generator)

    def fixed_sample(self, request: Request, *stream: int, task: str | None = None) -> Sample:
        """Make a sample that is the same in every run: `request` and `stream` determine its task, crop and mask.

        Args:
          request: from this source or not, such as a held-out one.
          task: one of the request's, to be no drawn one.
        """
        generator = np.random.default_rng((self.seed, zlib.crc32(request.group.encode()), *stream))
        if task is None:
            tasks = [task for task in request.tasks if task in self.tasks] or request.tasks
            task = tasks[generator.integers(len(tasks))]
        return self._cut(request, task, generator)

    def fingerprint(self) -> dict[str, Any]:
        shapes = [list(size) for size in self.sizes]
        cut = {"sizes": shapes, "hole": self.hole, "batch_size": self._batch_size, "weights": self.weights}
        return {"requests": fingerprint_of(self.requests), "cut": cut}

    def _cut(self, request: Request, task: str, generator: np.random.Generator) -> Sample:
        sample = draw_sample(request, self.size_of(request), task, generator, self.hole)
        if sample.target is None and self._image_is_target:
            sample = dataclasses.replace(sample, target=sample.image)
        return sample


class Targets:
    """Images to learn by flow matching beside requests without targets, in batches of the requests' sizes.

    Attributes:
      prompts: every prompt that a sample may have.
    """

    def __init__(self, beside: Requests, requests: Sequence[Request]):
        """
        Args:
          beside: what the policy is trained on.
          requests: at least one; the target of one that names none is its image.
        """
        self.prompts, self._beside = prompts_of(requests), beside
        self._of_size: dict[Size, list[Request]] = {size: [] for size in beside.sizes}
        for request in requests:
            self._of_size[beside.size_of(request)].append(request)
        self._all = list(requests)

    def sample(self, index: int) -> Sample:
        """Make the sample that is learned beside sample `index` of the run."""
        size = self._beside.size_at(index)
        generator = np.random.default_rng((self._beside.seed, index, _TARGETS))
        requests = self._of_size[size] or self._all  # of another aspect, where none has this one
        request = requests[generator.integers(len(requests))]
        task = request.tasks[generator.integers(len(request.tasks))]
        sample = draw_sample(request, size, task, generator, self._beside.hole)
        return sample if sample.target is not None else dataclasses.replace(sample, target=sample.image)


class HeldOut(Source):
    """Requests that a policy is measured on: each is the same sample in every run.

    The first ones of a task are a random choice, mostly the same when the source grows.
    """

    def __init__(self, trained_on: Requests, requests: Sequence[Request]):
        """
        Args:
          trained_on: what the policy is trained on: its sizes are used, for which programs are compiled anyway.
          requests: at least one.
        """
        self._source, self.requests = trained_on, tuple(requests)
        shuffled = sorted(requests, key=lambda request: hashlib.sha256(request.id.encode()).digest())
        of_task = {task: [request for request in shuffled if task in request.tasks] for task in trained_on.tasks}
        self._requests = {task: members for task, members in of_task.items() if members}
        if not self._requests:
            raise UserError(f"no held-out request is for {', '.join(trained_on.tasks)}: hold others out")
        self.tasks, self.sizes = tuple(self._requests), trained_on.sizes
        self.prompts = prompts_of(requests)
        self.negative_prompts = tuple(dict.fromkeys(request.negative_prompt for request in requests))
        self.target_share = sum(request.target is not None for request in requests) / len(requests)

    def sample(self, index: int, task: str) -> Sample:
        return self._source.fixed_sample(self._requests[task][index], task=task)

    def outline(self, index: int, task: str) -> Outline:
        request = self._requests[task][index]
        return Outline(request.id, request.text(task), self._source.size_of(request))

    def fingerprint(self) -> dict[str, Any]:
        return self._source.fingerprint() | {"held_out": {k: fingerprint_of(v) for k, v in self._requests.items()}}

    def __len__(self) -> int:
        return max(map(len, self._requests.values()))

    def count(self, task: str) -> int:
        return len(self._requests.get(task, ()))


def _nearest(size: Size, sizes: Sequence[Size]) -> Size:
    return min(sizes, key=lambda other: aspect_distance(size, other))


def draw_sample(
    request: Request, size: Size, task: str, generator: np.random.Generator, hole: tuple[float, float]
) -> Sample:
    """Resize and randomly crop a request to `size`, with its own mask or a drawn one.

    Args:
      hole: range of the share of the image's sides that a drawn mask covers, see `data.masks`.
    """
    image = _covering(request.image, request.extend, size)
    slack = np.subtract(image.shape[:2], size)
    if not request.has_mask:
        top, left = (int(generator.integers(room + 1)) for room in slack)
        draw = masks.random_borders if task == "image_extend" else masks.random_cover
        mask = draw(*size, generator, *hole)
    else:
        full_mask = _covering_mask(request.mask, request.image, request.extend, size)
        rows, columns = np.nonzero(full_mask)
        pixel = generator.integers(len(rows))  # of the mask, so that the crop contains some of it
        top, left = (
            int(np.clip(at[pixel] - side // 2, 0, room))
            for at, side, room in zip((rows, columns), size, slack, strict=True)
        )
        mask = full_mask[top : top + size[0], left : left + size[1]]
    cut = lambda whole: whole[top : top + size[0], left : left + size[1]]
    return Sample(
        cut(image),
        mask,
        request.text(task),
        task,
        request.id,
        target=None if request.target is None else cut(_covering(request.target, None, size)),
        negative_prompt=request.negative_prompt,
    )


def _covering_size(source: Size, size: Size) -> Size:
    """Scale `source` to the smallest size that covers `size`."""
    scale = max(size[0] / source[0], size[1] / source[1])
    return max(size[0], round(source[0] * scale)), max(size[1], round(source[1] * scale))


@functools.lru_cache(maxsize=_CACHED)
def _covering(picture: Picture, extend: str | None, size: Size) -> np.ndarray:
    image = read_image(picture) if extend is None else _extended(picture, extend)[0]
    height, width = _covering_size(image.shape[:2], size)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


@functools.lru_cache(maxsize=_CACHED)
def _covering_mask(mask: Picture | RunLengths | None, image: Picture, extend: str | None, size: Size) -> np.ndarray:
    """Resize a mask; every pixel that overlaps it is generated, so that nothing under it stays visible."""
    found = read_mask(mask) if mask is not None else _extended(image, extend or "")[1]
    height, width = _covering_size(found.shape, size)
    shares = Image.fromarray(found.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(shares) > 0).astype(np.uint8)


def _extended(image: Picture, extend: str) -> tuple[np.ndarray, np.ndarray]:
    return reading.extend(read_image(image), reading.parse_sides(extend))


class Split(NamedTuple):
    """Requests that are trained on, and others that are held out."""

    trained_on: list[Request]
    held_out: list[Request]


def check_sources(config: Recipe) -> None:
    """Check that there is something where the configuration says that requests are.

    Raises:
      FileNotFoundError: there is not.
      UserError: a bucket can't be read.
    """
    data = config.data
    assert isinstance(data, RequestData)
    for path in (data.source, data.held_out, getattr(data, "targets", "")):
        if path:
            check_there(buckets.reading(path))


def read_targets(config: RewardFeedback, workdir: Path | None = None) -> list[Request]:
    """Read `config.data.targets`, whose images are right answers under any mask: see `read_requests`."""
    return _read(config.data, config.data.targets, TASKS, workdir)


def _read(data: RequestData, path: str, drawn: tuple[str, ...], workdir: Path | None) -> list[Request]:
    defaults = Defaults(prompt=data.caption)
    found = read_requests(buckets.reading(path), defaults, data.bad_share, data.inside_only, drawn, workdir)
    if hosts.is_primary() and all(map(_is_bare, found)):
        print(
            f"no image in {path} has a prompt, so all are for image_extend: for other tasks write NAME.txt beside each,"
            f" or {METADATA}, or one for all in data.caption",
            file=sys.stderr,
        )
    return found


def _is_bare(request: Request) -> bool:
    """Whether it is an image alone."""
    return request.tasks == ("image_extend",) and not request.prompt and not request.has_mask


def read_split(config: Recipe, workdir: Path | None = None) -> Split:
    """Read the configured requests: `config.data.source`, and `held_out` or a share of the former.

    Args:
      workdir: see `read_requests`.

    Raises:
      FileNotFoundError, UserError: see `read_requests`.
    """
    data = config.data
    assert isinstance(data, RequestData)

    # A fine-tuned model is shown what was there: under any mask, that is the right answer of any task.
    drawn = TASKS if isinstance(config, Finetuning) else ANY_TASK
    requests = _read(data, data.source, drawn, workdir)
    if not data.held_out:
        return hold_out(requests, data.held_out_share, config.seed)
    return Split(requests, _read(data, data.held_out, drawn, workdir))


def hold_out(requests: Sequence[Request], share: float, seed: int) -> Split:
    """Split requests; both parts have at least one image if a share is held out.

    The split is mostly the same when the source grows.
    """

    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    names = sorted({request.group for request in requests}, key=digest)  # an image may occur with several masks
    held_out = set(names[: min(max(1, round(share * len(names))), len(names) - 1) if share else 0])
    return Split(
        [request for request in requests if request.group not in held_out],
        [request for request in requests if request.group in held_out],
    )
