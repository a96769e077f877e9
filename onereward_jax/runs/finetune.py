"""Fine-tuning of a fill model on a user's own images by flow matching."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from onereward_jax.atomic_files import write_json
from onereward_jax.config.schema import Finetuning
from onereward_jax.data.requests.read import prompts_of
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import Requests, Split
from onereward_jax.data.sample import Sample
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.fill.prompts import prompt_reader
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.losses import fill_loss
from onereward_jax.given_files import read_json
from onereward_jax.images.grid import image_grid, write_png
from onereward_jax.models.lora import LoRA
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding, traced_for
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.runs.request_report import has_begun, report_requests
from onereward_jax.training import trainer
from onereward_jax.training.compile import Params
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state, supervised_step
from onereward_jax.training.trainer import Evaluator, Experiment, Learning
from onereward_jax.weights.load import StoredParams, in_dtype
from onereward_jax.weights.peft_adapters import save_adapter
from onereward_jax.weights.save import save_component

HELD_OUT_FILE, SAMPLES = "held_out.json", "samples"
_FIELDS = ("image", "mask", "prompt")  # of a sample, in a batch
_GRID_SIDE = 128  # pixels; smaller images are enlarged
# Streams of random numbers beside the one of the training's samples.
_HELD_OUT, _GRID = 1, 2


def finetune(config: Finetuning, workdir: Path, requests: Split) -> None:
    """Train `config.model.base` on images with prompts, or resume in `workdir`.

    Text encoders and autoencoder are frozen; all captions are encoded before the training, and the text encoders then
    released. Exports the transformer to workdir/export/transformer or, with `config.lora.rank`, its adapter to
    workdir/export: the average, if one is kept. Writes workdir/requests.json (what was read), workdir/held_out.json
    (the base model's loss on held-out images) and workdir/samples.

    Raises:
      FileNotFoundError, UserError: the model is missing or does not fit, or there is nothing to train on.
    """
    trainer.train(finetuning(config, workdir, requests), config, workdir)


def finetuning(config: Finetuning, workdir: Path, requests: Split) -> Experiment:
    """The transformer of `config.model.base`, or an adapter of it, trained by flow matching."""
    settings, adapters = config.finetune, LoRA(**config.lora)
    mesh = trainer.check_devices(config)

    # ------------------------------------------------------------------------------------------------------- the images
    trained_on, held_out = requests
    source = Requests(config, trained_on)
    hosts.on_primary(lambda: report_requests(workdir, source, held_out, "images"))

    # -------------------------------------------------------------------------------------------------------- the model
    # What is trained is kept in float32 and read only by a run that begins; what is frozen is kept as it computes.
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype=config.model.dtype, read=False)
    stored, pipeline.mesh = pipeline.params.pop("transformer"), mesh
    for size in source.sizes:
        latent_shape(pipeline.vae, *size)  # refuses what doesn't divide
    texts = ["", *prompts_of([*trained_on, *held_out])]
    pipeline.prompts.encode_ahead(texts, config.max_sequence_length, workdir / "prompts", mesh)
    read = prompt_reader(pipeline.prompts, config.max_sequence_length, config.train.batch_size)
    pipeline.params["vae"] = hosts.place(pipeline.params["vae"], shardings(pipeline.params["vae"], mesh))
    learning = fill_learning(config, pipeline.family, stored, pipeline.params["vae"], mesh)
    params, frozen = learning.params, learning.frozen.read()

    # -------------------------------------------------------------------------------------------------- the evaluations
    evaluators = []
    if settings.evaluate_every and held_out:
        measure = _held_out_loss(loss_of(config, pipeline.family, 0.0), frozen, source, held_out, config, read)
        of_base = _base_loss(workdir, lambda: measure(hosts.place(params.read(), shardings(params.shapes, mesh))))
        evaluators.append(Evaluator(settings.evaluate_every, lambda state: measure(state.averaged) | of_base))
    if settings.sample_every and settings.num_samples:
        shown = (held_out or trained_on)[: settings.num_samples]
        make_grid = _sample_grid(pipeline, [source.fixed_sample(image, _GRID) for image in shown], config)

        def write_grid(state: TrainState) -> dict[str, float]:
            grid = make_grid(adapters.full_params(state.averaged, frozen)["transformer"])
            if hosts.is_primary():
                (workdir / SAMPLES).mkdir(exist_ok=True)  # where the working directory is gone, it stays so
                write_png(workdir / SAMPLES / f"step_{int(state.step):08d}.png", grid)
            return {}

        evaluators.append(Evaluator(settings.sample_every, write_grid))

    return Experiment(
        description="fine-tuning",
        step=learning.step,
        create=learning.create,
        params=params,
        frozen=frozen,
        example=lambda index, task: source.sample(index, task).arrays(*_FIELDS),
        prepare=read,
        task_weights=source.weights,
        evaluators=tuple(evaluators),
        export=functools.partial(_export, workdir, pipeline.transformer, stored.dtype, adapters),
    )


def fill_learning(
    config: Finetuning, family: FluxFill, transformer: StoredParams, vae: Any, mesh: Mesh | None
) -> Learning:
    """What is trained of a fill model, and the update.

    Args:
      transformer: its parameters at the start; vae: the autoencoder's, there.
    """
    settings, adapters, optimizer = config.finetune, LoRA(**config.lora), make_optimizer(**config.optimizer)

    trained, frozen = Params.of({}), Params.of({"vae": vae})
    if adapters.rank:
        trained = Params.made(lambda: {"transformer": adapters.init(transformer.shapes, jax.random.key(config.seed))})
        base = in_dtype(transformer.shapes, config.model.dtype)
        frozen = Params(
            {"vae": vae, "transformer": base},
            lambda: {"vae": vae, "transformer": transformer.read(config.model.dtype, mesh)},
        )
    else:
        trained = Params(
            {"transformer": transformer.shapes}, lambda: {"transformer": transformer.read("float32", mesh)}
        )
    return Learning(
        step=supervised_step(loss_of(config, family, settings.prompt_dropout), optimizer, settings.ema_decay),
        create=lambda params: create_state(params, optimizer, config.seed, ema=settings.ema_decay > 0),
        params=trained,
        frozen=frozen,
    )


def _export(workdir: Path, module: Any, dtype: str, adapters: LoRA, state: TrainState) -> None:
    trained = state.averaged["transformer"]
    if adapters.rank:
        save_adapter(workdir / "export", "transformer", trained, adapters.scale)
    else:
        save_component(workdir / "export" / "transformer", "transformer", module, trained, dtype)


# ------------------------------------------------------------------------------------------------------ the evaluations


def _held_out_loss(
    loss: Callable,
    frozen: Any,
    source: Requests,
    pictures: Sequence[Request],
    config: Finetuning,
    read: Callable[[dict[str, Any]], dict[str, Any]],
) -> Callable[[Any], dict[str, float]]:
    """A function of what is trained: the mean loss over pictures, each in `held_out_draws` samples or a few more.

    A sample's noise and noise level follow from its number, so they are the same every time.
    """
    size, batches, number = config.train.batch_size, [], 0
    for shape in source.sizes:
        members = [picture for picture in pictures if source.size_of(picture) == shape]
        count = -(-len(members) * config.finetune.held_out_draws // size) * size  # batches are full
        records = [source.fixed_sample(members[i % len(members)], _HELD_OUT, i).arrays(*_FIELDS) for i in range(count)]
        for start in range(0, count, size):
            of_batch = records[start : start + size]
            batch = {name: np.stack([record[name] for record in of_batch]) for name in of_batch[0]}
            batches.append(batch | {"index": np.arange(number, number + size, dtype=np.int32)})
            number += size
    mesh = trainer.check_devices(config)
    score = scoring(loss, config.seed, mesh)

    def measure(trained: Any) -> dict[str, float]:
        found = []
        for batch in batches:
            value, metrics = score(trained, frozen, hosts.place(read(batch), batch_sharding(mesh)))
            found.append((float(value), float(metrics["learning/error_in_hole"])))
        loss, in_hole = np.mean(found, axis=0)
        return {"held_out/loss": float(loss), "held_out/error_in_hole": float(in_hole)}

    return measure


def loss_of(config: Finetuning, family: FluxFill, prompt_dropout: float) -> Callable:
    """The loss of what is trained: (trained, frozen, batch, key) -> (value, metrics)."""
    transformer = family.transformer.clone(remat=config.model.remat)
    options = {"prompt_dropout": prompt_dropout, "guidance_scale": config.finetune.guidance_scale}
    return LoRA(**config.lora).loss(fill_loss(transformer, family.vae, shift=family.shift, **options))


def scoring(loss: Callable, seed: int, mesh: Mesh) -> Any:
    """The jitted program (trained, frozen, batch) -> (value, metrics) that measures a loss on held-out images."""
    return jax.jit(traced_for(mesh, lambda trained, frozen, batch: loss(trained, frozen, batch, jax.random.key(seed))))


def _base_loss(workdir: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """{"held_out/base_loss"}, measured once, before the first step of a run."""
    file = workdir / HELD_OUT_FILE
    if not hosts.on_primary(lambda: has_begun(workdir) and file.exists()):
        measured = measure()
        hosts.on_primary(lambda: write_json(file, measured))
    return {"held_out/base_loss": hosts.on_primary(lambda: read_json(file)["held_out/loss"])}


def _sample_grid(pipeline: FillPipeline, samples: Sequence[Sample], config: Finetuning) -> Callable[[Any], np.ndarray]:
    """A function of the transformer's parameters: a row a sample, with what the model sees, what it makes of that by
    noise that is the same every time, and the picture."""
    settings = config.finetune

    def make(sample: Sample, number: int, transformer_params: Any) -> np.ndarray:
        shape = latent_shape(pipeline.vae, *sample.mask.shape)
        (made,) = pipeline.generate(
            sample.image[None],
            sample.mask[None],
            [sample.prompt],
            sample_noise(jax.random.key(config.seed), [number], shape),
            transformer_params=transformer_params,
            num_steps=settings.sample_steps,
            guidance_scale=settings.sample_guidance_scale,
            true_cfg_scale=settings.sample_true_cfg_scale,
            max_sequence_length=config.max_sequence_length,
        )
        return made

    def grid(transformer_params: Any) -> np.ndarray:
        rows = []
        for number, sample in enumerate(samples):
            seen = np.where(sample.mask[..., None] == 1, np.uint8(128), sample.image)
            rows.append([seen, make(sample, number, transformer_params), sample.image])
        return image_grid(rows, ("masked", "made", "original"), max(1, _GRID_SIDE // config.data.resolution))

    return grid
