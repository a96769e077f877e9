"""Reference images that are used again: from a cache (Algorithm 1), from the state (Algorithm 2)."""

import dataclasses
import errno
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.data.mixture import mixture
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.rl.reference_cache import ReferenceCache, open_cache
from onereward_jax.rl.step import make_step
from onereward_jax.training import loop
from onereward_jax.training.compile import Start
from onereward_jax.training.metrics import read_metrics
from onereward_jax.training.state import create_state
from tests.support import tiny_rl
from tests.support.tiny_plan import TINY
from tests.support.tiny_rl import Linear

BATCH, CONDITIONS = 4, 8


def bright(params, first, second, questions):
    """A judge that prefers bright images."""
    p_yes = jax.nn.sigmoid(10 * (first - second).mean(axis=(1, 2, 3)))
    return jnp.log(jnp.broadcast_to(p_yes[:, None, None], (*questions.lengths.shape, 2)))


@functools.cache
def questions():
    return question_batch(
        tiny_rl.models().judge, ["image_fill"] * BATCH, ["a red circle"] * BATCH, tiny_rl.QUESTION_LENGTH
    )


@functools.cache
def update(**options):
    config = dataclasses.replace(tiny_rl.CONFIG, num_steps=4, **options)
    return jax.jit(make_step(FluxFill(Linear(), tiny_rl.models().vae), bright, optax.sgd(0.5), config))


def train(workdir, num_steps, *, reference=None, around=lambda step: step, num_conditions=0, **options):
    """The state after so many updates, or after those that are left; and the batches' references, where a cache keeps
    them."""
    step, frozen = update(**options), tiny_rl.models().frozen

    def record(index, task):
        return {name: value for name, value in tiny_rl.sample(index).items() if name != "index"}

    def prepare(batch):
        numbers = {name: batch[name].astype(np.int32) for name in ("index", "condition", "age") if name in batch}
        arrays = {name: value for name, value in batch.items() if name != "task"} | numbers
        return jax.device_put(tiny_rl.assembled(arrays, questions()), jax.devices()[0])

    state = create_state({"w": jnp.float32(0.7)}, optax.sgd(0.5), seed=0)
    state = state.replace(reference=None if reference is None else {"w": jnp.float32(reference)})
    repeats = 1 + options.get("reference_max_age", 0)
    if repeats > 1:
        state = state.replace(references=jnp.zeros((BATCH, 16, 16, 3)))
    state = jax.device_put(state, jax.devices()[0])  # where the batches are: one program
    data = mixture({"image_fill": 1.0}, record, 0, BATCH, num_threads=0, num_conditions=num_conditions, repeats=repeats)
    return loop.run(
        step=around(lambda state, batch: step(state, frozen, batch)),
        start=Start(state, lambda: state),
        batches=iter(data),
        prepare=prepare,
        num_steps=num_steps,
        workdir=workdir,
        checkpoint_every=1,
    )


def test_a_cache_takes_the_steps_of_training_without(tmp_path, monkeypatch):
    """Empty, stopped in the middle and resumed, full, and damaged."""
    coarse_endpoint = {"estimator": "endpoint", "gradient_steps": 1, "reference_steps": 3}
    of_first = functools.partial(train, reference=-0.4, num_conditions=CONDITIONS, **coarse_endpoint)
    plain = of_first(tmp_path / "plain", 6).params["w"]
    cache = ReferenceCache(tmp_path / "cache", {"made": "here"})
    cached = functools.partial(of_first, around=cache.around, reference_cache="somewhere")
    cached(tmp_path / "filling", 1)
    assert len(list(cache.directory.glob("*.reference"))) == BATCH
    filling = cached(tmp_path / "filling", 6).params["w"]
    assert len(list(cache.directory.glob("*.reference"))) == CONDITIONS
    assert list(cache.directory.glob("*.tmp")) == []
    full = cached(tmp_path / "full", 6).params["w"]
    added = [
        [line["perf/references_added"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("filling", "full")
    ]
    assert added == [[4, 4, 0, 0, 0, 0], [0] * 6]

    with monkeypatch.context() as gone:
        gone.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "the mount is gone")))
        with pytest.warns(
            UserWarning, match=r"000000003\.reference can't be read \(the mount is gone\): it is made again"
        ):
            assert cache.read(3) is None
    damaged = bytearray(cache.path(3).read_bytes())
    damaged[-5] ^= 1
    cache.path(3).write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"000000003\.reference is damaged .*: it is made again"):
        mended = cached(tmp_path / "mended", 6).params["w"]
    assert cache.read(3) is not None

    shutil.rmtree(cache.directory)
    with pytest.warns(RuntimeWarning, match=r"takes no more references \(No such file or directory\)"):
        without = cached(tmp_path / "without", 6).params["w"]
    assert float(without) == float(full)

    assert float(plain) != 0.7
    assert float(filling) == float(full) == float(mended)  # one program
    np.testing.assert_allclose(filling, plain, rtol=1e-6)


