"""A policy compared with the frozen base while it is trained: what the reward alone does not show.

Against Algorithm 2's moving reference the reward stays near one half by construction, and a policy that exploits its
judge gains reward and loses quality. So its images of held-out requests are compared with the base's: by the judge and
by one that training never sees, after re-encodings, and by what images alone show (`meters.hacking`). Where the source
has a ground truth, that is measured, too; else there is a grid of images to look at.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import fingerprint, make_directory, remove, sync_tree, write_json
from onereward_jax.config.find import find_model
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import ENDLESS, Source, samples_from
from onereward_jax.evaluation.alarms import GAIN, mean_gain
from onereward_jax.evaluation.generation import generate_images
from onereward_jax.evaluation.judge_predictions import Ask, compiled_ask, judge_views
from onereward_jax.evaluation.kept import as_json
from onereward_jax.evaluation.meters import hacking
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow.conditioning import vae_factor
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import image_grid, write_png
from onereward_jax.images.reading import keep_outside
from onereward_jax.judge.ensemble import members
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.vision import patch_period
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground import overall
from onereward_jax.rl.build_update import frozen_dtype

# First of the held-out samples for this; the final evaluation uses others, so that nobody tunes settings on them.
FIRST_SAMPLE = 100_000
BASE_IMAGES, SAMPLES = "base_images", "samples"  # in the working directory
_ABOUT = "about.json"  # beside the base's images; written last
_WITH_SEEDS = 4  # samples of a task and size whose answers from several noises are compared
_GRID_ROWS, _GRID_SIDE = 8, 256  # pixels of an image's longer side, at most about


class ComparisonWithBase:
    """Held-out samples, answered by the base once and by the policy at every evaluation, from the same noise.

    The base's images are kept in workdir/base_images, so that only a run's first start needs the base for them.
    """

    def __init__(
        self,
        config: RewardFeedback,
        pipeline: FillPipeline,
        judge: Judge,
        source: Source,
        read_base: Callable[[], Any],
        workdir: Path,
        other: Judge | None = None,
    ):
        """
        Args:
          pipeline: without its transformer; its mesh is the judge's, too.
          source: of held-out samples: `config.evaluation.scenes_while_training` of each task are measured.
          read_base: gives the base transformer's parameters; called only if its images are not there.
          other: a judge that training never sees, whose parameters are stored ones: they are read for every evaluation,
            and take no memory between two.
        """
        self._config, self._pipeline, self._judge, self._workdir = config, pipeline, judge, workdir
        self._source, self._truth = source, source.ground_truth
        self._groups = list(_of_one_size(source, config.evaluation.scenes_while_training))
        self._ask, self._other = compiled_ask(judge, pipeline.mesh), other
        self._ask_member = compiled_ask(next(iter(members(judge)))[0], pipeline.mesh) if config.alarms.members else None
        self._ask_other = None if other is None else compiled_ask(other, pipeline.mesh)
        directory = workdir / BASE_IMAGES
        if not hosts.on_primary(lambda: _is_there(directory, self._about())):
            self._make_base_images(directory, read_base())
        self._base = [np.load(directory / f"{number}.npy") for number in range(len(self._groups))]
        self._base_distances = [
            self._distances(samples, np.load(directory / f"seeds_{number}.npy"))
            for number, samples in enumerate(self._groups)
            if config.alarms.seeds
        ]
        self._base_truth = None if self._truth is None else [self._scores(*of) for of in self._pairs(self._base)]

    def measure(self, params: Any, step: int) -> dict[str, float]:
        """Compare a policy with the base.

        Args:
          params: the policy's whole transformer.
          step: names the grid, workdir/samples/step_<step>.png.

        Returns:
          "evaluation/gain", see `alarms.mean_gain`, and "evaluation/<task>/<name>" with these names:

          - preference: the judge's P(policy better), mean over dimensions and both orders; deviation, sure: of its
            answers, one by one
          - other_preference, judge_gap: of the other judge, if there is one
          - disagreement: of an ensemble's judges, with `alarms.members`
          - lost_to_<how>: of the preference, by each of `alarms.reencodings`
          - judge_grid, latent_grid: energy at the period of the judge's patches and of the latents, above the base's
          - saturation, contrast: inside the mask, against the base's
          - drift: mean change of pixels outside the mask, in [0, 1], before any is put back; drift_gain: of images as
            they are judged, above the base's, 0 with `rl.keep_outside`
          - diversity: of answers from other noise, as a share of the base's, with `alarms.seeds`
          - truth_gain: mean ground-truth score of policy − base, in [−1, 1], if there is one
        """
        made = [self._answers(params, samples) for samples in self._groups]
        seen: dict[str, _Seen] = {}
        other = None
        if self._other is not None:
            other = self._other.params.read(frozen_dtype(self._config), self._pipeline.mesh)
        for number, (samples, images) in enumerate(self._pairs(made)):
            of_task = seen.setdefault(samples[0].task, _Seen())
            shown, base = (self._shown(samples, of) for of in (images, self._base[number]))
            self._ask_judges(of_task, samples, shown, base, other)
            self._compare_images(of_task, samples, images, self._base[number])
            of_task.add("drift_gain", np.subtract(_drifts(samples, shown), _drifts(samples, base)))
            if self._base_truth is not None:
                scores = zip(self._scores(samples, images), self._base_truth[number], strict=True)
                of_task.add("truth_gain", [mine - base for mine, base in scores])
            if self._config.alarms.seeds:
                of_task.add("distance", self._distances(samples, self._other_answers(params, samples)))
                of_task.add("base_distance", self._base_distances[number])
        if self._truth is None and hosts.is_primary():
            write_png(self._workdir / SAMPLES / f"step_{step:08d}.png", self._grid(made))
        found = {f"evaluation/{task}/{name}": x for task, of in seen.items() for name, x in of.summary().items()}
        return found | {GAIN: mean_gain(found)}

    def _ask_judges(
        self, seen: "_Seen", samples: Sequence[Sample], policy: np.ndarray, base: np.ndarray, other: Any
    ) -> None:
        """Ask about images as they are judged.

        Args:
          other: parameters of the other judge, if there is one.
        """
        alarms = self._config.alarms
        seen.add("p", self._p_better(samples, policy, base, self._judge, self._ask))
        for how in alarms.reencodings:
            shift = max(1, round(self._judge_period(samples) / 2))
            after, base_after = (hacking.reencoded(images, how, shift) for images in (policy, base))
            seen.add(f"p_{how}", self._p_better(samples, after, base_after, self._judge, self._ask))
        if self._ask_member is not None:
            for number, (member, params) in enumerate(members(self._judge)):
                asked = self._p_better(samples, policy, base, member, self._ask_member, params)
                seen.add(f"p_member_{number}", asked)
        if self._other is not None:
            assert self._ask_other is not None
            seen.add("p_other", self._p_better(samples, policy, base, self._other, self._ask_other, other))

    def _compare_images(self, seen: "_Seen", samples: Sequence[Sample], policy: np.ndarray, base: np.ndarray) -> None:
        """Measure images as the models made them."""
        periods = {"judge_grid": self._judge_period(samples), "latent_grid": vae_factor(self._pipeline.vae)}
        for sample, ours, theirs in zip(samples, policy, base, strict=True):
            for name, period in periods.items():
                energies = [hacking.grid_energy(image, sample.mask, period) for image in (ours, theirs)]
                if energies[0] is not None and energies[1] is not None:
                    seen.add(name, [energies[0] - energies[1]])
            for name, measure in (("saturation", hacking.saturation), ("contrast", hacking.contrast)):
                seen.add(name, [measure(ours, sample.mask)])
                seen.add(f"base_{name}", [measure(theirs, sample.mask)])
        seen.add("drift", _drifts(samples, policy))

    def _judge_period(self, samples: Sequence[Sample]) -> float:
        height, width = samples[0].mask.shape
        return patch_period(height, width, self._judge.settings)

    def _distances(self, samples: Sequence[Sample], answers: np.ndarray) -> list[float]:
        """Of answers (K, S, H, W, 3) from K noises to the first S samples."""
        return [hacking.distance(answers[:, row], samples[row].mask) for row in range(answers.shape[1])]

    def _other_answers(self, params: Any, samples: Sequence[Sample]) -> np.ndarray:
        """uint8 (alarms.seeds + 1, S, H, W, 3): the first samples, each from several noises."""
        return np.stack(
            [self._answers(params, samples[:_WITH_SEEDS], number) for number in range(self._config.alarms.seeds + 1)]
        )

    def _shown(self, samples: Sequence[Sample], images: np.ndarray) -> np.ndarray:
        """Answers as they are judged: with `rl.keep_outside`, the samples' own pixels outside the masks."""
        if not self._config.rl.keep_outside:
            return images
        return np.stack([keep_outside(s.image, s.mask, image) for s, image in zip(samples, images, strict=True)])

    def _answers(self, params: Any, samples: Sequence[Sample], candidate: int = 0) -> np.ndarray:
        size = min(len(samples), self._config.evaluation.batch_size)
        return generate_images(self._pipeline, params, samples, self._config, candidate, batch_size=size, quiet=True)

    def _pairs(self, images: Sequence[np.ndarray]) -> Iterator[tuple[Sequence[Sample], np.ndarray]]:
        return zip(self._groups, images, strict=True)

    def _about(self) -> dict[str, Any]:
        """What the base's images depend on, as JSON."""
        config = self._config
        about = {
            "base": fingerprint(find_model(config.model.base) / "transformer"),
            "evaluation": {k: v for k, v in config.evaluation.to_dict().items() if k != "other_judge"},
            "seed": config.seed,
            "dtype": config.model.dtype,
            "max_sequence_length": config.max_sequence_length,
            "source": self._source.fingerprint(),
            "samples": [[sample.id for sample in samples] for samples in self._groups],
            "sizes": [samples[0].mask.shape for samples in self._groups],
        }
        if config.alarms.seeds:
            about["seeds"] = config.alarms.seeds
        return as_json(about)

    def _make_base_images(self, directory: Path, params: Any) -> None:
        files = {f"{number}": self._answers(params, samples) for number, samples in enumerate(self._groups)}
        if self._config.alarms.seeds:
            for number, samples in enumerate(self._groups):
                files[f"seeds_{number}"] = self._other_answers(params, samples)

        def save() -> None:
            remove(directory)
            make_directory(directory)
            for name, images in files.items():
                np.save(directory / f"{name}.npy", images)
            sync_tree(directory)
            write_json(directory / _ABOUT, self._about())

        hosts.on_primary(save)
        hosts.share(directory)

    def _scores(self, samples: Sequence[Sample], images: np.ndarray) -> list[float]:
        assert self._truth is not None, "there is no ground truth"
        return [overall(row[0]) for row in self._truth.score_images(samples, self._shown(samples, images)[:, None])]

    def _p_better(
        self,
        samples: Sequence[Sample],
        policy: np.ndarray,
        base: np.ndarray,
        judge: Judge,
        ask: Ask,
        params: Any = None,
    ) -> list[np.ndarray]:
        """P(policy better) in each dimension of each sample, mean of both orders."""
        texts = [(sample.task, sample.prompt) for sample in samples]
        size, length = min(len(samples), self._config.evaluation.batch_size), self._config.question_length
        views = judge_views(judge, texts, policy, base, size, length, ask, params)
        return [
            np.array([(first[dimension] + 1 - second[dimension]) / 2 for dimension in first])
            for first, second in zip(*views, strict=True)
        ]

    def _grid(self, made: Sequence[np.ndarray]) -> np.ndarray:
        """Rows of the first samples of each task and size: what the model sees, the base's answer, the policy's."""
        rows = []
        for (samples, images), base in zip(self._pairs(made), self._base, strict=True):
            shown = (self._shown(samples[:2], of[:2]) for of in (images, base))
            for sample, of_policy, of_base in zip(samples[:2], *shown, strict=True):
                seen = np.where(sample.mask[..., None] == 1, np.uint8(128), sample.image)
                rows.append([seen, of_base, of_policy])
        side = max(max(image.shape[:2]) for row in rows for image in row)
        return image_grid(rows[:_GRID_ROWS], ("masked", "base", "policy"), max(1, _GRID_SIDE // side))


class _Seen:
    """What was measured of a task's samples, whatever their sizes."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}  # numbers; answers of a judge are an array for each sample

    def add(self, name: str, values: Iterable[Any]) -> None:
        self._values.setdefault(name, []).extend(values)

    def summary(self) -> dict[str, float]:
        """{name of `ComparisonWithBase.measure`: number}"""
        of = self._values
        p = _sample_means(of["p"])
        answers = np.concatenate(of["p"])
        found = {"preference": float(p.mean())}
        found |= {"deviation": hacking.deviation(answers), "sure": hacking.sure(answers)}
        if "p_other" in of:
            other = _sample_means(of["p_other"])
            found |= {"other_preference": float(other.mean()), "judge_gap": hacking.judge_gap(p, other)}
        for name in [name for name in of if name.startswith("p_") and name.removeprefix("p_") in hacking.REENCODINGS]:
            found[f"lost_to_{name.removeprefix('p_')}"] = hacking.lost(p, _sample_means(of[name]))
        if judges := [np.concatenate(of[name]) for name in of if name.startswith("p_member_")]:
            found["disagreement"] = hacking.disagreement(np.stack(judges))
        for name in ("saturation", "contrast"):
            found[name] = hacking.relative(of[name], of[f"base_{name}"])
        for name in ("judge_grid", "latent_grid", "drift", "drift_gain", "truth_gain"):
            if name in of:
                found[name] = float(np.mean(of[name]))
        if "distance" in of and (share := hacking.diversity(of["distance"], of["base_distance"])) is not None:
            found["diversity"] = share
        return found


def _drifts(samples: Sequence[Sample], images: np.ndarray) -> list[float]:
    return [hacking.drift(s.image, image, s.mask) for s, image in zip(samples, images, strict=True)]


def _sample_means(answers: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over the dimensions of each sample: samples count alike, however many dimensions they have."""
    return np.array([of_sample.mean() for of_sample in answers])


def _of_one_size(source: Source, count: int) -> Iterator[list[Sample]]:
    """The held-out samples, in groups of one task and size."""
    for task in source.tasks:
        samples = samples_from(source, task, FIRST_SAMPLE if len(source) >= ENDLESS else 0, count)
        for size in sorted({sample.mask.shape for sample in samples}):
            yield [sample for sample in samples if sample.mask.shape == size]


def _is_there(directory: Path, about: dict[str, Any]) -> bool:
    """Whether these images are there, whole; what can't be read is not."""
    try:
        found = [np.load(directory / f"{number}.npy", mmap_mode="r") for number in range(len(about["samples"]))]
        right = all(len(images) == len(ids) for images, ids in zip(found, about["samples"], strict=True))
        if about.get("seeds"):
            found = [np.load(directory / f"seeds_{number}.npy", mmap_mode="r") for number in range(len(found))]
            right &= all(len(images) == about["seeds"] + 1 for images in found)
        return right and read_json(directory / _ABOUT) == about
    except (OSError, ValueError):
        return False
