"""Training the generator itself: the miniature's autoencoder, then its transformer with the text encoders.

Both write a model in the official layout to `workdir/export`.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from onereward_jax import tasks
from onereward_jax.atomic_files import make_directory, sync
from onereward_jax.config.find import find_model
from onereward_jax.config.schema import AutoencoderTraining, BaseTraining
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.fill.prompts import PromptEncoder, prompt_reader
from onereward_jax.flow import conditioning, losses
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.flow.schedule import Shift
from onereward_jax.models.lora import LoRA
from onereward_jax.parallel import hosts
from onereward_jax.proving_ground import all_prompts
from onereward_jax.proving_ground.source import open_source
from onereward_jax.proving_ground.tokenizers import write_clip_tokenizer, write_t5_tokenizer
from onereward_jax.training import trainer
from onereward_jax.training.compile import Params
from onereward_jax.training.optimizer import make_optimizer
from onereward_jax.training.state import TrainState, create_state, supervised_step
from onereward_jax.training.trainer import Experiment
from onereward_jax.weights.load import load_component
from onereward_jax.weights.names import clip, flux, t5, vae
from onereward_jax.weights.peft_adapters import save_adapter
from onereward_jax.weights.save import save_component

_MEASURED = 256  # images, for the statistics of latents


def train_vae(config: AutoencoderTraining, workdir: Path) -> None:
    """Train the autoencoder of `config.vae` on targets; exports workdir/export/vae.

    Its scaling and shift factors are measured on latents after training and stand in its config.json.
    """
    trainer.check_devices(config)
    trainer.train(autoencoder(config, workdir), config, workdir)


def autoencoder(config: AutoencoderTraining, workdir: Path) -> Experiment:
    """An autoencoder that starts untrained."""
    settings, source = config.vae, open_source(config, "train")
    module, optimizer = vae.module_from_config(dict(settings.model)), make_optimizer(**config.optimizer)
    loss = losses.vae_loss(module, settings.kl_weight, settings.edge_weight, settings.square_weight)

    def target(index: int, task: str) -> np.ndarray:
        return source.sample(index, task).arrays("target")["target"]

    def export(state: TrainState) -> None:
        images = jnp.asarray(np.stack([target(index, source.tasks[0]) for index in range(_MEASURED)]))
        params = hosts.fetch(state.ema)
        scaling, shift = losses.latent_statistics(module, params, images)
        if hosts.is_primary():
            measured = module.clone(scaling_factor=scaling, shift_factor=shift)
            save_component(workdir / "export" / "vae", "vae", measured, params)

    return Experiment(
        description="autoencoder",
        step=supervised_step(loss, optimizer, settings.ema_decay),
        create=lambda params: create_state(params, optimizer, config.seed),
        params=Params.made(lambda: init_params(module, vae, config.seed)),
        example=lambda index, task: {"image": target(index, task)},
        task_weights=config.data.task_weights,
        export=export,
    )


def train_base(config: BaseTraining, workdir: Path) -> None:
    """Train a fill model by flow matching; exports the whole model to workdir/export.

    With `config.base.start`, a model in diffusers layout, its transformer is tuned further. Otherwise transformer and
    text encoders of `config.base` start from nothing, on the autoencoder of `config.base.vae`.
    `config.base.train_text_encoders` lets the text encoders learn too. With `config.lora.rank`, an adapter of the
    transformer is trained instead, and exported alone.

    A share `config.data.synthetic_defects` of the targets has a synthetic defect, as images from the web would:
    that leaves reward feedback learning something to improve.
    """
    trainer.check_devices(config)
    trainer.train(base_model(config, workdir), config, workdir)


def base_model(config: BaseTraining, workdir: Path) -> Experiment:
    """A fill model that answers the proving ground's requests."""
    # -------------------------------------------------------------------------------------------------------- the model
    settings = config.base
    pipeline = (
        FillPipeline.from_pretrained(settings.start, dtype="float32")
        if settings.start
        else new_pipeline(config, workdir)
    )
    prompts = pipeline.prompts
    side = latent_shape(pipeline.vae, config.data.resolution, config.data.resolution)[0]
    transformer = pipeline.transformer.clone(dtype=settings.dtype, remat=settings.remat)
    params = {"transformer": pipeline.params["transformer"]}
    text_encoders = {}
    if settings.train_text_encoders:
        params |= {"text_encoder": prompts.text_encoder_params, "text_encoder_2": prompts.text_encoder_2_params}
        text_encoders = {"text_encoder": prompts.text_encoder, "text_encoder_2": prompts.text_encoder_2}

    # -------------------------------------------------------------------------------------------- examples and the loss
    encoded = encoded_samples(config, workdir, pipeline)

    def example(index: int, task: str) -> dict[str, np.ndarray]:
        row = index % settings.scenes_per_task
        return {name: array[row] for name, array in encoded[task].items()}

    loss = losses.flow_matching_loss(
        transformer, (side, side), **text_encoders, prompt_dropout=settings.prompt_dropout, shift=pipeline.shift
    )
    optimizer, adapters = make_optimizer(**config.optimizer), LoRA(**config.lora)
    frozen: Any = {}
    if adapters.rank:
        loss, frozen = adapters.loss(loss), jax.tree.map(lambda x: x.astype(settings.dtype), params)
        params = adapters.init(params, jax.random.key(config.seed))

    def export(state: TrainState) -> None:
        trained = hosts.fetch(state.ema)
        if not hosts.is_primary():
            return
        if adapters.rank:
            save_adapter(workdir / "export", "transformer", trained["transformer"], adapters.scale)
            return
        pipeline.params["transformer"] = trained["transformer"]
        if text_encoders:
            prompts.text_encoder_params = trained["text_encoder"]
            prompts.text_encoder_2_params = trained["text_encoder_2"]
        pipeline.save_pretrained(workdir / "export")

    return Experiment(
        description="flow matching",
        step=supervised_step(loss, optimizer, settings.ema_decay),
        create=lambda params: create_state(params, optimizer, config.seed),
        params=Params.of(params),
        frozen=frozen,
        example=example,
        prepare=prompt_reader(prompts, config.max_sequence_length, config.train.batch_size, bool(text_encoders)),
        task_weights=config.data.task_weights,
        export=export,
    )


