"""What lies on each device from loading to export, in a run that begins and in one that resumes."""

import functools
import gc

import jax
import numpy as np
import pytest
from PIL import Image

from onereward_jax.config import schema
from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.data.requests.source import read_split
from onereward_jax.parallel import hosts
from onereward_jax.planning.lives import HostShare, life_of
from onereward_jax.planning.phases import bytes_of_parts
from onereward_jax.runs import finetune, judge, reward_feedback
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.training import trainer
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.weights.load import StoredParams
from tests.support.preference_examples import picture

RUNS = {
    "train, full, Algorithm 1": ("quick", 8, {"algorithm": "fixed"}),
    "train, full, Algorithm 2": ("quick", 8, {"algorithm": "dynamic"}),
    "train, adapter": ("quick", 8, {"algorithm": "fixed", "lora.rank": 4}),
    "train-judge, full": ("miniature/fifth_judge", 8, {"judge.evaluate_every": 1, "judge.keep_best": True}),
    "train-judge, adapter, 4 devices": ("miniature/fifth_judge", 4, {"judge.evaluate_every": 0, "lora.rank": 4}),
    "finetune, full": ("finetune", 8, {"finetune.evaluate_every": 1}),
    "finetune, adapter": ("finetune", 8, {"finetune.evaluate_every": 0, "lora.rank": 4}),
}
OWN = {
    "quick": {"evaluation.every": 0},
    "miniature/fifth_judge": {
        "judge.start": "miniature/judge",
        "judge.synthetic_share": 0.0,
        "judge.held_out_share": 0.3,
        "judge.held_out_records": 8,
    },
    "finetune": {"data.max_aspect": 1.0, "finetune.held_out_draws": 1, "finetune.sample_every": 0},
}


class Watch:
    """Bytes of all arrays that live on each device, beside those of before, at every moment that is looked at."""

    def __init__(self, devices):
        self._devices = devices
        self._before = self._now()
        self.seen: list[tuple[str, list[int]]] = []

    def _now(self) -> list[int]:
        gc.collect()
        held = dict.fromkeys(self._devices, 0)
        seen = set()  # an array that was asked for its shards holds them as arrays of one device, of the same memory
        for array in jax.live_arrays():
            if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
                continue
            for shard in array.addressable_shards:
                place = shard.device, shard.data.unsafe_buffer_pointer()
                if shard.device in held and place not in seen:
                    held[shard.device] += shard.data.nbytes
                seen.add(place)
        return list(held.values())

    def look(self, moment: str) -> list[int]:
        found = [now - before for now, before in zip(self._now(), self._before, strict=True)]
        self.seen.append((moment, found))
        return found

    def around(self, monkeypatch, owner, name: str) -> None:
        """Look before and after every call of a function."""
        function = getattr(owner, name)

        def watched(*arguments, **options):
            self.look(f"before {name}")
            result = function(*arguments, **options)
            self.look(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, watched)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Preferences for the judge, and images to fine-tune on."""
    root = tmp_path_factory.mktemp("data")
    records = []
    for number in range(40):
        candidates = tuple(Candidate(picture(2 * number + i, 64, 64)) for i in range(2))
        task = TASKS[number % 4]
        preference = Preference(dimensions_of(task)[0], 0, 1)
        records.append(Record(str(number), task, "a circle", candidates, pairs=(preference,)))
    write_records(root / "preferences", iter(records), "folder")
    (root / "images").mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        (root / "images" / f"{number}.txt").write_text("a small red circle")
    return root


def training(config, workdir):
    """The recipe's run."""
    if isinstance(config, schema.JudgeTraining):
        return functools.partial(judge.train_judge, config, workdir)
    if isinstance(config, schema.Finetuning):
        return functools.partial(finetune.finetune, config, workdir, read_split(config, workdir))
    return functools.partial(reward_feedback.train, config, workdir)


def planned_bytes(config):
    """{phase: bytes of the arrays that a device holds all the while}, without those of the batches; and "adapter"."""
    mesh, of_phase = trainer.mesh_of(config), {}
    for work in life_of(config, mesh).works(mesh, HostShare(jax.devices(), 1), prompts=1):
        held = {part: arrays for part, arrays in work.held.items() if part != "batches ahead"}
        of_part = bytes_of_parts(held)[0]
        of_phase.setdefault(work.name, sum(of_part.values()))
        of_phase["adapter"] = max(of_phase.get("adapter", 0), of_part.get("adapter, whole", 0))
    return of_phase


@pytest.fixture
def _quick_collection():
    """What is there before a test is not searched for garbage at each of its hundred looks: half of its time."""
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("_quick_collection")
@pytest.mark.parametrize(("name", "count", "settings"), RUNS.values(), ids=RUNS)
def test_a_device_holds_its_part_and_nothing_else(name, count, settings, data, tmp_path, monkeypatch):
    """Beginning or resuming: at every moment from loading to export the same bytes on every device, and after each
    phase those of the plan."""
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    places = {"judge.data": (str(data / "preferences"),)} if "judge" in name else {}
    places |= {"data.source": str(data / "images")} if name == "finetune" else {}
    shared = {"mesh.data": 2, "mesh.fsdp": count // 2, "train.batch_size": 8}
    config = load_config(name, shared | OWN[name] | places | settings)
    plan = planned_bytes(config)
    watch = Watch(devices)
    for owner, function in ((hosts, "fetch"), (hosts, "place"), (StoredParams, "read")):
        watch.around(monkeypatch, owner, function)
    compile_step = trainer.compile_step

    def compiled(*arguments):
        if "load" in plan:
            check("load", which)
        return compile_step(*arguments)

    def check(phase, moment):
        held = watch.look(f"{moment}: {phase}")
        assert max(held) == pytest.approx(plan[phase], rel=0.02, abs=4096), (moment, phase, held, plan[phase])

    def no_updates(*, start, workdir, evaluate, num_steps, **_):
        checkpointer = Checkpointer(workdir / "checkpoints")
        restored = checkpointer.restore_latest(start.shapes)
        state = start.make() if restored is None else restored[1]
        fresh, restored = restored is None, None
        check("restore", which)  # where the created state lies, too
        if fresh:
            checkpointer.save(1, state, {})
            checkpointer.close()
            if evaluate is not None:
                evaluate(state.replace(step=state.step + num_steps))
            check("restore", "evaluated")
        return state

    monkeypatch.setattr(trainer, "compile_step", compiled)
    monkeypatch.setattr(trainer.loop, "run", no_updates)
    for which in ("new", "resumed"):
        training(config, tmp_path)()
        assert max(watch.look(f"{which}: exported")) < 4096
    # A batch of encoded prompts on its way to the host lies on one device, and an adapter before it is spread, which
    # the plan says.
    small = plan["restore"] / 100 + plan["adapter"]
    uneven = [(moment, held) for moment, held in watch.seen if max(held) > 1.05 * min(held) + small]
    assert not uneven, uneven
