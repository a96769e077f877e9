"""The update with the packaged models: eight devices give the gradient of one, in two micro-batches, and in four of
fewer samples than devices, which split the tokens of each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.rl.rollout import Frozen
from onereward_jax.rl.step import make_step
from onereward_jax.runs.reward_feedback import encode_text, open_requests, sample_fields
from onereward_jax.tasks import TASKS
from onereward_jax.training.compile import Params, compile_step
from onereward_jax.training.state import create_state
from tests.support.hostile import LONG


@pytest.mark.skipif(not LONG, reason="compiles two of the largest programs: in the long form")
def test_gradient_on_eight_devices_in_parts_equals_one():
    # With both branches of true guidance, which have to stay with their sample, and a judge that is never satisfied.
    settings = {"rl.rollout_true_cfg_scale": 2.0, "rl.gradient_true_cfg_scale": 2.0, "rl.threshold": 1.0}
    config, plain = load_config("fixed", settings), optax.sgd(1.0)
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    judge = Judge.from_pretrained(config.model.judge, "float32")
    source, fields = open_requests(config), sample_fields(config)
    records = [source.sample(i, TASKS[i % 4]).arrays(*fields) | {"index": np.int32(i)} for i in range(8)]
    raw = {name: np.stack([record[name] for record in records]) for name in records[0]}
    batch = encode_text(raw, pipeline, judge, config.max_sequence_length, config.question_length, config.rl)
    params = pipeline.params["transformer"]
    family = FluxFill(pipeline.transformer, pipeline.vae, pipeline.shift)

    def create(params):
        """Policy and reference differ, or their pictures would be alike."""
        state = create_state(params, plain, seed=0, reference=True)
        return state.replace(reference=jax.tree.map(lambda x: x + 0.003, state.params))

    def update(mesh, accumulate=1):
        """Plain gradient descent at rate 1: θ − θ' is the gradient."""
        settings = dataclasses.replace(config.rl, accumulate=accumulate)
        step = make_step(family, judge.scorer, plain, settings)
        frozen = Frozen(vae=pipeline.params["vae"], judge=judge.params)
        compiled, start, frozen = compile_step(step, create, Params.of(params), frozen, mesh)
        state = start.make()
        before = jax.device_get(state.params)
        after, metrics = compiled(state, frozen, jax.device_put(batch, batch_sharding(mesh)))
        return jax.tree.map(np.subtract, before, jax.device_get(after.params)), jax.device_get(metrics), after

    one, metrics, _ = update(make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    assert 0 < metrics["rewards/mean"] < 1
    assert metrics["learning/reward_loss"] > 0.1
    assert float(optax.global_norm(one)) > 1e-3
    eight, metrics_of_eight, state = update(make_mesh(2, 2, 2), accumulate=4)
    difference = optax.global_norm(jax.tree.map(jnp.subtract, one, eight))
    assert float(difference / optax.global_norm(one)) < 2e-5
    for name in ("rewards/mean", "learning/loss"):
        np.testing.assert_allclose(metrics_of_eight[name], metrics[name], rtol=1e-5)
    # Every copy of the parameters is split alike.
    shardings = [[x.sharding for x in jax.tree.leaves(part)] for part in (state.params, state.ema, state.reference)]
    assert shardings[0] == shardings[1] == shardings[2]
    assert sum(not sharding.is_fully_replicated for sharding in shardings[0]) > 20
