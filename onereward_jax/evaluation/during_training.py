"""A policy compared with the frozen base while it is trained: what the reward alone does not show.

Against Algorithm 2's moving reference the reward stays near one half by construction, and a policy that exploits its
judge gains reward and loses quality. Where the source has a ground truth, that is measured; else the judge's preference
over the base, what changed outside the mask, and a grid of images to look at.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.atomic_files import fingerprint, make_directory, remove, sync_tree, write_json
from onereward_jax.config.find import find_model
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import ENDLESS, Source, samples_from
from onereward_jax.evaluation.generation import generate_images
from onereward_jax.evaluation.judge_predictions import Ask, compiled_ask, judge_views
from onereward_jax.evaluation.kept import as_json
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import image_grid, write_png
from onereward_jax.images.reading import keep_outside
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground import overall
from onereward_jax.rl.build_update import frozen_dtype

# First of the held-out samples for this; the final evaluation uses others, so that nobody tunes settings on them.
FIRST_SAMPLE = 100_000
BASE_IMAGES, SAMPLES = "base_images", "samples"  # in the working directory
_ABOUT = "about.json"  # beside the base's images; written last
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
        self._ask_other = None if other is None else compiled_ask(other, pipeline.mesh)
        directory = workdir / BASE_IMAGES
        if not hosts.on_primary(lambda: _is_there(directory, self._about())):
            self._make_base_images(directory, read_base())
        self._base = [np.load(directory / f"{number}.npy") for number in range(len(self._groups))]
        self._base_truth = None if self._truth is None else [self._scores(*of) for of in self._pairs(self._base)]

    def measure(self, params: Any, step: int) -> dict[str, float]:
        """Compare a policy with the base.

        Args:
          params: the policy's whole transformer.
          step: names the grid, workdir/samples/step_<step>.png.

        Returns:
          "evaluation/<task>/truth_gain": mean ground-truth score of policy − base, in [−1, 1]. Without a ground truth
          "evaluation/<task>/preference": the judge's P(policy better), mean over dimensions and both orders;
          "evaluation/<task>/other_preference": the other judge's, if there is one; and
          "evaluation/<task>/drift": mean change of pixels outside the mask, in [0, 1], before any is put back.
        """
        made = [self._answers(params, samples) for samples in self._groups]
        values: dict[str, list[float]] = {}
        asked = self._judges()
        for number, (samples, images) in enumerate(self._pairs(made)):
            for name, of_samples in self._measured(number, samples, images, asked).items():
                values.setdefault(f"evaluation/{samples[0].task}/{name}", []).extend(of_samples)
        if self._truth is None and hosts.is_primary():
            write_png(self._workdir / SAMPLES / f"step_{step:08d}.png", self._grid(made))
        return {name: float(np.mean(of_samples)) for name, of_samples in values.items()}

    def _judges(self) -> dict[str, tuple[Judge, Ask, Any]]:
        """{metric: judge, its program, its parameters}."""
        if self._truth is not None:
            return {}
        judges: dict[str, tuple[Judge, Ask, Any]] = {"preference": (self._judge, self._ask, None)}
        if self._other is not None:
            assert self._ask_other is not None
            params = self._other.params.read(frozen_dtype(self._config), self._pipeline.mesh)
            judges["other_preference"] = self._other, self._ask_other, params
        return judges

    def _measured(
        self, number: int, samples: Sequence[Sample], images: np.ndarray, asked: Mapping[str, tuple[Judge, Ask, Any]]
    ) -> Mapping[str, list[float]]:
        if self._base_truth is not None:
            scores = self._scores(samples, images)
            return {"truth_gain": [mine - base for mine, base in zip(scores, self._base_truth[number], strict=True)]}
        shown, base = (self._shown(samples, of) for of in (images, self._base[number]))
        found = {name: self._preferences(samples, shown, base, *of) for name, of in asked.items()}
        return found | {"drift": _drift(samples, images)}

    def _shown(self, samples: Sequence[Sample], images: np.ndarray) -> np.ndarray:
        """Answers as they are judged: with `rl.keep_outside`, the samples' own pixels outside the masks."""
        if not self._config.rl.keep_outside:
            return images
        return np.stack([keep_outside(s.image, s.mask, image) for s, image in zip(samples, images, strict=True)])

    def _answers(self, params: Any, samples: Sequence[Sample]) -> np.ndarray:
        size = min(len(samples), self._config.evaluation.batch_size)
        return generate_images(self._pipeline, params, samples, self._config, batch_size=size, quiet=True)

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
        return as_json(about)

    def _make_base_images(self, directory: Path, params: Any) -> None:
        made = [self._answers(params, samples) for samples in self._groups]

        def save() -> None:
            remove(directory)
            make_directory(directory)
            for number, images in enumerate(made):
                np.save(directory / f"{number}.npy", images)
            sync_tree(directory)
            write_json(directory / _ABOUT, self._about())

        hosts.on_primary(save)
        hosts.share(directory)

    def _scores(self, samples: Sequence[Sample], images: np.ndarray) -> list[float]:
        assert self._truth is not None, "there is no ground truth"
        return [overall(row[0]) for row in self._truth.score_images(samples, self._shown(samples, images)[:, None])]

    def _preferences(
        self, samples: Sequence[Sample], images: np.ndarray, base: np.ndarray, judge: Judge, ask: Ask, params: Any
    ) -> list[float]:
        texts = [(sample.task, sample.prompt) for sample in samples]
        size, length = min(len(samples), self._config.evaluation.batch_size), self._config.question_length
        views = judge_views(judge, texts, images, base, size, length, ask, params)
        mean = lambda view: float(np.mean(list(view.values())))
        return [
            (mean(policy_first) + 1 - mean(base_first)) / 2 for policy_first, base_first in zip(*views, strict=True)
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
        return right and read_json(directory / _ABOUT) == about
    except (OSError, ValueError):
        return False


def _drift(samples: Sequence[Sample], images: np.ndarray) -> list[float]:
    changes = [
        np.abs(sample.image.astype(float) - image)[sample.mask == 0]
        for sample, image in zip(samples, images, strict=True)
    ]
    return [float(change.mean() / 255) if change.size else 0.0 for change in changes]
