"""A mask-guided generator as a whole: prompts, image and mask in, pictures out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.files import read_json, whole_directory, write_json
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.prompts import PromptEncoder
from onereward_jax.flow.schedule import Shift, sigmas
from onereward_jax.weights.export import save_component
from onereward_jax.weights.load import load_component
from onereward_jax.weights.lora import is_adapter, with_adapters


@dataclasses.dataclass
class FillPipeline:
    """FLUX-Fill: transformer, autoencoder and the two text encoders, from a diffusers directory.

    Attributes:
      transformer, vae: modules; params: {"transformer": tree, "vae": tree}.
      prompts: text encoders with a cache.
      shift: resolution-dependent shift of the noise schedule (scheduler/scheduler_config.json).
    """

    transformer: Any
    vae: Any
    params: dict[str, Any]
    prompts: PromptEncoder
    shift: Shift

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: str = "float32") -> "FillPipeline":
        """Loads every component of a directory in diffusers layout.

        Raises:
          FileNotFoundError, ValueError: something is missing or does not fit; the sentence says what.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise FileNotFoundError(
                f"there is no model directory {directory}: give the path of a model in diffusers layout"
            )
        transformer, transformer_params = load_component(directory / "transformer", "transformer", dtype)
        vae, vae_params = load_component(directory / "vae", "vae", dtype)
        return cls(
            transformer=transformer,
            vae=vae,
            params={"transformer": transformer_params, "vae": vae_params},
            prompts=PromptEncoder.from_pretrained(directory),
            shift=read_shift(directory),
        )

    def save_pretrained(self, directory: str | Path, dtype: str = "float32") -> None:
        """Writes the directory that `from_pretrained` and diffusers' FluxFillPipeline open."""
        prompts = self.prompts
        components = {
            "transformer": (self.transformer, self.params["transformer"]),
            "vae": (self.vae, self.params["vae"]),
            "text_encoder": (prompts.text_encoder, prompts.text_encoder_params),
            "text_encoder_2": (prompts.text_encoder_2, prompts.text_encoder_2_params),
        }
        with whole_directory(Path(directory)) as partial:
            for name, (module, params) in components.items():
                save_component(partial / name, name, module, params, dtype)
            prompts.tokenizer.save_pretrained(partial / "tokenizer")
            prompts.tokenizer_2.save_pretrained(partial / "tokenizer_2")
            (partial / "scheduler").mkdir()
            write_json(partial / "scheduler" / "scheduler_config.json", _scheduler_config(self.shift))
            write_json(partial / "model_index.json", _MODEL_INDEX)

    def generate(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        prompts: Sequence[str],
        noise: jax.Array,
        *,
        transformer_params: Any = None,
        num_steps: int = 50,
        stop: int | None = None,
        guidance_scale: float = 30.0,
        true_cfg_scale: float = 1.0,
        negative_prompt: str = "",
        max_sequence_length: int = 512,
    ) -> np.ndarray:
        """Fills the masks of a batch.

        Args:
          images: uint8 (B, H, W, 3); masks: (B, H, W), 1 = generate; prompts: B of them.
          noise: standard normal (B, H/f, W/f, C).
          transformer_params: another parameter set for the same transformer; the pipeline's own if None.
          num_steps: Euler steps of the schedule.
          stop: index of the schedule at which to stop and predict the data in one step, as the policy
            does in training; None denoises fully.
          guidance_scale, true_cfg_scale, negative_prompt: see `sampler.velocity_of`.

        Returns:
          float32 (B, H, W, 3) in [0, 1].
        """
        prompt_embeds, pooled = self.prompts.encode(prompts, max_sequence_length)
        negative: tuple = (None, None)
        if true_cfg_scale != 1.0:
            negative = self.prompts.encode([negative_prompt] * len(prompts), max_sequence_length)
        params = {
            "transformer": self._on_devices("transformer") if transformer_params is None else transformer_params,
            "vae": self._on_devices("vae"),
        }
        schedule = sigmas(num_steps, noise.shape[1] * noise.shape[2] // 4, self.shift)
        pictures = _generate(
            params,
            jnp.asarray(images),
            jnp.asarray(masks),
            (prompt_embeds, pooled, *negative),
            noise,
            np.pad(schedule, (0, -len(schedule) % _SCHEDULE_BUCKET)),
            num_steps - 1 if stop is None else stop,
            guidance_scale,
            true_cfg_scale,
            transformer=self.transformer,
            vae=self.vae,
        )
        return np.asarray(pictures)

    def _on_devices(self, name: str) -> Any:
        """A component's parameters, moved there by the first call that needs them."""
        self.params[name] = jax.tree.map(jnp.asarray, self.params[name])
        return self.params[name]


def load_transformer(directory: str | Path, base: Any) -> Any:
    """Parameters of another transformer for a pipeline's, such as a policy's: `transformer_params` of `generate`.

    Args:
      directory: holds a transformer, or an adapter of `base`, the pipeline's own parameters.
    """
    if is_adapter(directory):
        return jax.tree.map(jnp.asarray, with_adapters("transformer", base, directory))
    return jax.tree.map(jnp.asarray, load_component(Path(directory), "transformer", "float32")[1])


# Schedules are padded to a multiple of this, so that one program serves all numbers of steps up to it.
_SCHEDULE_BUCKET = 64


@functools.partial(jax.jit, static_argnames=("transformer", "vae"))
def _generate(params, images, masks, text, noise, schedule, stop, guidance_scale, true_cfg_scale, *, transformer, vae):
    """Denoises to index `stop`, then predicts the data in one step; from the last index before σ = 0 that is
    the last Euler step."""
    height, width = noise.shape[1:3]
    ids = conditioning.image_ids(height, width)
    masked_image, mask = conditioning.encode_masked_image(vae, params["vae"], images, masks)
    condition = conditioning.Condition(masked_image, mask, *text)
    if condition.negative_prompt_embeds is None:
        true_cfg_scale = 1.0
    velocity = sampler.velocity_of(transformer, params["transformer"], condition, ids, guidance_scale, true_cfg_scale)
    tokens = sampler.denoise(velocity, conditioning.pack(noise), schedule, stop)
    tokens = sampler.predict_data(velocity, tokens, jnp.full(len(tokens), schedule[stop]))
    pictures = conditioning.decode_latents(vae, params["vae"], conditioning.unpack(tokens, height, width))
    return jnp.clip(conditioning.to_unit_range(pictures), 0.0, 1.0)


def sample_noise(key: jax.Array, index: Sequence[int] | np.ndarray, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal latents (B, h, w, C), each sample's from its own global index."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(jnp.asarray(index, jnp.int32))


def latent_shape(vae: Any, height: int, width: int) -> tuple[int, int, int]:
    """(h, w, C) of the latent of an H×W image.

    Raises:
      ValueError: a side is not a multiple of two latents.
    """
    factor = conditioning.vae_factor(vae)
    if height % (2 * factor) or width % (2 * factor):
        raise ValueError(f"an image of {width}×{height} does not divide into patches: use multiples of {2 * factor}")
    return height // factor, width // factor, vae.latent_channels


def read_shift(directory: Path) -> Shift:
    """The schedule's shift in a diffusers directory; FLUX's own where the file leaves a field out."""
    path = directory / "scheduler" / "scheduler_config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no scheduler/scheduler_config.json: download the whole model")
    config = read_json(path)
    fields = {field.name for field in dataclasses.fields(Shift)}
    return Shift(**{name: value for name, value in config.items() if name in fields})


def _scheduler_config(shift: Shift) -> dict:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        **dataclasses.asdict(shift),
    }


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
