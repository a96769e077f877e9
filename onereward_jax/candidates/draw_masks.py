"""Draw masks for requests, or take them from segmentations, and say for which task each is.

A request that brings its mask keeps it and its task. What is drawn for another is a function of the seed, of its id and
of the number of the mask, not of the other requests.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from onereward_jax.candidates.prompts import Prompt, Prompts, names_of
from onereward_jax.candidates.segmentations import Opened, usable
from onereward_jax.data import masks
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.requests.record import Request, read_image
from onereward_jax.data.requests.run_lengths import RunLengths
from onereward_jax.data.requests.write import write_requests
from onereward_jax.errors import UserError, shown
from onereward_jax.images.grid import image_grid, mask_overlay, text_cell, write_png
from onereward_jax.images.reading import resize
from onereward_jax.tasks import FIXED_PROMPTS, TASKS

# {kind of mask on the command line: the one in `data.masks`}
DRAWN = {"boxes": "box", "strokes": "strokes", "blobs": "blob"}
BORDERS, SEGMENTS = "borders", "segments"
KINDS = (*DRAWN, BORDERS, SEGMENTS)
_KINDS_OF = {
    "image_fill": (*DRAWN, SEGMENTS),
    "image_extend": (BORDERS,),
    "object_removal": (SEGMENTS,),
    "text_rendering": ("boxes",),
}
_SIDE, _COLUMNS = 192, 6  # of the sheet: pixels, masks of a task


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How masks are drawn.

    Attributes:
      kinds: of `KINDS`.
      tasks: {task: share of the masks}; empty leaves each request the tasks that it has.
      per_image: masks of a request.
      hole: range of the sides of a drawn mask, as shares of the image's.
      area: range of a segment's share of the image.
      dilate: pixels that a segment is grown by.
      seed: of the draws.
    """

    kinds: tuple[str, ...] = KINDS
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_image: int = 1
    hole: tuple[float, float] = (0.2, 0.7)
    area: tuple[float, float] = (0.01, 0.6)
    dilate: int = 0
    seed: int = 0

    def check(self, has_segmentations: bool) -> None:
        """Check that every task can get a mask.

        Raises:
          UserError: one can't.
        """
        for name, (low, high) in (("hole", self.hole), ("area", self.area)):
            if low > high:
                raise UserError(f"min_{name} {low:g} is above max_{name} {high:g}: exchange them")
        if SEGMENTS in self.kinds and not has_segmentations and self.kinds != KINDS:
            raise UserError(f"the kind {SEGMENTS} needs segmentations: give --coco or --segments")
        if self.tasks.get("object_removal") and not has_segmentations:
            raise UserError("object_removal needs segmentations, which say what to remove: give --coco or --segments")
        for task, share in self.tasks.items():
            if share and not {*_KINDS_OF[task]} & {*self.kinds}:
                raise UserError(f"{task} has masks of kind {', '.join(_KINDS_OF[task])}: add one of them to --kinds")


def parse_kinds(text: str) -> tuple[str, ...]:
    """Read "boxes,strokes".

    Raises:
      UserError: a kind is unknown.
    """
    kinds = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"unknown kind of mask {shown(kind)}: choose among {', '.join(KINDS)}")
    return kinds


