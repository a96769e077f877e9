"""Preference data of the proving ground: four candidates per scene, with a simulated annotator's best and worst.

A directory is a folder of preference data (docs/reference/preference_data.md) in parts, each
preferences-planted-00000.jsonl or preferences-base-00000.jsonl and its images. A record's `notes` have its `scene` and
its `source`.

"planted" parts show right answers with synthetic defects, which teach the judge to see defects. Most went through the
autoencoder, where noise on the latents leaves artefacts like those of reward hacking. "base" parts show images by the
base model with random settings, as in the paper, including one-step predictions, which the judge sees in reward
feedback learning. In a later round, some come from policies that hacked an earlier judge: the annotator still ranks
them by ground truth.
"""

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from onereward_jax.atomic_files import fingerprint, make_directory, sweep, write_json
from onereward_jax.candidates.sampling import draw_settings, preference_ranges
from onereward_jax.config.find import find_model
from onereward_jax.config.load import names_with, renamed
from onereward_jax.config.schema import JudgeTraining, Preferences, RewardFeedback
from onereward_jax.data.preferences.dataset import COMPLETE, MADE_OF
from onereward_jax.data.preferences.folder import PATTERN, write_folder
from onereward_jax.data.preferences.record import Candidate, Record, Vote
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import ground_truth_of, samples_from
from onereward_jax.errors import UserError
from onereward_jax.fill.diffusers_io import load_transformer
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow import conditioning
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import png
from onereward_jax.proving_ground import ProvingGround, Scene, defects
from onereward_jax.proving_ground.annotator import annotate_scores
from onereward_jax.proving_ground.source import open_source, proving_ground_of
from onereward_jax.proving_ground.synthetic_pairs import visible_kinds
from onereward_jax.tasks import TASKS
from onereward_jax.weights.load import load_component

MakesPreferences = JudgeTraining | RewardFeedback  # recipes with a group `preferences`
CANDIDATES = 4
ANNOTATOR = "simulated"


def make_preferences(
    config: MakesPreferences,
    directory: Path,
    split: str,
    *,
    model: str,
    planted: int,
    base: int,
    tasks: Sequence[str] = TASKS,
    replace: bool = False,
) -> None:
    """Make candidates and preferences for scenes of a split, resuming an earlier call with the same settings.

    Args:
      config: settings; `config.preferences` says how candidates are made.
      directory: directory for the parts.
      split: "train" or "test".
      model: directory of the base model.
      planted: scenes per task with synthetic defects.
      base: scenes per task with images by the base model, other scenes than those.
      tasks: tasks of the scenes.
      replace: delete preferences of other settings in the directory; otherwise they are an error.

    Raises:
      FileNotFoundError, UserError: a model is missing or does not fit.
      UserError: the directory holds preferences of other settings.
    """
    settings = config.preferences
    first, policy_paths = settings.first_scene, settings.policies if split == "train" else ()
    source = open_source(config, split)
    truth = ground_truth_of(source, "a simulated annotator")
    makers: list[tuple[str, int, range, Callable]] = []
    if planted:
        ground = proving_ground_of(source, "planting defects")
        autoencoder, params = load_component(find_model(model) / "vae", "vae", "float32")
        indices = range(first, first + planted)
        makers.append(("planted", 0, indices, functools.partial(_planted, ground, autoencoder, params)))
    if base:
        pipeline = FillPipeline.from_pretrained(model, dtype="float32")
        policies = {path: load_transformer(path, pipeline.params["transformer"]) for path in policy_paths}
        indices = range(first + planted, first + planted + base)
        makers.append(("base", 1, indices, functools.partial(_generated, pipeline, policies)))
    weights = {path: fingerprint(find_model(path)) for path in (model, *policy_paths)}
    made_of = {"seed": config.seed, "weights": weights, "planted": planted, "base": base, "tasks": list(tasks)}
    _claim(directory, made_of, config, replace)
    for kind, kind_seed, indices, make in makers:
        parts = [(task, start) for start in indices[:: settings.part_size] for task in tasks]
        for number, (task, start) in enumerate(tqdm(parts, desc=f"preferences ({split}, {kind})", mininterval=5)):
            name = f"preferences-{kind}-{number:05d}.jsonl"
            if (directory / name).exists():
                continue
            generator = np.random.default_rng((config.seed, ("train", "test").index(split), kind_seed, number))
            rows = range(start, min(start + settings.part_size, indices.stop))
            samples = samples_from(source, task, rows.start, len(rows))
            candidates, made_by = make(samples, config, generator)
            scores = truth.score_images(samples, candidates)
            records = _records(kind, rows, samples, candidates, scores, made_by, settings, generator)
            write_folder(directory, records, file=name)
    write_json(directory / COMPLETE, {"parts": len(list(directory.glob(PATTERN)))})


