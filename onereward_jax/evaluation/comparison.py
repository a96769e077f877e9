"""Two policies compared on the requests of a source: images, judges' answers, meters, all kept as they are made.

directory/
  requests.json                    what is asked: task, number, id, prompt and size of every request
  prompts/ENCODERS/                encoded prompts
  images/NAME/TASK/NUMBER.png      a policy's answers
  judges/NAME/TASK/....json        a judge's answers, in both orders
  meters/METER/NAME/TASK/....json  what a meter finds

A policy's, judge's or meter's directory says in about.json what its results depend on. Everything runs on a mesh of all
devices, in one process or several, which share the directory.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from onereward_jax.atomic_files import make_directory, write_json
from onereward_jax.config.load import names_with
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source
from onereward_jax.evaluation.generation import generate_batch
from onereward_jax.evaluation.judge_predictions import compiled_ask, judge_views, longest_question
from onereward_jax.evaluation.judge_verdicts import Answers
from onereward_jax.evaluation.kept import Kept, as_json
from onereward_jax.evaluation.meters.meter import Meter
from onereward_jax.fill.policies import Policy
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import write_png
from onereward_jax.images.reading import keep_outside, read_image
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel import hosts
from onereward_jax.parallel.mesh import batch_shards, mesh_of_all

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 8  # that read and write images
_REQUESTS = "requests.json"
_MAX_BYTES = 2**30  # of requests.json


@dataclasses.dataclass(frozen=True)
class Item:
    """A request, without its images.

    Attributes:
      task, number: of the sample in its source.
      id, prompt: of the sample.
      size: (height, width).
    """

    task: str
    number: int
    id: str
    prompt: str
    size: tuple[int, int]

    @property
    def file(self) -> str:
        """Where its answer lies in a policy's directory."""
        return f"{self.task}/{self.number:06d}.png"


Batch = list[Item]  # of one task and one size


