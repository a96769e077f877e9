"""Candidates for requests: images by one or several fill models under random settings, for people to compare.

directory/
  collection.json           what the candidates depend on; written before the first
  candidates-00000.jsonl    records of preference data without votes, and
  images/candidates-00000/  their images
  complete.json             written after the last
  .work/                    of several models, images by all but the last, each part's until its last model's turn

A part is a few requests of one size. Each model makes its candidates of all parts before the next one is read, and what
one model makes of one part is kept or lost as a whole: it is the same whenever, and however often, the command was
killed. Everything runs on a mesh of all devices, in one process or several, which share the directory.
"""

import dataclasses
import gc
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from onereward_jax.atomic_files import make_directory, remove, sweep, write_bytes, write_json
from onereward_jax.candidates.asked import Asked, Item
from onereward_jax.candidates.sampling import Ranges, candidate_settings, models_of
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.preferences.dataset import COLLECTION, COMPLETE
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Candidate, Record
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError, in_memory, shown
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.fill.policies import Policy
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import png
from onereward_jax.images.reading import keep_outside
from onereward_jax.parallel import hosts
from onereward_jax.parallel.mesh import batch_shards, mesh_of_all

_THREADS = 8  # that read and encode images
_WORK = ".work"


@dataclasses.dataclass(frozen=True)
class Collecting:
    """How candidates are made.

    Attributes:
      ranges: of their settings.
      candidates: of each request.
      same_settings: whether every model makes one candidate of each request, all with the same settings and noise.
      seed: of settings and noise.
      part_size: requests of a file.
      batch_size: images made at once.
      keep_outside: whether candidates have the request's own pixels outside the mask.
      dtype: of the models' parameters and products.
      max_sequence_length: tokens that T5 reads.
      bad_share: share of the requests whose images may turn out to be damaged.
    """

    ranges: Ranges
    candidates: int = 4
    same_settings: bool = False
    seed: int = 0
    part_size: int = 16
    batch_size: int = 8
    keep_outside: bool = False
    dtype: str = "bfloat16"
    max_sequence_length: int = 512
    bad_share: float = 0.1

    def about(self) -> dict[str, Any]:
        """All that candidates depend on: JSON values. How many are made at once changes the last digit at most."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("batch_size", "bad_share")}


class Drawn(NamedTuple):
    """A candidate to be made.

    Attributes:
      place: of its request in the part.
      number: among the request's candidates.
      settings: see `sampling.candidate_settings`.
    """

    place: int
    number: int
    settings: dict[str, Any]


Images = dict[tuple[int, int], np.ndarray]  # {(place of a request, number of a candidate): uint8 (H, W, 3)}
Files = dict[tuple[int, int], bytes]  # the same as PNG files


def collect(asked: Asked, models: Mapping[str, Policy], collecting: Collecting, directory: Path) -> int:
    """Make candidates for requests, resuming an earlier call with the same arguments.

    Of several processes, all call this alike, and share the directory, which the primary has locked.

    Args:
      asked: the requests.
      models: by the names that the records give them.
      directory: for the candidates, see above.

    Returns:
      the number of records there.

    Raises:
      FileNotFoundError, UserError: a model is missing or does not fit; the directory holds something else; or too many
        requests can't be read any more.
    """
    if not asked.items:
        raise UserError(f"{asked.where} holds no request to make candidates for: give another --source")
    if collecting.same_settings and collecting.candidates != len(models):
        raise UserError(
            f"with --same_settings each model makes one candidate, which is {len(models)}: leave --candidates out"
        )
    if collecting.candidates < 2:
        raise UserError("there is nothing to compare a single candidate with: give more candidates, or models")
    weights = {name: policy.fingerprint() for name, policy in models.items()}
    about = json.loads(json.dumps({"source": asked.about, "models": weights, **collecting.about()}))
    there = hosts.on_primary(lambda: _records_there(directory, about))
    if there is not None:
        return there
    mesh = mesh_of_all()
    pipelines = {
        name: policy.open(collecting.dtype, mesh) for name, policy in models.items()
    }  # before the first is read
    hosts.on_primary(lambda: write_json(directory / COLLECTION, about))
    return _Collection(asked, models, pipelines, collecting, directory).make()


def _records_there(directory: Path, about: dict[str, Any]) -> int | None:
    """The number of records in a directory where all are made, or else None.

    Raises:
      UserError: it holds something else.
    """
    make_directory(directory)
    sweep(directory)
    again = f"delete {directory}"
    if not (directory / COLLECTION).is_file():
        if foreign := [path.name for path in sorted(directory.iterdir()) if not path.name.startswith(".")]:
            raise UserError(f"{directory} holds {shown(foreign[0])} and no candidates: choose a new directory")
        return None
    earlier = read_json(directory / COLLECTION, again)
    if earlier != about:
        name = next(name for name in {**about, **earlier} if about.get(name) != earlier.get(name))
        raise UserError(
            f"{directory} holds candidates of another {name} ({shown(earlier.get(name), 60)} there,"
            f" {shown(about.get(name), 60)} now): choose another directory, or delete it"
        )
    complete = directory / COMPLETE
    return int(read_json(complete, again).get("records", 0)) if complete.is_file() else None


class _Collection:
    """Parts of candidates, as they are made."""

    def __init__(
        self,
        asked: Asked,
        models: Mapping[str, Policy],
        pipelines: Mapping[str, FillPipeline],
        how: Collecting,
        directory: Path,
    ):
        self._asked, self._models, self._how, self._directory = asked, models, how, directory
        self._pipelines = dict(pipelines)  # unread
        self._names = list(models)
        self._parts = list(_parts(asked.items, how.part_size))
        self._reported: set[str] = set()
        self._skipped = Skipped("requests", asked.where, how.bad_share)

    def make(self) -> int:
        """Make what is missing; the number of records in the end."""
        missing = [(name, number) for name, number in hosts.on_primary(self._missing)]
        total = sum(len(self._drawn(*unit)) for unit in missing)
        maker: _Maker | None = None
        with tqdm(total=total, desc="candidates", disable=None if hosts.is_primary() else True) as bar:
            for name, number in missing:
                drawn = self._drawn(name, number)
                if drawn and (maker is None or maker.name != name):
                    maker = None
                    gc.collect()  # of several models, one lies on the devices
                    maker = _Maker(name, self._models[name], self._pipelines.pop(name), self._how)
                samples = self._samples(number)
                drawn = [one for one in drawn if one.place in samples]
                made = maker.images(drawn, samples, bar) if maker is not None and drawn else {}
                if hosts.is_primary():
                    self._keep(name, number, samples, made)
                hosts.share(self._directory)
        records = hosts.on_primary(self._end)
        hosts.share(self._directory)
        return records

    def _missing(self) -> list[tuple[str, int]]:
        """What is to be made: names of models and numbers of parts, one model after the other."""
        left = [number for number in range(len(self._parts)) if not self._file(number).is_file()]
        last = self._names[-1]
        return [(n, number) for n in self._names for number in left if n == last or not self._kept(n, number).is_file()]

    def _drawn(self, name: str, number: int) -> list[Drawn]:
        """A model's candidates of a part."""
        how, found = self._how, []
        for place, item in enumerate(self._parts[number]):
            makers = models_of(item.id, how.seed, how.candidates, self._names)
            for candidate, by in enumerate(self._names if how.same_settings else makers):
                if by == name:
                    stream = 0 if how.same_settings else candidate
                    found.append(Drawn(place, candidate, candidate_settings(how.ranges, how.seed, item.id, stream)))
        return found

    def _samples(self, number: int) -> dict[int, Sample]:
        """The requests of a part that every process can read, by their places."""
        items = self._parts[number]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(enumerate(pool.map(_sample_or_fault, items)))
        faults = [(place, fault) for place, fault in found.items() if isinstance(fault, str)]
        for place, fault in (one for of_process in hosts.gather(faults) for one in of_process):
            found.pop(place, None)
            if items[place].id not in self._reported:  # by the turn of an earlier model
                self._reported.add(items[place].id)
                self._skipped.add(f"{items[place].id}: {fault}")
        return {place: sample for place, sample in found.items() if isinstance(sample, Sample)}

    def _keep(self, name: str, number: int, samples: dict[int, Sample], made: Images) -> None:
        """Keep what a model has made of a part; with the last model's, the part is complete."""
        if self._how.keep_outside:
            made = {at: keep_outside(samples[at[0]].image, samples[at[0]].mask, image) for at, image in made.items()}
        with ThreadPoolExecutor(_THREADS) as pool:
            files: Files = dict(zip(made, pool.map(png, made.values()), strict=True))
        if name != self._names[-1]:
            kept = self._kept(name, number)
            make_directory(kept.parent)
            write_bytes(kept, _packed(files))
            return
        for earlier in self._names[:-1]:
            files |= _unpacked(self._kept(earlier, number))
        settings = {
            (one.place, one.number): {"model": name, **one.settings}
            for name in self._names
            for one in self._drawn(name, number)
        }

        def record(place: int) -> Record | None:
            sample, images = samples[place], [files.get((place, n)) for n in range(self._how.candidates)]
            item = self._parts[number][place]
            if any(image is None for image in images):  # it could not be read at an earlier model's turn
                return None
            return Record(
                id=item.id,
                task=sample.task,
                prompt=sample.prompt,
                candidates=tuple(
                    Candidate(image, settings[place, n]) for n, image in enumerate(images) if image is not None
                ),
                image=png(sample.image),
                mask=png(sample.mask * 255),
                notes=item.notes,
            )

        with ThreadPoolExecutor(_THREADS) as pool:
            records = [found for found in pool.map(record, sorted(samples)) if found is not None]
        write_folder(self._directory, records, file=self._file(number).name)
        for earlier in self._names[:-1]:
            remove(self._kept(earlier, number))

    def _end(self) -> int:
        """Mark the candidates as complete; the number of records."""
        asked, records = len(self._asked.items), 0
        for number in range(len(self._parts)):
            records += self._file(number).read_bytes().count(b"\n")
        if asked - records > self._how.bad_share * asked:
            raise UserError(
                f"{asked - records} of {asked} requests in {self._asked.where} can't be read any more, more than the"
                f" allowed share of {self._how.bad_share:g}: put them right, and collect into another directory"
            )
        write_json(self._directory / COMPLETE, {"parts": len(self._parts), "records": records})
        remove(self._directory / _WORK)
        return records

    def _file(self, number: int) -> Path:
        return self._directory / f"candidates-{number:05d}.jsonl"

    def _kept(self, name: str, number: int) -> Path:
        return self._directory / _WORK / str(self._names.index(name)) / f"{number:05d}.zip"


