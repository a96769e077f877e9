"""The files of a FLUX-Fill model in the layout of diffusers: what a directory holds, and whether it fits together."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from onereward_jax.atomic_files import write_json
from onereward_jax.errors import UserError, shown, shown_name
from onereward_jax.flow import conditioning
from onereward_jax.flow.schedule import Shift
from onereward_jax.given_files import read_json
from onereward_jax.models.fields import from_config
from onereward_jax.weights.bfl import open_bfl
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import load_component, module_from_directory
from onereward_jax.weights.peft_adapters import is_adapter, with_adapters

FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
COMFYUI_FILE = "transformer.safetensors"  # of an export for ComfyUI
_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Fields of its configuration that change the schedule in ways that are not supported.
_ONLY_SUPPORTED: dict[str, int | bool] = {
    "num_train_timesteps": 1000,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}
_MODEL_INDEX = {
    "_class_name": "FluxFillPipeline",
    "scheduler": ["diffusers", _SCHEDULER],
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
      directory: holds a transformer, or an adapter of `base`, the pipeline's own parameters; or a file, see
        `single_file`.
    """
    if file := single_file(directory):
        return jax.tree.map(jnp.asarray, open_bfl(file, base).read())
    if is_adapter(directory):
        return jax.tree.map(jnp.asarray, with_adapters("transformer", base, directory))
    return jax.tree.map(jnp.asarray, load_component(Path(directory), "transformer", "float32")[1])


def single_file(path: str | Path) -> Path | None:
    """The file of a transformer with Black Forest Labs' names, such as that of an export for ComfyUI: the path itself,
    or in the export's directory; None if the path is of something else."""
    path = Path(path)
    inside = path / COMFYUI_FILE
    if inside.is_file() and not (path / "config.json").is_file():
        return inside
    return path if path.suffix == ".safetensors" and path.is_file() else None


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
    """The schedule's shift in a diffusers directory; diffusers' defaults where the file leaves a field out.

    Raises:
      FileNotFoundError: there is no scheduler_config.json.
      UserError: it is damaged, or describes a schedule that is not supported; the message names it.
    """
    path = directory / "scheduler" / "scheduler_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no scheduler/scheduler_config.json: download the whole model")
    config = read_json(path)
    name = config.get("_class_name", _SCHEDULER)
    if name != _SCHEDULER:
        raise UserError(f"{path} describes a {shown_name(str(name))}, but only {_SCHEDULER} is supported: use it")
    for field, value in _ONLY_SUPPORTED.items():
        if config.get(field, value) not in (value, None):
            raise UserError(f"{path} has {field} {shown(config[field])}, but only {value} is supported: change it")
    names = {field.name for field in dataclasses.fields(Shift)}
    given = {field: value for field, value in config.items() if field in names and value is not None}
    if not given.get("shift_terminal", True):  # 0 is off
        del given["shift_terminal"]
    try:
        return from_config(Shift, {"use_dynamic_shifting": False, "shift": 1.0} | given, {}, "the scheduler")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_model_index(directory: Path, shift: Shift) -> None:
    """Writes what a diffusers directory holds beside its components: model_index.json and the scheduler."""
    scheduler = {
        "_class_name": _SCHEDULER,
        "num_train_timesteps": 1000,
        **dataclasses.asdict(shift),
    }
    (directory / "scheduler").mkdir()
    write_json(directory / "scheduler" / "scheduler_config.json", scheduler)
    write_json(directory / "model_index.json", _MODEL_INDEX)