def parse_tasks(text: str) -> dict[str, float]:
    """Read "image_fill=.5,object_removal=.25": shares, which are made to add up to 1.

    Raises:
      UserError: a task is unknown, or a share is none.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        task, _, number = (word.strip() for word in part.partition("="))
        if task not in TASKS or task in shares:
            raise UserError(f"{shown(part)} is no share of a task: write TASK=SHARE, of {', '.join(TASKS)}, each once")
        try:
            shares[task] = float(number)
        except ValueError:
            shares[task] = -1
        if not 0 <= shares[task] <= 1:  # NaN is neither
            raise UserError(f"the share of {task} is {shown(number)}: write a number from 0 to 1")
    total = sum(shares.values())
    if not total:
        raise UserError("the shares of all tasks are 0: give one of them a share")
    return {task: share / total for task, share in shares.items()}


# ---------------------------------------------------------------------------------------------------------------- masks


class Drawer:
    """Makes requests with masks of requests without.

    Attributes:
      drawn: {(task, kind): number}.
      examples: {task: some of its requests, with their masks}.
    """

    def __init__(self, drawing: Drawing, prompts: Prompts, opened: Opened | None):
        """
        Raises:
          UserError: a task can't get a mask.
        """
        drawing.check(opened is not None)
        self._drawing, self._prompts, self._opened = drawing, prompts, opened
        self.drawn: Counter[tuple[str, str]] = Counter()
        self.examples: dict[str, list[tuple[Request, np.ndarray]]] = {task: [] for task in TASKS}

    def all_of(self, requests: Iterable[Request], skipped: Skipped) -> Iterator[Request]:
        """Yield requests with masks.

        Args:
          skipped: is told of requests that can't have one.

        Raises:
          UserError: too many can't.
        """
        total, ids = 0, set()
        for request in requests:
            total += 1
            try:
                for made in [request] if request.has_mask else self._of(request):
                    if made.id in ids:
                        raise UserError(f"id {shown(made.id)} is there twice: make ids unique")
                    ids.add(made.id)
                    yield made
            except UserError as error:
                skipped.add(f"{request.where}: {error}")
        skipped.end(total)
        if self._opened is not None:
            self._opened.bad.end(self._opened.total)
        if not ids:
            raise UserError("no request can have a mask, see above: correct them")

    def _of(self, request: Request) -> list[Request]:
        height, width = request.size
        segments = self._segments(request)
        segment = next(segments, None)  # that comes next
        found = []
        for number in range(self._drawing.per_image):
            generator = self._generator(request, number)
            name = request.id if self._drawing.per_image == 1 else f"{request.id}/mask-{number + 1}"
            prompts = self._prompts.of(request)
            task = self._task(request, prompts, segment is not None, generator)
            kinds = [kind for kind in _KINDS_OF[task] if kind in self._drawing.kinds]
            if segment is None and SEGMENTS in kinds:
                kinds.remove(SEGMENTS)
            kind = kinds[generator.integers(len(kinds))]
            if kind == SEGMENTS:
                assert segment is not None
                mask, segment = segment, next(segments, None)
            else:
                mask = self._draw(kind, height, width, generator)
            serving = [prompt.text for prompt in prompts if prompt.serves(task)] or [""]
            text = serving[generator.integers(len(serving))]
            made = dataclasses.replace(request, id=name, mask=RunLengths.of(mask), prompt=text, tasks=(task,))
            made.check()
            self._count(made, kind, mask)
            found.append(made)
        return found

    def _generator(self, request: Request, *stream: int) -> np.random.Generator:
        named = repr((self._drawing.seed, request.id, *stream)).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(named).digest()[:16], "big"))

    def _segments(self, request: Request) -> Iterator[np.ndarray]:
        """Yield usable masks of the image's segments in a random order, each once."""
        if self._opened is None or SEGMENTS not in self._drawing.kinds:
            return
        try:
            segments = self._opened.segmentations.of(names_of(request), request.size)
        except UserError as error:
            self._opened.bad.add(str(error))
            return
        order = self._generator(request).permutation(len(segments))
        drawing = self._drawing
        yield from usable([segments[place] for place in order], drawing.area, drawing.dilate, self._opened.bad.add)

    def _task(
        self, request: Request, prompts: Sequence[Prompt], has_segment: bool, generator: np.random.Generator
    ) -> str:
        """Draw a task among those that the request can serve.

        Raises:
          UserError: there is none.
        """
        shares = self._drawing.tasks or dict.fromkeys(request.tasks, 1.0)
        possible = {}
        for task, share in shares.items():
            kinds = {*_KINDS_OF[task]} & {*self._drawing.kinds} - (set() if has_segment else {SEGMENTS})
            has_prompt = task in FIXED_PROMPTS or any(prompt.serves(task) for prompt in prompts)
            if share and kinds and has_prompt:
                possible[task] = share
        if not possible:
            raise UserError(
                f"it serves none of {', '.join(task for task, share in shares.items() if share)}: give it a prompt or a"
                " segmentation, or ask for another task"
            )
        draws = np.array([*possible.values()])
        return [*possible][generator.choice(len(draws), p=draws / draws.sum())]

    def _draw(self, kind: str, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """Draw a mask that leaves something of the image.

        Raises:
          UserError: the image is too small.
        """
        hole = self._drawing.hole
        if min(height, width) < masks.LEAST_SIDE:
            raise UserError(f"the image of {width}x{height} pixels is too small for a mask: leave it out")
        if kind == BORDERS:
            return masks.random_borders(height, width, generator, *hole)
        return masks.random_cover(height, width, generator, *hole, kinds=(DRAWN[kind],))

    def _count(self, request: Request, kind: str, mask: np.ndarray) -> None:
        self.drawn[request.tasks[0], kind] += 1
        if len(examples := self.examples[request.tasks[0]]) < _COLUMNS:
            examples.append((request, mask))

    def sheet(self) -> np.ndarray:
        """Draw some masks of each task, outlined: uint8 (H, W, 3)."""
        rows = [
            [text_cell((task,), _SIDE // 2), *(_outlined(request, mask) for request, mask in examples)]
            for task, examples in self.examples.items()
            if examples
        ]
        return image_grid(rows or [[text_cell(("every request brings its mask",), _SIDE)]])

    def table(self) -> str:
        """Describe what was drawn: the number of masks of each task, and of each kind in it."""
        lines = []
        for task in TASKS:
            kinds = {kind: number for (of_task, kind), number in sorted(self.drawn.items()) if of_task == task}
            if kinds:
                of_kinds = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
                lines.append(f"{task}: {sum(kinds.values())} masks ({of_kinds})")
        return "\n".join(lines)


def draw_masks(
    requests: Sequence[Request], out: Path, drawer: Drawer, skipped: Skipped, sheet: Path | None = None
) -> None:
    """Write requests with masks; see `Drawer.all_of`.

    Args:
      out: directory, see `atomic_files.check_output`.
      sheet: PNG file, see `Drawer.sheet`.
    """
    write_requests(out, drawer.all_of(requests, skipped), "folder")
    if sheet is not None:
        write_png(sheet, drawer.sheet())


def _outlined(request: Request, mask: np.ndarray) -> np.ndarray:
    scale = _SIDE / max(mask.shape)
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    shares = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return mask_overlay(resize(read_image(request.image), height, width), np.asarray(shares) > 0)