class _Maker:
    """A model on the devices.

    Attributes:
      name: of the model.
    """

    def __init__(self, name: str, policy: Policy, pipeline: FillPipeline, how: Collecting):
        self.name, self._how, self._pipeline = name, how, pipeline
        shards = batch_shards(pipeline.mesh)
        self._rows = -(-how.batch_size // shards) * shards
        with in_memory(f"the model {name}", "take more devices, or larger ones"):
            pipeline.prompts.read(pipeline.mesh)
            self._params = policy.read(pipeline, how.dtype, pipeline.mesh)

    def images(self, drawn: Sequence[Drawn], samples: Mapping[int, Sample], bar: tqdm) -> Images:
        """Make candidates of a part.

        A batch takes as long as its longest schedule, so candidates with about as many steps are made together, those
        with true guidance, which takes twice as long, apart from those without.
        """
        prompts = self._pipeline.prompts
        prompts.forget()  # a part is the same after whatever was made before
        texts = [*(samples[one.place].prompt for one in drawn), *(one.settings["negative_prompt"] for one in drawn)]
        prompts.encode(list(dict.fromkeys(texts)), self._how.max_sequence_length)
        made: Images = {}
        for guided in (False, True):
            group = [one for one in drawn if (one.settings["true_cfg_scale"] != 1.0) == guided]
            group.sort(key=lambda one: one.settings["num_steps"])
            for start in range(0, len(group), self._rows):
                batch = group[start : start + self._rows]
                rows = batch + batch[-1:] * (self._rows - len(batch))  # one program for all batches
                images = self._generated(rows, [samples[one.place] for one in rows])
                made |= {(one.place, one.number): image for one, image in zip(batch, images, strict=False)}
                bar.update(len(batch))
        return made

    def _generated(self, drawn: Sequence[Drawn], samples: Sequence[Sample]) -> np.ndarray:
        """Make a batch: uint8 (B, H, W, 3)."""
        of_all: dict[str, Any] = {name: [one.settings[name] for one in drawn] for name in drawn[0].settings}
        strengths, seeds = np.asarray(of_all.pop("noise_strength"), np.float32), of_all.pop("seed")
        images = np.stack([sample.image for sample in samples])
        height, width = images.shape[1:3]
        shape = latent_shape(self._pipeline.vae, height, width)
        noise = np.concatenate([sample_noise(jax.random.key(seed), [0], shape) for seed in seeds])
        with in_memory(f"{len(images)} x {width} x {height} pixels", "give a smaller --batch_size"):
            made = self._pipeline.generate(
                images,
                np.stack([sample.mask for sample in samples]),
                [sample.prompt for sample in samples],
                jax.numpy.asarray(noise * strengths[:, None, None, None]),
                transformer_params=self._params,
                max_sequence_length=self._how.max_sequence_length,
                **of_all,
            )
        if not np.isfinite(made).all():
            raise UserError(f"the model {self.name} produced NaN or Inf: give smaller ranges, or check its weights")
        return np.round(made * 255).astype(np.uint8)


def _parts(items: Sequence[Item], part_size: int) -> Iterator[list[Item]]:
    """The requests in parts of one size."""
    of_size: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        of_size.setdefault(item.size, []).append(item)
    for members in of_size.values():
        yield from (members[start : start + part_size] for start in range(0, len(members), part_size))


def _sample_or_fault(item: Item) -> Sample | str:
    try:
        return item.sample()
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} can't be read ({error.strerror})"


def _packed(files: Files) -> bytes:
    """Pack PNG files, which no compression makes smaller, into one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for (place, number), content in files.items():
            packed.writestr(f"{place}-{number}.png", content)
    return buffer.getvalue()


def _unpacked(file: Path) -> Files:
    with zipfile.ZipFile(file) as packed:
        at = {name: tuple(map(int, name.removesuffix(".png").split("-"))) for name in packed.namelist()}
        return {(place, number): packed.read(name) for name, (place, number) in at.items()}
