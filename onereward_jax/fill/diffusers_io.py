"""The files of a FLUX-Fill model in the layout of diffusers: what a directory holds, and whether it fits together."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.atomic_files import write_json
from onereward_jax.errors import UserError
from onereward_jax.flow import conditioning
from onereward_jax.flow.schedule import Shift
from onereward_jax.given_files import read_json
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import load_component, module_from_directory
from onereward_jax.weights.peft_adapters import is_adapter, with_adapters

FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_MODEL_INDEX = {
    "_class_name": "FluxFillPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def load_transformer(directory: str | Path, base: Any) -> Any:
    """Parameters of another transformer for a pipeline's, such as a policy's: `transformer_params` of `generate`.

    Args:
      directory: holds a transformer, or an adapter of `base`, the pipeline's own parameters.
    """
    if is_adapter(directory):
        return jax.tree.map(jnp.asarray, with_adapters("transformer", base, directory))
    return jax.tree.map(jnp.asarray, load_component(Path(directory), "transformer", "float32")[1])


def check_fill_model(path_or_repo: str | Path) -> None:
    """Looks at the configurations of a model, not at its weights.

    Raises:
      FileNotFoundError, PermissionError, UserError: it is missing, or no Fill model.
    """
    directory = model_directory(path_or_repo, folders=FOLDERS)
    check_fit(directory, directory / "transformer")


def check_fit(directory: Path, transformer: Path) -> None:
    """That the components are of one Fill model, as their configurations say.

    Raises:
      FileNotFoundError, UserError: one is missing, or takes what another doesn't give.
    """
    flux = module_from_directory(transformer, "transformer")
    vae = module_from_directory(directory / "vae", "vae")
    clip = module_from_directory(directory / "text_encoder", "text_encoder")
    t5 = module_from_directory(directory / "text_encoder_2", "text_encoder_2")
    latent = 4 * vae.latent_channels
    wanted: Mapping[str, tuple[int, str]] = {
        "out_channels": (latent, "the latents of the autoencoder"),
        "in_channels": (
            2 * latent + 4 * conditioning.vae_factor(vae) ** 2,
            "a Fill model: latents, masked image, mask",
        ),
        "joint_attention_dim": (t5.d_model, "the states of text_encoder_2"),
        "pooled_projection_dim": (clip.hidden_size, "the states of text_encoder"),
    }
    for field, (number, what) in wanted.items():
        if getattr(flux, field) != number:
            raise UserError(
                f"{transformer / 'config.json'} has {field} {getattr(flux, field)}, but it is {number} for {what}:"
                " give a transformer of the same FLUX.1-Fill"
            )


def read_shift(directory: Path) -> Shift:
    """The schedule's shift in a diffusers directory; FLUX's own where the file leaves a field out."""
    path = directory / "scheduler" / "scheduler_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no scheduler/scheduler_config.json: download the whole model")
    config = read_json(path)
    fields = {field.name for field in dataclasses.fields(Shift)}
    return Shift(**{name: value for name, value in config.items() if name in fields})


def write_model_index(directory: Path, shift: Shift) -> None:
    """Writes what a diffusers directory holds beside its components: model_index.json and the scheduler."""
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        **dataclasses.asdict(shift),
    }
    (directory / "scheduler").mkdir()
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    write_json(directory / "model_index.json", _MODEL_INDEX)
