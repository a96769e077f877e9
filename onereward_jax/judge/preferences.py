"""Preference data of the proving ground: four candidates a scene, a simulated annotator's best and worst.

A directory holds parts, each `part-00000.npz` (candidates, uint8 (S, 4, H, W, 3)) and `part-00000.jsonl`, a line a
scene:

    {"index": 17, "task": "image_fill", "prompt": "a small red circle", "source": "base",
     "candidates": [{"num_steps": 6, "stop": 3, ...}, ...],
     "preferences": [{"dimension": "structure", "winner": 2, "loser": 0}, ...]}

Half of the scenes show the right answer with planted defects: they teach the judge to see before the model's own
pictures teach it what to look for. The others show the base model's pictures, made with random settings as the paper
does, one-step predictions among them, since those are what the judge is shown in reward feedback learning.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from onereward_jax.data.proving_ground import ProvingGround, Scene, defects
from onereward_jax.data.proving_ground.annotator import annotate
from onereward_jax.flow.pipeline import FillPipeline, latent_shape, sample_noise
from onereward_jax.tasks import TASKS, dimensions_of

CANDIDATES = 4
NEGATIVE_PROMPTS = ("", "nsfw", "blurry", "low quality")


class Pair(NamedTuple):
    """Two candidates of a scene and what the annotator said of them.

    Attributes:
      part, row: where the candidates are; scene: its index in the split.
      first, second: which of the scene's candidates.
      labels: {dimension: +1 if the first is the winner, −1 if the second}.
    """

    part: int
    row: int
    scene: int
    task: str
    prompt: str
    first: int
    second: int
    labels: dict[str, int]


def make_preferences(config: ConfigDict, directory: Path, split: str, scenes_per_task: int) -> None:
    """Makes candidates and preferences for scenes of a split; goes on where an earlier call stopped.

    Args:
      config: of the judge's training; `config.preferences` says how candidates are made.
      directory: gets the parts.
      split: "train" or "test".
    """
    settings = config.preferences
    ground = ProvingGround(split, config.data.resolution, config.data.seed, config.data.photos or None)
    pipeline = FillPipeline.from_pretrained(settings.base)
    directory.mkdir(parents=True, exist_ok=True)
    size = settings.part_size
    parts = [(task, start) for start in range(0, scenes_per_task, size) for task in TASKS]
    for number, (task, start) in enumerate(tqdm(parts, desc=f"preferences ({split})")):
        path = directory / f"part-{number:05d}.npz"
        if path.exists():
            continue
        generator = np.random.default_rng((config.seed, ("train", "test").index(split), number))
        scenes = [ground.scene(index, task) for index in range(start, start + size)]
        planted = generator.random() < settings.planted_share
        make = _planted if planted else _generated
        candidates, made_by = make(scenes, pipeline, config, generator)
        lines = []
        for row, scene in enumerate(scenes):
            preferences = annotate(
                scene, list(candidates[row]), generator, settings.annotator_noise, settings.annotator_margin
            )
            lines.append(
                {
                    "index": start + row,
                    "task": task,
                    "prompt": scene.sample.prompt,
                    "source": "planted" if planted else "base",
                    "candidates": made_by[row],
                    "preferences": [dataclasses.asdict(preference) for preference in preferences],
                }
            )
        # The pictures' file comes last: it says that the part is whole.
        path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial = path.with_name(f"partial-{path.name}")
        np.savez(partial, candidates=candidates)
        partial.replace(path)


def read_pairs(directory: Path) -> tuple[list[np.ndarray], list[Pair]]:
    """Candidates of every part, (S, 4, H, W, 3) each, and the pairs that were annotated in any dimension.

    Raises:
      FileNotFoundError: the directory holds no preferences.
    """
    paths = sorted(Path(directory).glob("part-*.npz"))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no preference data: make it with `onereward make-preferences`")
    candidates: list[np.ndarray] = []
    pairs: list[Pair] = []
    for number, path in enumerate(paths):
        with np.load(path) as file:
            candidates.append(file["candidates"])
        for row, line in enumerate(path.with_suffix(".jsonl").read_text().splitlines()):
            pairs += _pairs_of(json.loads(line), number, row)
    return candidates, pairs


def _pairs_of(record: dict, part: int, row: int) -> Iterator[Pair]:
    """One pair for every two candidates that some dimension set apart; all its dimensions together."""
    labels: dict[tuple[int, int], dict[str, int]] = {}
    for preference in record["preferences"]:
        winner, loser = preference["winner"], preference["loser"]
        first, second = min(winner, loser), max(winner, loser)
        labels.setdefault((first, second), {})[preference["dimension"]] = 1 if winner == first else -1
    for (first, second), given in labels.items():
        yield Pair(part, row, record["index"], record["task"], record["prompt"], first, second, given)


def label_row(pair: Pair) -> np.ndarray:
    """(E,) labels in the order of the task's dimensions: +1, −1, or 0 where the annotator saw no difference."""
    from onereward_jax.judge.batches import MAX_DIMENSIONS

    labels = [pair.labels.get(dimension, 0) for dimension in dimensions_of(pair.task, pair.prompt)]
    return np.asarray(labels + [0] * (MAX_DIMENSIONS - len(labels)), np.int32)