def test_references_of_the_average_are_used_again_for_so_many_updates(tmp_path):
    """By hand: updates with references that are made every time, but from the average as it was."""
    options = {"reference_max_age": 2, "ema_decay": 0.5}
    train(tmp_path / "stopped", 2, **options)
    state = train(tmp_path / "stopped", 5, **options)
    whole = train(tmp_path / "whole", 5, **options)
    for name in ("params", "ema"):
        assert float(getattr(state, name)["w"]) == float(getattr(whole, name)["w"])
    np.testing.assert_array_equal(state.references, whole.references)
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [line["learning/reference_age"] for line in lines] == [0, 1, 2, 0, 1]
    assert len({line["learning/sigma"] for line in lines}) > 1

    fresh, frozen = update(ema_decay=0.5), tiny_rl.models().frozen
    state, average = create_state({"w": jnp.float32(0.7)}, optax.sgd(0.5), seed=0), {"w": jnp.float32(0.7)}
    for number, line in enumerate(lines):
        condition = np.arange(BATCH, dtype=np.int32) + BATCH * (number // 3)
        same = tiny_rl.batch(BATCH, BATCH * (number // 3))
        index = tiny_rl.batch(BATCH, BATCH * number).index
        batch = same.replace(index=index, condition=condition, questions=questions())
        average = state.ema if number % 3 == 0 else average
        state, metrics = fresh(state.replace(reference=average), frozen, batch)
        assert float(metrics["learning/loss"]) == pytest.approx(line["learning/loss"], rel=1e-5)
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)


def test_a_cache_keeps_images_alone(tmp_path):
    """What an update that is skipped had for a reference would make every later one of its condition skip, too."""
    cache, image = ReferenceCache(tmp_path, {"made": "here"}), np.full((4, 4, 3), np.nan, np.float32)
    blank = np.zeros((1, 4, 4, 3))
    batch = tiny_rl.batch(1).replace(condition=np.array([5]), image=jnp.asarray(blank))
    cache.around(lambda state, batch: (state, ({}, image[None])))(None, batch)
    assert cache.read(5) is None
    cache.around(lambda state, batch: (state, ({}, blank)))(None, batch)
    np.testing.assert_array_equal(cache.read(5), blank[0])


def test_a_cache_is_of_what_makes_its_entries(tmp_path):
    def directory(**changes):
        overrides = TINY | {"rl.reference_cache": str(tmp_path), "data.num_conditions": 8} | changes
        config = load_config("fixed", overrides)
        ground = ProvingGround("train", config.data.resolution, config.data.seed)
        return open_cache(config, ground).directory

    first = directory()
    assert directory(**{"optimizer.learning_rate": 1e-6, "data.num_conditions": 16, "rl.predictions": 2}) == first
    assert directory(**{"rl.num_steps": 4}) == directory(**{"rl.reference_steps": 4, "rl.policy_steps": 3})
    others = [{"seed": 1}, {"rl.num_steps": 4}, {"rl.rollout_true_cfg_scale": 2.0}, {"data.resolution": 32}]
    assert len({first, *(directory(**change) for change in others)}) == 5
