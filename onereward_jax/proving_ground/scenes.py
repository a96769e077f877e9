"""Scenes with a known right answer: a request, a target that answers it, and the ground truth behind both.

A scene is a crop of a photograph plus, for most tasks, one drawn object or word. It depends only on (seed, split, task,
index), and all lengths scale with the resolution (numbers below are for 64 pixels).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax import tasks
from onereward_jax.data import masks
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import GroundTruth, Source
from onereward_jax.errors import UserError
from onereward_jax.proving_ground import defects, drawing
from onereward_jax.proving_ground import photos as photo_store
from onereward_jax.proving_ground.scene_spec import (
    PALETTE_CHROMA,
    Scene,
    Spec,
    all_prompts,
    chroma,
    draw,
    shape_prompt,
    word_prompt,
)
from onereward_jax.proving_ground.scoring_processes import score_all

REFERENCE_RESOLUTION = 64
# Two colours count as the same if their chroma (see `chroma`) is this close.
_SAME_CHROMA = 0.34
_MOST_CONFUSABLE = 0.03  # largest share of a crop in the object's colour


class ProvingGround(Source):
    """An endless source of scenes, and their ground truth.

    Args:
      split: "train" or "test"; the photographs of the two are disjoint.
      resolution: side of the square images in pixels.
      seed: chooses the scenes.
      photos: folder of the user's own photographs; by default the bundled ones.
      target_flaws: probability that a target carries a synthetic defect (see `defects`), as in web data. Request and
        ground truth are those of the scene without.

    Raises:
      UserError: unknown split, or a resolution below 32.
      FileNotFoundError: no photographs.
    """

    tasks = tasks.TASKS
    prompts = tuple(all_prompts())

    def __init__(
        self,
        split: str = "train",
        resolution: int = 64,
        seed: int = 0,
        photos: str | Path | None = None,
        target_flaws: float = 0.0,
    ) -> None:
        if split not in photo_store.SPLITS:
            raise UserError(f"unknown split {split!r}: choose one of {', '.join(photo_store.SPLITS)}")
        if resolution < 32:
            raise UserError(f"resolution {resolution} is too small to draw in: use 32 or more")
        self.split = split
        self.resolution = resolution
        self.seed = seed
        self.photos = tuple(photo for photo in photo_store.find(photos) if photo.split == split)
        self.target_flaws = target_flaws
        self.sizes = ((resolution, resolution),)
        self.ground_truth: GroundTruth | None = self
        self.credits = tuple(f"{photo.name}: {photo.credit}" for photo in self.photos)
        self._unit = resolution / REFERENCE_RESOLUTION

    def sample(self, index: int, task: str) -> Sample:
        """The request of a scene, with its target."""
        scene = self.scene(index, task)
        return dataclasses.replace(scene.sample, target=scene.target)

    def fingerprint(self) -> dict[str, Any]:
        return {"photos": [(photo.name, photo.path.stat().st_size) for photo in self.photos]}

    def score_images(
        self, samples: Sequence[Sample], images: Iterable[Iterable[np.ndarray]]
    ) -> list[list[dict[str, float]]]:
        """Score images against the hidden truth of their scenes, see `data.source.GroundTruth`."""
        return score_all([self.scene_of(sample) for sample in samples], images)

    def scene_of(self, sample: Sample) -> Scene:
        """The scene of which this is the sample.

        Raises:
          UserError: it is of another source.
        """
        own, _, index = sample.id.rpartition("/")
        if own != f"{self.split}/{self.seed}/{sample.task}":
            raise UserError(f"sample {sample.id!r} is none of this proving ground's")
        return self.scene(int(index), sample.task)

    def scene(self, index: int, task: str) -> Scene:
        """Make scene number `index` of a task.

        Args:
          index: any non-negative integer.
          task: one of `tasks.TASKS`.

        Raises:
          UserError: the task is unknown.
        """
        if task not in tasks.TASKS:
            raise UserError(f"unknown task {task!r}: choose one of {', '.join(tasks.TASKS)}")
        seeds = (self.seed, photo_store.SPLITS.index(self.split), tasks.TASKS.index(task), index)
        generator = np.random.default_rng(seeds)
        identity = f"{self.split}/{self.seed}/{task}/{index}"
        scene = getattr(self, f"_{task}")(generator, identity)
        if self.target_flaws > 0:
            generator = np.random.default_rng((*seeds, 1))
            if generator.random() < self.target_flaws:
                scene = defects.flawed(scene, generator)
        return scene

    # ---------------------------------------------------------------- the four tasks

    def _image_fill(self, generator: np.random.Generator, identity: str) -> Scene:
        name, background = self._crop(generator)
        mask, (x, y) = self._hole(generator)
        jitter = self._unit * generator.uniform(-1, 1, 2)
        shape, size = self._pick(generator, drawing.SHAPES), self._pick(generator, drawing.SIZES)
        spec = self._object(generator, name, background, shape, size, (x + jitter[0], y + jitter[1]))
        spec = dataclasses.replace(spec, names_size=True)
        prompt = shape_prompt(spec.colour, shape, size)
        sample = Sample(background, mask, prompt, "image_fill", identity)
        return Scene(sample, draw(spec), spec)

    def _image_extend(self, generator: np.random.Generator, identity: str) -> Scene:
        name, background = self._crop(generator)
        unit, side_length = self._unit, self.resolution
        prompted = generator.random() < 0.5
        sides = generator.permutation(masks.SIDES)[: generator.choice([1, 2, 3, 4], p=[0.45, 0.3, 0.15, 0.1])].tolist()
        widest = 20 if len(sides) <= 2 else 14
        widths = {side: round(unit * generator.uniform(9, widest)) for side in sides}
        if not prompted:
            mask = masks.borders(side_length, side_length, widths)
            sample = Sample(background, mask, tasks.EXTEND_PROMPT, "image_extend", identity)
            return Scene(sample, background, self._nothing(name, background))
        side = sides[0]
        widths[side] = round(unit * generator.uniform(18.5, 23))
        mask = masks.borders(side_length, side_length, widths)
        across, along = widths[side] / 2, side_length / 2 + unit * generator.uniform(-5, 5)
        far = side_length - across
        centre = {"left": (across, along), "right": (far, along), "top": (along, across), "bottom": (along, far)}[side]
        shape = self._pick(generator, drawing.SHAPES)
        spec = self._object(generator, name, background, shape, "small", centre)
        spec = dataclasses.replace(spec, side=side)
        sample = Sample(background, mask, shape_prompt(spec.colour, shape, side=side), "image_extend", identity)
        return Scene(sample, draw(spec), spec)

    def _object_removal(self, generator: np.random.Generator, identity: str) -> Scene:
        name, background = self._crop(generator)
        mask, (x, y) = self._hole(generator)
        shape, size = self._pick(generator, drawing.SHAPES), self._pick(generator, drawing.SIZES)
        jitter = self._unit * generator.uniform(-1, 1, 2)
        spec = self._object(
            generator, name, background, shape, size, (x + jitter[0], y + jitter[1]), generator.uniform(-0.6, 0.6)
        )
        sample = Sample(draw(spec), mask, tasks.REMOVAL_PROMPT, "object_removal", identity)
        return Scene(sample, background, spec)

    def _text_rendering(self, generator: np.random.Generator, identity: str) -> Scene:
        name, background = self._crop(generator)
        unit, side_length = self._unit, self.resolution
        word = self._pick(generator, drawing.WORDS)
        letter_height = 12.0 * unit
        width, height = drawing.word_size(len(word), letter_height)
        half_width = width / 2 + unit * generator.uniform(3, 5)
        half_height = height / 2 + unit * generator.uniform(3, 6)
        x = generator.uniform(half_width + unit, side_length - half_width - unit)
        y = generator.uniform(half_height + unit, side_length - half_height - unit)
        mask = masks.box(side_length, side_length, (x - half_width, y - half_height, x + half_width, y + half_height))
        x, y = _centre(mask)
        jitter = unit * generator.uniform(-0.5, 0.5, 2)
        centre = (x + jitter[0], y + jitter[1])
        colour = self._colour(generator, background)
        alpha = drawing.word_alpha(word, letter_height, centre, side_length, side_length)
        names_colour = bool(generator.random() < 0.5)
        spec = Spec(
            name, background, alpha, colour=colour, word=word, radius=letter_height, centre=centre,
            names_colour=names_colour,
        )  # fmt: skip
        prompt = word_prompt(word, colour if names_colour else "")
        return Scene(Sample(background, mask, prompt, "text_rendering", identity), draw(spec), spec)

    # ---------------------------------------------------------------- their parts

    @staticmethod
    def _pick(generator: np.random.Generator, choices) -> str:
        return tuple(choices)[generator.integers(len(choices))]

    def _crop(self, generator: np.random.Generator) -> tuple[str, np.ndarray]:
        """Cut a square out of a random photograph, with random mirroring and tone: name and uint8 (S, S, 3)."""
        photo = self.photos[generator.integers(len(self.photos))]
        levels, grey = photo_store.pyramid(photo, self.resolution)
        side = self.resolution
        for _ in range(6):
            level = levels[generator.integers(len(levels))]
            top = generator.integers(level.shape[0] - side + 1)
            left = generator.integers(level.shape[1] - side + 1)
            crop = level[top : top + side, left : left + side]
            if crop[::4, ::4].std() > 9:  # not a featureless patch
                break
        if generator.random() < 0.5:
            crop = crop[:, ::-1]
        return photo.name, _develop(crop, grey, generator)

    def _hole(self, generator: np.random.Generator) -> tuple[np.ndarray, tuple[float, float]]:
        """Draw a covering mask that does not reveal the size of its object; return it and its bounding box's centre."""
        unit, side = self._unit, self.resolution
        half_width, half_height = unit * generator.uniform(16.5, 20.5, 2)
        x = generator.uniform(half_width + unit, side - half_width - unit)
        y = generator.uniform(half_height + unit, side - half_height - unit)
        kind = self._pick(generator, masks.COVERING_KINDS)
        bounds = (x - half_width, y - half_height, x + half_width, y + half_height)
        mask = masks.cover(kind, side, side, bounds, generator)
        rows, columns = np.ogrid[:side, :side]
        x, y = _centre(mask)
        mask |= ((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < (16.5 * unit) ** 2).astype(np.uint8)
        return mask, _centre(mask)

    def _colour(self, generator: np.random.Generator, background: np.ndarray) -> str:
        """Pick a colour that hardly occurs in the background, so that the drawing stands out."""
        seen = chroma(background[::3, ::3].astype(np.float32) / 255).reshape(-1, 2)
        share = {
            name: float((((seen - value) ** 2).sum(axis=-1) < _SAME_CHROMA**2).mean())
            for name, value in PALETTE_CHROMA.items()
        }
        ranked = sorted(share, key=share.__getitem__)
        allowed = [name for name in drawing.COLOURS if share[name] <= _MOST_CONFUSABLE]
        return self._pick(generator, allowed if len(allowed) >= 3 else ranked[:3])

    def _object(
        self, generator: np.random.Generator, name: str, background: np.ndarray, shape: str, size: str,
        centre: tuple[float, float], angle: float = 0.0,
    ) -> Spec:  # fmt: skip
        radius = self._unit * drawing.SIZES[size]
        alpha = drawing.shape_alpha(shape, radius, centre, self.resolution, self.resolution, angle)
        colour = self._colour(generator, background)
        return Spec(name, background, alpha, shape, colour, size, "", "", radius, centre, names_colour=True)

    def _nothing(self, name: str, background: np.ndarray) -> Spec:
        return Spec(name, background, np.zeros(background.shape[:2], np.float32))


def _centre(mask: np.ndarray) -> tuple[float, float]:
    left, top, right, bottom = masks.bounding_box(mask)
    return (left + right) / 2, (top + bottom) / 2


def _develop(crop: np.ndarray, grey: bool, generator: np.random.Generator) -> np.ndarray:
    """Vary exposure and contrast a little, and tone a grey photograph faintly, like an old print."""
    level = np.arange(256, dtype=np.float32) / 255
    curve = np.clip(level ** np.exp(generator.uniform(-0.12, 0.12)) * generator.uniform(0.9, 1.06), 0, 1)
    tone = generator.normal(0, 0.03, 3) if grey else np.zeros(3)
    table = curve[:, None] + (tone - tone.mean()) * (4 * curve * (1 - curve))[:, None]
    table = np.round(np.clip(table, 0, 1) * 255).astype(np.uint8)
    return np.stack([table[:, channel][crop[..., channel]] for channel in range(3)], axis=-1)