def _planted(
    scenes: list[Scene], pipeline: FillPipeline, config: ConfigDict, generator: np.random.Generator
) -> tuple[np.ndarray, list[list[dict]]]:
    """The right answer with up to two random defects each."""
    pictures, made_by = [], []
    for scene in scenes:
        kinds = defects.applicable(scene)
        images, notes = [], []
        for _ in range(CANDIDATES):
            image, note = scene.target, {}
            for kind in generator.choice(kinds, size=generator.integers(0, 3), replace=False):
                note[str(kind)] = float(generator.uniform(0.2, 1.0))
                image = defects.plant(scene, image, str(kind), note[str(kind)], generator)
            images.append(image)
            notes.append(note)
        pictures.append(np.stack(images))
        made_by.append(notes)
    return np.stack(pictures), made_by


def _generated(
    scenes: list[Scene], pipeline: FillPipeline, config: ConfigDict, generator: np.random.Generator
) -> tuple[np.ndarray, list[list[dict]]]:
    """The base model's pictures under random settings, the same for all scenes of a part."""
    images = np.stack([scene.sample.image for scene in scenes])
    masks = np.stack([scene.sample.mask for scene in scenes])
    prompts = [scene.sample.prompt for scene in scenes]
    pictures, notes = [], []
    for _ in range(CANDIDATES):
        note = draw_settings(config.preferences, generator)
        seed = int(generator.integers(2**31))
        noise = sample_noise(jax.random.key(seed), range(len(scenes)), latent_shape(pipeline.vae, *images.shape[1:3]))
        made = pipeline.generate(
            images,
            masks,
            prompts,
            noise * note["noise_strength"],
            max_sequence_length=config.max_sequence_length,
            **{name: value for name, value in note.items() if name != "noise_strength"},
        )
        pictures.append(np.round(made * 255).astype(np.uint8))
        notes.append(note | {"seed": seed})
    return np.stack(pictures, axis=1), [notes] * len(scenes)


def draw_settings(settings: ConfigDict, generator: np.random.Generator) -> dict[str, Any]:
    """Random arguments of `FillPipeline.generate`, and the strength of the initial noise."""
    num_steps = int(generator.integers(settings.min_steps, settings.max_steps + 1))
    one_step = generator.random() < settings.one_step_share
    stop = int(generator.integers(num_steps // 4, num_steps)) if one_step else None
    guided = generator.random() < settings.guided_share
    return {
        "num_steps": num_steps,
        "stop": stop,
        "guidance_scale": 1.0,
        "true_cfg_scale": float(generator.uniform(1.2, settings.max_true_cfg_scale)) if guided else 1.0,
        "negative_prompt": str(generator.choice(NEGATIVE_PROMPTS)),
        "noise_strength": float(generator.uniform(0.9, 1.1)),
    }