def new_pipeline(config: BaseTraining, workdir: Path) -> FillPipeline:
    """An untrained fill model of `config.base`, with tokenizers of the proving ground's words in workdir/tokenizers."""
    settings, corpus = config.base, list(all_prompts())
    autoencoder, autoencoder_params = load_component(find_model(settings.vae), "vae", "float32")
    directory = hosts.own_directory(workdir / "tokenizers")
    tokenizer = write_clip_tokenizer(directory / "tokenizer", corpus, settings.text_encoder["max_position_embeddings"])
    tokenizer_2 = write_t5_tokenizer(directory / "tokenizer_2", corpus)
    clip_vocabulary = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    transformer = flux.module_from_config(dict(settings.transformer))
    text_encoder = clip.module_from_config(dict(settings.text_encoder) | clip_vocabulary)
    text_encoder_2 = t5.module_from_config(dict(settings.text_encoder_2) | {"vocab_size": len(tokenizer_2)})
    return FillPipeline(
        transformer,
        autoencoder,
        {"transformer": init_params(transformer, flux, config.seed), "vae": autoencoder_params},
        PromptEncoder(
            tokenizer,
            tokenizer_2,
            text_encoder,
            text_encoder_2,
            init_params(text_encoder, clip, config.seed),
            init_params(text_encoder_2, t5, config.seed),
        ),
        Shift(),
    )


def encoded_samples(
    config: BaseTraining, workdir: Path, pipeline: FillPipeline, batch_size: int = 16
) -> dict[str, dict[str, np.ndarray]]:
    """Encode samples once, to workdir/latents: training then costs the transformer only.

    Returns:
      {task: {"data", "masked_image", "mask", "prompt"}}, each with a row a sample.
    """
    source = open_source(config, "train", config.data.synthetic_defects)
    encode = jax.jit(lambda p, *arrays: conditioning.encode_sample(pipeline.vae, p, *arrays))
    params = jax.tree.map(jnp.asarray, pipeline.params["vae"])
    directory = workdir / "latents"

    def write(task: str) -> None:
        make_directory(directory)
        path = directory / f"{task}.npz"
        if path.exists():
            return
        parts = []
        for start in tqdm(range(0, config.base.scenes_per_task, batch_size), desc=f"encoding {task}"):
            samples = [
                source.sample(start + i, task).arrays("image", "mask", "target", "prompt") for i in range(batch_size)
            ]
            batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
            prompts = batch.pop("prompt")
            parts.append(jax.device_get(encode(params, *map(jnp.asarray, batch.values()))) | {"prompt": prompts})
        partial = path.with_suffix(".partial.npz")
        joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.savez(partial, **joined)
        sync(partial)
        partial.replace(path)
        sync(directory)

    for task in tasks.TASKS:
        hosts.on_primary(functools.partial(write, task))
    hosts.share(directory)
    return {task: dict(np.load(directory / f"{task}.npz")) for task in tasks.TASKS}


def init_params(module: Any, weights: Any, seed: int) -> Any:
    """Fresh parameters of a module; `weights` is its file in `onereward_jax.weights.names`."""
    return jax.jit(module.init)(jax.random.key(seed), *weights.example_inputs(module))["params"]