class Comparison:
    """Requests of a source, and what policies, judges and meters have answered.

    Attributes:
      items: the requests.
      mesh: of all devices; None is one device.
      directory: where results are kept.
    """

    def __init__(
        self,
        source: Source,
        config: RewardFeedback,
        directory: Path,
        per_task: int | None = None,
        dtype: str = "bfloat16",
        replace: bool = False,
    ):
        """
        Args:
          source: of the requests.
          config: its `evaluation`, `seed` and `max_sequence_length`.
          directory: for the results, of this comparison or an earlier start of it.
          per_task: the first requests of each task; None is all.
          dtype: of parameters and products of policies and judges.
          replace: whether results of other inputs are removed; otherwise they are refused.

        Raises:
          UserError: there are such results, or no requests.
        """
        self.source, self.config, self.directory, self.dtype = source, config, directory, dtype
        self.mesh = mesh_of_all()
        shards = batch_shards(self.mesh)
        self._size = -(-config.evaluation.batch_size // shards) * shards
        self._replace = replace
        self.items = self._listed(per_task)

    def _listed(self, per_task: int | None) -> list[Item]:
        """The requests; images are read by the first start alone, where the source does not know their sizes."""
        file = self.directory / _REQUESTS
        about = as_json({"source": self.source.fingerprint(), "data": self._data(), "per_task": per_task})

        def list_all() -> None:
            if file.is_file() and read_json(file, limit=_MAX_BYTES).get("about") == about:
                return
            items = []
            for task in self.source.tasks:
                count = self.source.count(task)
                count = count if per_task is None else min(per_task, count)
                outline = lambda number, task=task: Item(task, number, *self.source.outline(number, task))
                with ThreadPoolExecutor(_THREADS) as pool:
                    items += list(pool.map(outline, range(count)))
            make_directory(self.directory)
            write_json(file, {"about": about, "requests": [dataclasses.asdict(item) for item in items]})

        hosts.on_primary(list_all)
        hosts.share(self.directory)
        listed = read_json(file, limit=_MAX_BYTES)["requests"]
        return [Item(**(item | {"size": tuple(item["size"])})) for item in listed]

    # ---------------------------------------------------------------------------------------------------- the images

    def answer(self, name: str, policy: Policy, items: Sequence[Item] | None = None) -> None:
        """Make a policy's answers to the requests, those that are not there yet.

        Args:
          name: of the policy in this comparison: "base", "policy", ...
          items: the requests; None is all.
        """
        items = self.items if items is None else items
        kept = self._kept(f"images/{name}", {"policy": policy.fingerprint(), "dtype": self.dtype, **self._settings()})
        missing = set(kept.missing([item.file for item in items]))
        batches = [batch for batch in self.batches(items) if any(item.file in missing for item in batch)]
        if not batches:
            return
        pipeline = policy.open(self.dtype, self.mesh)
        texts = [*self.source.negative_prompts, *(item.prompt for item in self.items)]
        encoders = hashlib.sha256(pipeline.prompts.fingerprint.encode()).hexdigest()[:16]
        directory = self.directory / "prompts" / f"{encoders}-{self.dtype}"
        pipeline.prompts.encode_ahead(texts, self.config.max_sequence_length, directory, self.mesh)
        params = policy.read(pipeline, self.dtype, self.mesh)
        shown = tqdm(batches, desc=f"images, {name}", disable=None if hosts.is_primary() else True)
        with ThreadPoolExecutor(_THREADS) as pool:
            for batch, samples in _ahead(self._samples_of, shown):
                rows = [min(row, len(batch) - 1) for row in range(self._size)]
                numbers = [batch[row].number for row in rows]
                made = generate_batch(pipeline, params, [samples[row] for row in rows], numbers, self.config)
                if hosts.is_primary():
                    files = [kept.directory / item.file for item in batch]
                    list(pool.map(write_png, files, made[: len(batch)]))
        hosts.share(kept.directory)

    def images(self, name: str, items: Sequence[Item]) -> list[np.ndarray]:
        """Read a policy's answers, uint8 (H, W, 3)."""
        return [read_image(self.directory / "images" / name / item.file) for item in items]

    def shown(self, name: str, items: Sequence[Item]) -> list[np.ndarray]:
        """A policy's answers as they are judged: with `rl.keep_outside`, the requests' own pixels outside the masks."""
        images = self.images(name, items)
        if not self.config.rl.keep_outside:
            return images
        samples = self._samples_of(items)
        return [keep_outside(s.image, s.mask, image) for s, image in zip(samples, images, strict=True)]

    def sample(self, item: Item) -> Sample:
        return self.source.sample(item.number, item.task)

    def _samples_of(self, batch: Sequence[Item]) -> list[Sample]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.sample, batch))

    # ----------------------------------------------------------------------------------------------------- the judges

    def ask(self, name: str, judge: Judge, about: str, question_length: int | None = None) -> list[Answers]:
        """Ask a judge about the answers of "policy" and "base", in both orders.

        Args:
          name: of the judge in this comparison.
          about: identifies its weights.
          question_length: tokens of a question; None is those of the longest.

        Returns:
          the answers, in the order of `items`; of several processes, the primary's.
        """
        length = question_length or longest_question(judge, [(item.task, item.prompt) for item in self.items])
        inputs = {"judge": about, "dtype": self.dtype, "policy": self._about("policy"), "base": self._about("base")}
        asked = {"question_length": length, "keep_outside": self.config.rl.keep_outside}
        kept = self._kept(f"judges/{name}", inputs | asked)
        batches = {_name(batch): batch for batch in self.batches(self.items)}
        missing = [batches[file] for file in kept.missing(list(batches))]
        ask = compiled_ask(judge, self.mesh)
        load = lambda batch: [np.stack(self.shown(of, batch)) for of in ("policy", "base")]
        shown = tqdm(missing, desc=f"judge {name}", disable=None if hosts.is_primary() else True)
        for batch, (policy, base) in _ahead(load, shown):
            texts = [(item.task, item.prompt) for item in batch]
            views = judge_views(judge, texts, policy, base, self._size, length, ask)
            if hosts.is_primary():
                kept.write(_name(batch), dict(zip(("policy_first", "base_first"), views, strict=True)))
        if not hosts.is_primary():
            return []
        answers = {}
        for file, batch in batches.items():
            found = kept.read(file)
            for item, first, second in zip(batch, found["policy_first"], found["base_first"], strict=True):
                answers[item] = Answers(item.task, item.id, first, second)
        return [answers[item] for item in self.items]

    # ----------------------------------------------------------------------------------------------------- the meters

    def measure(self, name: str, meter: Meter) -> dict[str, list[dict[str, float]]]:
        """Measure a policy's answers; of several processes, each measures some.

        Returns:
          {task: a row {value: number} for each request}; of several processes, the primary's.
        """
        kept = self._kept(f"meters/{meter.name}/{name}", {"meter": meter.about, "images": self._about(name)})
        items = [item for item in self.items if item.task in meter.tasks]
        batches = {_name(batch): batch for batch in self.batches(items)}
        missing = kept.missing(list(batches))
        rounds = [missing[start : start + hosts.count()] for start in range(0, len(missing), hosts.count())]
        mine = [batches[files[hosts.index()]] for files in rounds if hosts.index() < len(files)]
        load = lambda batch: (self._samples_of(batch), self.images(name, batch))
        shown = tqdm(mine, desc=f"{meter.name}, {name}", disable=None if hosts.is_primary() else True)
        loaded = _ahead(load, shown)
        for files in rounds:
            measured = meter.measure(*next(loaded)[1]) if hosts.index() < len(files) else None
            for file, values in zip(files, hosts.gather(measured), strict=False):
                if hosts.is_primary():
                    kept.write(file, {"values": values})
        found: dict[str, list[dict[str, float]]] = {}
        if hosts.is_primary():
            for file, batch in batches.items():
                found.setdefault(batch[0].task, []).extend(kept.read(file)["values"])
        return found

    # -------------------------------------------------------------------------------------------------------- shared

    def batches(self, items: Iterable[Item]) -> list[Batch]:
        """The requests in batches of one task and one size, of at most as many as are made at once."""
        groups: dict[tuple[str, tuple[int, int]], Batch] = {}
        for item in items:
            groups.setdefault((item.task, item.size), []).append(item)
        return [
            group[start : start + self._size] for group in groups.values() for start in range(0, len(group), self._size)
        ]

    def _settings(self) -> dict[str, Any]:
        """What images depend on beside the policy."""
        evaluation = self.config.evaluation
        return {
            "source": self.source.fingerprint(),
            "data": self._data(),
            "seed": self.config.seed,
            "num_steps": evaluation.num_steps,
            "guidance_scale": evaluation.guidance_scale,
            "true_cfg_scale": evaluation.true_cfg_scale,
            "max_sequence_length": self.config.max_sequence_length,
        }

    def _data(self) -> dict[str, Any]:
        """The settings that samples depend on, with the source."""
        resumable = names_with(RewardFeedback, "resumable")
        return {name: value for name, value in self.config.data.to_dict().items() if f"data.{name}" not in resumable}

    def _about(self, name: str) -> str:
        """Identify the images of a policy."""
        file = self.directory / "images" / name / "about.json"
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def _kept(self, name: str, about: dict[str, Any]) -> Kept:
        return Kept(self.directory / name, about, self._replace)


def _name(batch: Batch) -> str:
    """The file of a batch's results."""
    height, width = batch[0].size
    return f"{batch[0].task}/{height}x{width}-{batch[0].number:06d}-{len(batch)}.json"


def _ahead(load: Callable[[T], R], batches: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield (batch, load(batch)) while the next one is being loaded."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for batch in batches:
            loading = pool.submit(load, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = batch, loading
        if waiting is not None:
            yield waiting[0], waiting[1].result()
