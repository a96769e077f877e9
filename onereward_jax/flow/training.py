"""Training the generator itself: the miniature's autoencoder, then its transformer with the text encoders.

Both write a model in the official layout to `workdir/export`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from onereward_jax import tasks, trainer
from onereward_jax.data.proving_ground import ProvingGround, all_prompts
from onereward_jax.data.proving_ground.tokenizers import write_clip_tokenizer, write_t5_tokenizer
from onereward_jax.flow import conditioning, losses
from onereward_jax.flow.pipeline import FillPipeline
from onereward_jax.flow.prompts import PromptEncoder
from onereward_jax.flow.schedule import Shift
from onereward_jax.train_state import TrainState, create_state, make_optimizer, supervised_step
from onereward_jax.weights import clip, flux, t5, vae
from onereward_jax.weights.export import save_component
from onereward_jax.weights.load import load_component


def train_vae(config: ConfigDict, workdir: Path) -> None:
    """Trains the autoencoder of `config.vae` on scenes' right answers; exports workdir/export/vae.

    Its scaling and shift factors are measured on latents after training and stand in its config.json.
    """
    module = vae.module_from_config(dict(config.vae.model))
    optimizer = make_optimizer(**config.optimizer)
    loss = losses.vae_loss(module, config.vae.kl_weight, config.vae.edge_weight, config.vae.square_weight)
    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)
    state = trainer.train(
        config,
        workdir,
        step=supervised_step(loss, optimizer, config.vae.ema_decay),
        new_state=lambda: create_state(init_params(module, vae, config.seed), optimizer, config.seed),
        record=lambda index, task: {"image": ground.scene(index, task).target},
        description="autoencoder",
    )
    images = jnp.asarray(np.stack([ground.scene(i, "image_fill").target for i in range(256)]))
    scaling, shift = losses.latent_statistics(module, state.ema, images)
    module = module.clone(scaling_factor=scaling, shift_factor=shift)
    save_component(workdir / "export" / "vae", "vae", module, jax.device_get(state.ema))


def train_base(config: ConfigDict, workdir: Path) -> None:
    """Trains transformer and text encoders of `config.base` by flow matching on the autoencoder of
    `config.base.vae`; exports the whole model to workdir/export.

    A share `config.data.target_flaws` of the scenes shows a flawed answer, as pictures from the web would:
    that leaves reward feedback learning something to improve.
    """
    autoencoder, autoencoder_params = load_component(Path(config.base.vae), "vae", "float32")
    export = workdir / "export"
    corpus = list(all_prompts())
    clip_length = config.base.text_encoder.max_position_embeddings
    tokenizer = write_clip_tokenizer(export / "tokenizer", corpus, clip_length)
    tokenizer_2 = write_t5_tokenizer(export / "tokenizer_2", corpus)
    clip_vocabulary = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    modules = {
        "transformer": flux.module_from_config(dict(config.base.transformer)),
        "text_encoder": clip.module_from_config(dict(config.base.text_encoder) | clip_vocabulary),
        "text_encoder_2": t5.module_from_config(dict(config.base.text_encoder_2) | {"vocab_size": len(tokenizer_2)}),
    }
    weights = {"transformer": flux, "text_encoder": clip, "text_encoder_2": t5}
    optimizer = make_optimizer(**config.optimizer)
    shift = Shift()

    def new_state() -> TrainState:
        params = {name: init_params(modules[name], weights[name], config.seed) for name in modules}
        return create_state(params, optimizer, config.seed)

    def pipeline(params: Any) -> FillPipeline:
        return FillPipeline(
            modules["transformer"],
            autoencoder,
            {"transformer": params["transformer"], "vae": autoencoder_params},
            PromptEncoder(
                tokenizer,
                tokenizer_2,
                modules["text_encoder"],
                modules["text_encoder_2"],
                params["text_encoder"],
                params["text_encoder_2"],
            ),
            shift,
        )

    tokenize = pipeline(jax.eval_shape(new_state).params).prompts.tokenize
    latents = encoded_scenes(config, workdir, autoencoder, autoencoder_params, tokenize)
    empty_clip, empty_t5 = tokenize([""], config.max_sequence_length)

    def record(index: int, task: str) -> dict[str, np.ndarray]:
        row = index % config.base.scenes_per_task
        return {name: array[row] for name, array in latents[task].items()}

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(batch["index"])
        return batch | {
            "empty_clip_ids": np.repeat(empty_clip, rows, axis=0),
            "empty_t5_ids": np.repeat(empty_t5, rows, axis=0),
        }

    side = config.data.resolution // conditioning.vae_factor(autoencoder)
    loss = losses.flow_matching_loss(
        modules["transformer"],
        (side, side),
        modules["text_encoder"],
        modules["text_encoder_2"],
        prompt_dropout=config.base.prompt_dropout,
        shift=shift,
    )
    state = trainer.train(
        config,
        workdir,
        step=supervised_step(loss, optimizer, config.base.ema_decay),
        new_state=new_state,
        record=record,
        prepare=prepare,
        description="flow matching",
    )
    pipeline(jax.device_get(state.ema)).save_pretrained(export)


def encoded_scenes(
    config: ConfigDict, workdir: Path, autoencoder: Any, params: Any, tokenize: Callable, batch_size: int = 16
) -> dict[str, dict[str, np.ndarray]]:
    """Scenes through the autoencoder once, kept in workdir/latents: training then costs the transformer only.

    Returns:
      {task: {"data", "masked_image", "mask", "clip_ids", "t5_ids"}}, each with a row a scene.
    """
    ground = ProvingGround("train", config.data.resolution, config.data.seed, config.data.photos or None)
    encode = jax.jit(lambda p, *arrays: conditioning.encode_sample(autoencoder, p, *arrays))
    directory = workdir / "latents"
    directory.mkdir(parents=True, exist_ok=True)
    encoded = {}
    for task in tasks.TASKS:
        path = directory / f"{task}.npz"
        if not path.exists():
            parts = []
            for start in tqdm(range(0, config.base.scenes_per_task, batch_size), desc=f"encoding {task}"):
                scenes = [ground.scene(start + i, task, config.data.target_flaws) for i in range(batch_size)]
                stack = lambda pick: jnp.asarray(np.stack([pick(scene) for scene in scenes]))  # noqa: B023, E731
                arrays = encode(
                    params, stack(lambda s: s.sample.image), stack(lambda s: s.sample.mask), stack(lambda s: s.target)
                )
                clip_ids, t5_ids = tokenize([scene.sample.prompt for scene in scenes], config.max_sequence_length)
                parts.append(jax.device_get(arrays) | {"clip_ids": clip_ids, "t5_ids": t5_ids})
            partial = path.with_suffix(".partial.npz")
            joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            np.savez(partial, **joined)
            partial.replace(path)
        encoded[task] = dict(np.load(path))
    return encoded


def init_params(module: Any, weights: Any, seed: int) -> Any:
    """Fresh parameters of a module; `weights` is its file in `onereward_jax.weights`."""
    return jax.jit(module.init)(jax.random.key(seed), *weights.example_inputs(module))["params"]
