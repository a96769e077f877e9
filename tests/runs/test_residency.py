"""What lies on each device from loading to the first update, in a run that begins and in one that goes on."""

import gc
import math

import jax
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.runs import reward_feedback
from onereward_jax.training import trainer
from onereward_jax.training.checkpoint import Checkpointer

SHARED = {"mesh.data": 2, "mesh.fsdp": 4, "train.batch_size": 8, "evaluation.every": 0}
RUNS = {
    "full, Algorithm 1": {"algorithm": "fixed"},
    "full, Algorithm 2": {"algorithm": "dynamic"},
    "adapter": {"algorithm": "fixed", "lora.rank": 4},
}


class Ready(Exception):
    pass


def on_each_device() -> list[int]:
    """Bytes of all arrays that live on each device."""
    gc.collect()
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return list(held.values())


def planned(*trees) -> int:
    """Bytes on one device of trees of arrays, or of their shapes with shardings."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    of = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * (8 if is_key(leaf) else leaf.dtype.itemsize)
    return sum(of(leaf) for leaf in jax.tree.leaves(trees))


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_device_holds_its_part_of_the_state_and_nothing_else(settings, tmp_path, monkeypatch):
    """Beginning or going on: the same bytes on every device, those of the state and of what is frozen."""
    config = load_config("quick", SHARED | settings)
    before = on_each_device()
    held = {}

    def stop_before_the_first_update(*, start, workdir, **_):
        checkpointer = Checkpointer(workdir / "checkpoints")
        restored = checkpointer.restore_latest(start.shapes)
        state = start.make() if restored is None else restored[1]
        del restored
        now = on_each_device()
        held[name] = [after - earlier for after, earlier in zip(now, before, strict=True)]
        if name == "new":
            checkpointer.save(1, state, {})
            checkpointer.close()
        held[f"{name} planned"] = planned(start.shapes, frozen[0])
        raise Ready

    compile_step, frozen = trainer.compile_step, []

    def compiled(*arguments):
        found = compile_step(*arguments)
        frozen[:] = [found[2]]
        return found

    monkeypatch.setattr(trainer, "compile_step", compiled)
    monkeypatch.setattr(trainer.loop, "run", stop_before_the_first_update)
    for name in ("new", "resumed"):
        with pytest.raises(Ready):
            reward_feedback.train(config, tmp_path)
        frozen.clear()
        assert max(held[name]) < 1.05 * min(held[name]), held
        assert max(held[name]) < 1.02 * held[f"{name} planned"], held