def _claim(directory: Path, made_of: dict[str, Any], config: MakesPreferences, replace: bool) -> None:
    """Record the parts' settings and models; replace or refuse parts with other ones."""
    groups = {"preferences": config.preferences.to_dict(), "data": config.data.to_dict()}
    new = made_of | {name: _that_count(name, values) for name, values in groups.items()}
    path = directory / MADE_OF
    advice = f"choose another directory, or delete {directory}"
    if path.exists() and _upgraded(read_json(path, advice)) != json.loads(json.dumps(new)):
        if not replace:
            raise UserError(
                f"{directory} holds preferences of other settings or models, see {path}: choose another directory, or"
                " delete it"
            )
        shutil.rmtree(directory)
    make_directory(directory)
    sweep(directory)
    write_json(path, new)


def _that_count(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a resumed run may change, and settings of other data than the proving ground's."""
    resumable = names_with(JudgeTraining, "resumable")
    of_group = JudgeTraining().to_dict()[group]
    return {name: value for name, value in values.items() if name in of_group and f"{group}.{name}" not in resumable}


def _upgraded(made_of: dict[str, Any]) -> dict[str, Any]:
    """Convert an earlier release's record to today's names, with defaults for settings that did not exist."""
    defaults, was = json.loads(json.dumps(JudgeTraining().to_dict())), renamed()
    groups = {}
    for group in ("preferences", "data"):
        given = made_of.get(group)
        given = given if isinstance(given, dict) else {}
        named = {was.get(f"{group}.{name}", f"{group}.{name}"): value for name, value in given.items()}
        of_today = {name.removeprefix(f"{group}."): value for name, value in named.items()}
        groups[group] = _that_count(group, defaults[group] | of_today)
    return made_of | groups


def _records(
    kind: str,
    indices: Sequence[int],
    samples: Sequence[Sample],
    candidates: np.ndarray,
    scores: list[list[dict[str, float]]],
    made_by: list[list[dict]],
    settings: Preferences,
    generator: np.random.Generator,
) -> list[Record]:
    records = []
    for row, sample in enumerate(samples):
        pairs = annotate_scores(scores[row], generator, settings.annotator_noise, settings.annotator_margin)
        records.append(
            Record(
                id=f"{kind}-{sample.task}-{indices[row]}",
                task=sample.task,
                prompt=sample.prompt,
                candidates=tuple(
                    Candidate(png(image), note) for image, note in zip(candidates[row], made_by[row], strict=True)
                ),
                votes=tuple(Vote(pair.dimension, ANNOTATOR, pair.winner, pair.loser) for pair in pairs),
                pairs=tuple(pairs),
                image=png(sample.image),
                mask=png(sample.mask * 255),
                notes={"scene": indices[row], "source": kind},
            )
        )
    return records


def _planted(
    ground: ProvingGround,
    autoencoder: Any,
    params: Any,
    samples: list[Sample],
    config: MakesPreferences,
    generator: np.random.Generator,
) -> tuple[np.ndarray, list[list[dict]]]:
    """Add up to two random defects to each right answer; most scenes go through the autoencoder."""
    settings = config.preferences
    scenes = [ground.scene_of(sample) for sample in samples]
    stacks, made_by = [], []
    for scene in scenes:
        kinds = visible_kinds(scene)
        images, notes = [], []
        for _ in range(CANDIDATES):
            image, note = scene.target, {}
            for kind in generator.choice(kinds, size=generator.integers(0, 3), replace=False):
                note[str(kind)] = float(generator.uniform(0.2, 1.0))
                image = defects.apply(scene, image, str(kind), note[str(kind)], generator)
            images.append(image)
            notes.append(note)
        stacks.append(np.stack(images))
        made_by.append(notes)
    candidates = np.stack(stacks)

    # All four candidates of a scene, or none, so that being decoded says nothing about quality.
    through = np.flatnonzero(generator.random(len(scenes)) < settings.decoded_share)
    noise = np.zeros((len(scenes), CANDIDATES, *latent_shape(autoencoder, *candidates.shape[2:4])), np.float32)
    for row in through:
        for column in range(CANDIDATES):
            if generator.random() < settings.latent_noise_share:
                strength = float(generator.uniform(0.1, settings.max_latent_noise))
                made_by[row][column]["latent_noise"] = strength
                noise[row, column] = strength * _latent_noise(scenes[row], noise.shape[2:], generator)
    for start in range(0, len(scenes), _DECODED_AT_ONCE):
        rows = slice(start, start + _DECODED_AT_ONCE)
        flat = candidates[rows].reshape(-1, *candidates.shape[2:])
        decoded = conditioning.reconstruct(autoencoder, params, flat, noise[rows].reshape(-1, *noise.shape[2:]))
        decoded = np.asarray(decoded).reshape(candidates[rows].shape)
        chosen = np.isin(np.arange(len(scenes))[rows], through)
        candidates[rows][chosen] = decoded[chosen]
    return candidates, made_by


_DECODED_AT_ONCE = 8  # scenes


def _latent_noise(scene: Scene, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Draw noise of deviation about 1 for a latent (h, w, C): fine, coarse or constant, in the hole or everywhere."""
    height, width, channels = shape
    grain = int(generator.choice([1, 4, height]))
    coarse = generator.normal(size=(-(-height // grain), -(-width // grain), channels))
    noise = np.repeat(np.repeat(coarse, grain, axis=0), grain, axis=1)[:height, :width]
    if generator.random() < 0.7:
        mask = scene.sample.mask.astype(np.float32)
        factor = mask.shape[0] // height
        noise = noise * mask.reshape(height, factor, width, factor).mean(axis=(1, 3))[..., None]
    return noise


def _generated(
    pipeline: FillPipeline,
    policies: dict[str, Any],
    samples: list[Sample],
    config: MakesPreferences,
    generator: np.random.Generator,
) -> tuple[np.ndarray, list[list[dict]]]:
    """Generate images with the base model or a policy, under random settings, the same for all samples of a part."""
    images = np.stack([sample.image for sample in samples])
    masks = np.stack([sample.mask for sample in samples])
    prompts = [sample.prompt for sample in samples]
    answers, notes, ranges = [], [], preference_ranges(config.preferences)
    for _ in range(CANDIDATES):
        note = draw_settings(ranges, generator)
        by = str(generator.choice(list(policies))) if policies and generator.random() < _POLICY_SHARE else ""
        seed = int(generator.integers(2**31))
        noise = sample_noise(jax.random.key(seed), range(len(samples)), latent_shape(pipeline.vae, *images.shape[1:3]))
        made = pipeline.generate(
            images,
            masks,
            prompts,
            noise * note["noise_strength"],
            transformer_params=policies.get(by),
            max_sequence_length=config.max_sequence_length,
            **{name: value for name, value in note.items() if name != "noise_strength"},
        )
        answers.append(np.round(made * 255).astype(np.uint8))
        notes.append(note | {"seed": seed} | ({"policy": by} if by else {}))
    return np.stack(answers, axis=1), [notes] * len(samples)


_POLICY_SHARE = 0.5  # so that most scenes compare a policy's images with the base's
