"""The programs that a plan compiles are those that a run runs, byte by byte, in every phase."""

import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.data.requests.source import read_split
from onereward_jax.evaluation import judge_predictions
from onereward_jax.fill import denoising, prompts
from onereward_jax.planning.lives import HostShare, life_of
from onereward_jax.planning.topology import CHIPS, Topology
from onereward_jax.proving_ground.source import open_source
from onereward_jax.runs import finetune, judge, reward_feedback
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.training import compile as compiling
from onereward_jax.training import trainer
from onereward_jax.training.trainer import mesh_of
from tests.support.preference_examples import picture
from tests.support.tiny_plan import TINY

HOST = HostShare(jax.devices()[:4], 2)


class ReadyToRun(Exception):
    pass


class Recorded:
    """A jitted program that is lowered and not compiled; its results are zeros."""

    def __init__(self, jitted, seen):
        self._jitted, self._seen = jitted, seen
        self.trace = jitted.trace  # of the plan

    def __call__(self, *arguments, **options):
        self._seen.add(digest(self._jitted.lower(*arguments, **options)))
        shapes = jax.eval_shape(lambda *arguments: self._jitted(*arguments, **options), *arguments)
        return jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)


class Noted:
    """A jitted program that is compiled and run, too."""

    def __init__(self, jitted, seen):
        self._jitted, self._seen = jitted, seen

    def __call__(self, *arguments):
        self._seen.add(digest(self._jitted.lower(*arguments)))
        return self._jitted(*arguments)


def digest(lowered) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


@pytest.fixture
def programs_of(monkeypatch, tmp_path):
    """A function: (function that starts a run) -> digests of its programs, to its first evaluation."""
    monkeypatch.chdir(tmp_path)
    seen: set[str] = set()
    for module, name in ((prompts, "encoding"), (judge_predictions, "asking"), (finetune, "scoring")):
        maker = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, maker=maker: Recorded(maker(*arguments), seen))
    monkeypatch.setattr(denoising, "fill", Recorded(denoising.fill, seen))
    creating = compiling.creating
    noted = lambda *arguments: {part: Noted(made, seen) for part, made in creating(*arguments).items()}
    monkeypatch.setattr(compiling, "creating", noted)
    compile_step = trainer.compile_step

    def compile_and_watch(*arguments, **options):
        jitted, start, frozen = compile_step(*arguments, **options)
        return lambda *arguments: seen.add(digest(jitted.lower(*arguments))), start, frozen

    def run(*, step, start, batches, prepare, evaluate, **_):
        state = start.make()
        step(state, prepare(next(batches)))
        evaluate(state)
        raise ReadyToRun

    monkeypatch.setattr(trainer, "compile_step", compile_and_watch)
    monkeypatch.setattr(trainer.loop, "run", run)

    def found(start):
        with pytest.raises(ReadyToRun):
            start()
        return set(seen)

    return found


def planned(config) -> dict[str, str]:
    """{what: digest of its program} of every phase that has one."""
    mesh = mesh_of(config)
    works = life_of(config, mesh).works(mesh, HOST, 2)
    return {f"{work.name}: {work.what}": digest(work.trace().lower()) for work in works if work.trace}


class WithoutTruth:
    """The proving ground, as a source whose right answers nobody knows."""

    ground_truth = None

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)


def test_of_reward_feedback_learning(programs_of, tmp_path):
    """With part of the state on the hosts, an adapter, and the judge's preference as the evaluation."""
    changed = {"model.dtype": "bfloat16", "model.remat": "full", "lora.rank": 2, "rl.rollout_true_cfg_scale": 2.0}
    changed |= {"train.offload": "('opt_state','ema','reference')", "rl.accumulate": 2, "data.source": "images"}
    changed |= {"evaluation.every": 1, "evaluation.scenes_while_training": 1, "evaluation.batch_size": 4}
    config = load_config("fixed", TINY | changed)
    scenes = config.replace({"data.source": ""})
    sources = open_source(scenes, "train"), WithoutTruth(open_source(scenes, "test"))
    found = programs_of(lambda: reward_feedback.train(config, tmp_path, *sources))
    assert {what for what, program in planned(config).items() if program not in found} == set()


def test_of_a_judges_training(programs_of, tmp_path):
    made = []
    for number in range(24):
        candidates = tuple(Candidate(picture(2 * number + i, 64, 64)) for i in range(2))
        task = TASKS[number % 4]
        preference = Preference(dimensions_of(task)[0], 0, 1)
        made.append(Record(str(number), task, "a cat", candidates, pairs=(preference,)))
    write_records(tmp_path / "data", iter(made), "folder")
    settings = {"start": TINY["model.judge"], "data": (str(tmp_path / "data"),), "held_out_share": 0.5}
    settings |= {"evaluate_every": 1, "image_step": 0, "max_pixels": 0}
    changed = {f"judge.{name}": value for name, value in settings.items()}
    config = load_config("judge_7b", changed | {"train.batch_size": 8, "data.resolution": 64})
    found = programs_of(lambda: judge.train_judge(config, tmp_path))
    assert {what for what, program in planned(config).items() if program not in found} == set()


def test_of_fine_tuning(programs_of, tmp_path):
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    changed = {"model.base": TINY["model.base"], "data.resolution": 64, "data.max_aspect": 1, "lora.rank": 2}
    changed |= {"data.held_out_share": 0.3, "finetune.evaluate_every": 1, "finetune.sample_every": 1}
    changed |= {"train.batch_size": 4, "max_sequence_length": 16}
    changed |= {"data.source": str(tmp_path), "data.caption": "a cat"}
    config = load_config("finetune:flux_fill", changed)
    found = programs_of(lambda: finetune.finetune(config, tmp_path, read_split(config)))
    assert {what for what, program in planned(config).items() if program not in found} == set()


def test_a_slice_has_the_machines_of_its_size():
    of = lambda name, count: Topology(name, CHIPS[name.partition(":")[0]], [None] * count)
    assert [of(f"v5e:{n}", n).machine.chips for n in (1, 4, 8, 16)] == [1, 4, 8, 4]
    assert (of("v6e:2x4", 8).hosts, of("v6e:2x4", 8).machine.memory) == (1, 1440e9)
    assert (of("v5p:2x2x4", 16).hosts, of("tpu7x:2x2x2", 16).hosts) == (4, 2)
