"""Measures an update of reward feedback learning: time by part, compile time, peak memory.

    python benchmarks/step_time.py [--config quick] [--config.train.batch_size=16] [--repeats 5]

Each part is compiled by itself; "whole update" is the program that training runs (same mesh, shardings and donation),
in which XLA may share work between parts, so the parts need not add up to it.
"""

import argparse
import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.cli.main import split_overrides
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.rl.rollout import Frozen
from onereward_jax.rl.step import make_step
from onereward_jax.runs.reward_feedback import encode_text, open_requests, sample_fields
from onereward_jax.tasks import TASKS
from onereward_jax.training.compile import Params, compile_step
from onereward_jax.training.metrics import peak_memory_gib
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import create_state


def measure(name: str, function, *arguments, repeats: int, donated: int = 0) -> None:
    """Print the time of a call of a jitted function, and of its compilation.

    Args:
      donated: number of leading arguments that the function consumes; its first outputs replace them.
    """
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started

    def call(arguments):
        outputs = jax.block_until_ready(compiled(*arguments))
        return (*outputs[:donated], *arguments[donated:]) if donated else arguments

    arguments = call(arguments)
    started = time.perf_counter()
    for _ in range(repeats):
        arguments = call(arguments)
    seconds = (time.perf_counter() - started) / repeats
    print(f"{name:<34}{1000 * seconds:>10.0f} ms   compiled in {compile_seconds:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quick")
    parser.add_argument("--repeats", type=int, default=5)
    rest, overrides = split_overrides(sys.argv[1:])
    arguments = parser.parse_args(rest)
    config = load_config(arguments.config, overrides, [RewardFeedback])
    step_config = config.rl
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    judge = Judge.from_pretrained(config.model.judge, "float32")
    pipeline.transformer = pipeline.transformer.clone(dtype=config.model.dtype, remat=config.model.remat)
    source, fields = open_requests(config), sample_fields(config)
    size = config.train.batch_size
    samples = [source.sample(i, TASKS[i % len(TASKS)]) for i in range(size)]
    records = [sample.arrays(*fields) | {"index": np.int32(i)} for i, sample in enumerate(samples)]
    raw = {name: np.stack([record[name] for record in records]) for name in records[0]}
    batch = encode_text(raw, pipeline, judge, config.max_sequence_length, config.question_length, step_config)

    params, vae = pipeline.params["transformer"], pipeline.params["vae"]
    family = FluxFill(pipeline.transformer, pipeline.vae, pipeline.shift)
    image_size = raw["mask"].shape[1:]
    noise = conditioning.pack(sample_noise(jax.random.key(0), raw["index"], family.latent_shape(*image_size)))
    schedule = jnp.asarray(family.schedule(step_config.num_steps, *image_size))
    middle = (step_config.first_index + step_config.last_index) // 2
    encode = jax.jit(family.condition)
    request = raw["image"], raw["mask"], batch.text, batch.negative
    condition = encode(vae, *request)

    @jax.jit
    def rollout(params, condition, tokens, stop):
        scales = (step_config.rollout_guidance_scale, step_config.rollout_true_cfg_scale)
        velocity = family.velocity(params, condition, image_size, *scales)
        return sampler.denoise(velocity, tokens, schedule, stop)

    @jax.jit
    def decode(vae, tokens):
        return family.decode(vae, tokens, image_size)

    @jax.jit
    def ask(images, judge_params, reference, questions):
        return judge.scorer(judge_params, images, reference, questions)[..., 0].mean()

    def predict_and_ask(params, vae, judge_params, condition, tokens, reference, questions):
        scales = (step_config.gradient_guidance_scale, step_config.gradient_true_cfg_scale)
        velocity = family.velocity(params, condition, image_size, *scales)
        data = sampler.predict_data(velocity, tokens, jnp.full(size, schedule[middle]))
        return ask(decode(vae, data), judge_params, reference, questions)

    print(f"{arguments.config}: batch {size}, {image_size} pixels, {jax.devices()[0].device_kind}")
    time_of = lambda name, function, *inputs: measure(name, function, *inputs, repeats=arguments.repeats)
    questions = batch.questions
    time_of("condition (VAE encoder)", encode, vae, *request)
    time_of("reference rollout", rollout, params, condition, noise, step_config.num_steps)
    time_of(f"policy rollout (to index {middle})", rollout, params, condition, noise, middle)
    reference = decode(vae, rollout(params, condition, noise, step_config.num_steps))
    time_of("VAE decoder, forward", decode, vae, noise)
    time_of("judge, forward", ask, reference, judge.params, reference, questions)
    time_of("judge, gradient to the pixels", jax.jit(jax.grad(ask)), reference, judge.params, reference, questions)
    gradient = jax.jit(jax.grad(predict_and_ask))
    time_of(
        "gradient (prediction, VAE, judge)", gradient, params, vae, judge.params, condition, noise, reference, questions
    )

    optimizer = make_optimizer(**config.optimizer)
    step = make_step(family, judge.scorer, optimizer, step_config)
    create = lambda params: create_state(params, optimizer, config.seed, reference=config.algorithm == "fixed")
    mesh = make_mesh(**config.mesh)
    update, start, frozen = compile_step(step, create, Params.of(params), Frozen(vae=vae, judge=judge.params), mesh)
    state = start.make()
    batch = jax.device_put(batch, batch_sharding(mesh))
    measure("whole update", update, state, frozen, batch, repeats=arguments.repeats, donated=1)
    print(f"peak memory {peak_memory_gib():.2f} GiB; {dataclasses.asdict(step_config)}")


if __name__ == "__main__":
    sys.exit(guarded(main))
