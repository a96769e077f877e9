"""A mask-guided generator as a whole: prompts, image and mask in, pictures out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from PIL import Image

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.config.find import find_model
from onereward_jax.config.option import conform, like
from onereward_jax.config.schema import Evaluation, Recipe
from onereward_jax.errors import UserError, in_memory
from onereward_jax.fill.diffusers_io import FOLDERS, check_fit, read_shift, single_file, write_model_index
from onereward_jax.fill.prompts import PromptEncoder
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.conditioning import TextStates
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import Shift
from onereward_jax.images import reading
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding, traced_for
from onereward_jax.weights.bfl import open_bfl
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import PARAM_DTYPES, load_component, module_from_directory, open_component, param_shapes
from onereward_jax.weights.peft_adapters import Adapters, with_adapters
from onereward_jax.weights.save import write_component

OUTPUT_TYPES = ("pil", "array", "np")


@dataclasses.dataclass
class FillOutput:
    """What a call of `FillPipeline` gives.

    Attributes:
      images: B PIL images, or float32 (B, H, W, 3) in [0, 1].
    """

    images: list[Image.Image] | np.ndarray


@dataclasses.dataclass
class FillPipeline:
    """FLUX-Fill: transformer, autoencoder and the two text encoders, from a diffusers directory.

    Equals diffusers' FluxFillPipeline, plus true classifier-free guidance, as OneReward's transformers are run:
    `v = v_neg + s·(v_pos − v_neg)`, both branches with the same embedded guidance.

    Attributes:
      transformer, vae: modules; params: {"transformer": tree, "vae": tree}.
      prompts: text encoders with a cache.
      shift: resolution-dependent shift of the noise schedule (scheduler/scheduler_config.json).
      mesh: on which the parameters lie; None: one device, which they reach with the first call.
      vae_tile: pixels; a picture with a longer side is encoded and decoded in tiles of this size, see
        `conditioning.decode_latents`. None never cuts.
    """

    transformer: Any
    vae: Any
    params: dict[str, Any]
    prompts: PromptEncoder
    shift: Shift
    mesh: Mesh | None = None
    vae_tile: int | None = 1024

    @property
    def family(self) -> FluxFill:
        return FluxFill(self.transformer, self.vae, self.shift)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: str = "bfloat16",
        mesh: Mesh | None = None,
        transformer: str | Path | None = None,
        lora: Adapters = None,
        transformer_dtype: str | None = None,
        read: bool = True,
    ) -> "FillPipeline":
        """Loads every component of a model in diffusers layout.

        Args:
          path_or_repo: a directory, or a repository of the Hugging Face hub: "black-forest-labs/FLUX.1-Fill-dev".
          revision: branch, tag or commit of that repository; token: of an account that may read it.
          dtype: "bfloat16", or "float32" for training and exact comparisons: in which parameters are kept and products
            computed. Noise levels, latents between steps and pictures are float32 either way.
          mesh: every component's parameters are spread over it by the rules of `mesh`; None leaves transformer and
            autoencoder on the host until the first call, and puts the text encoders on one device.
          transformer: another transformer for this model: a directory, "owner/name:subfolder" of the hub, or one file
            with Black Forest Labs' names, such as an export for ComfyUI.
          lora: adapters of the transformer: a path, or several, each with a weight or without: `["a", ("b", 0.5)]`.
          transformer_dtype: in which the transformer's parameters are kept, if not in `dtype`: "float32" to train them.
          read: whether to read the parameters of transformer and text encoders; otherwise they are
            `weights.load.StoredParams`, to be read when and where they are needed.

        Raises:
          FileNotFoundError, PermissionError, UserError: something is missing or does not fit; the sentence says what.
        """
        file = None if transformer is None else single_file(find_model(transformer))
        folders = [folder for folder in FOLDERS if transformer is None or file or folder != "transformer"]
        directory = model_directory(path_or_repo, revision, token, folders)
        if not directory.is_dir():
            raise FileNotFoundError(
                f"there is no model directory {directory}: give the path of a model in diffusers layout"
            )
        at = directory / "transformer"
        if transformer is not None and file is None:
            at = model_directory(transformer, token=token)
        shift = read_shift(directory)
        fields: dict[str, Any] = {"dtype": jnp.dtype(dtype)} if dtype in PARAM_DTYPES else {}
        check_fit(directory, at)
        prompts = PromptEncoder.from_pretrained(directory, dtype, mesh, read)
        vae, vae_params = load_component(directory / "vae", "vae", dtype, fields, mesh)
        fields["attention_implementation"] = "auto"
        if file is None:
            module, stored = open_component(at, "transformer", fields)
        else:
            module = module_from_directory(at, "transformer", fields)
            stored = open_bfl(file, param_shapes(module, "transformer"))
        params: Any = stored.read(transformer_dtype or dtype, mesh) if read else stored
        if lora:
            params = with_adapters("transformer", params, lora)
        return cls(module, vae, {"transformer": params, "vae": vae_params}, prompts, shift, mesh)

    def save_pretrained(self, directory: str | Path, dtype: str = "float32") -> None:
        """Writes the directory that `from_pretrained` and diffusers' FluxFillPipeline open.

        Args:
          directory: new, empty or an earlier output, see `atomic_files.check_output`.
        """
        prompts = self.prompts
        components = {
            "transformer": (self.transformer, self.params["transformer"]),
            "vae": (self.vae, self.params["vae"]),
            "text_encoder": (prompts.text_encoder, prompts.text_encoder_params),
            "text_encoder_2": (prompts.text_encoder_2, prompts.text_encoder_2_params),
        }
        with atomic_directory(Path(directory)) as partial:
            for name, (module, params) in components.items():
                write_component(partial / name, name, module, params, dtype)
            prompts.tokenizer.save_pretrained(partial / "tokenizer")
            prompts.tokenizer_2.save_pretrained(partial / "tokenizer_2")
            write_model_index(partial, self.shift)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        mask_image: Any,
        negative_prompt: str | Sequence[str] | None = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 30.0,
        true_cfg_scale: float = 1.0,
        seed: int = 0,
        noise: Any = None,
        posterior: str = "sample",
        max_sequence_length: int = 512,
        output_type: str = "pil",
        true_cfg: float | None = None,
    ) -> FillOutput:
        """Fills the white part of the masks; one program is compiled for each size of pictures and number of them.

        Args:
          prompt: what the hole should show; one for all pictures, or one for each.
          image: PIL image, path, or uint8 (H, W, 3), or many of them: a list, or an array (B, H, W, 3). Of one size in
            a call. A size that is not divisible by 16 is padded at the right and the bottom by repeating the outermost
            pixels, of image and mask, and the pictures come back at the size that came in.
          mask_image: the same, of the image's size, white = generate; one for all pictures, or one for each.
          negative_prompt: what it should not show; read only if `true_cfg_scale` is not 1. None, the default of
            diffusers' pipelines, does without true guidance, as there.
          num_inference_steps: Euler steps.
          guidance_scale: the embedded guidance; 30 is FLUX.1-Fill's, OneReward's transformers are run with 1.
          true_cfg_scale: s of true guidance, which doubles the work; 1 does without. OneReward's run with 4. `true_cfg`
            is its other name.
          seed: of the noise, and of the posterior; each picture of a call has its own.
          noise: standard normal float32 (B, H/8, W/8, C), not packed, of the padded size: repeats the run of another
            program.
          posterior: "sample" draws the latents of the masked image as diffusers does, "mode" takes their mean.
          max_sequence_length: tokens that T5 reads.
          output_type: "pil", or "array" (diffusers' "np"): float32 (B, H, W, 3) in [0, 1] before any rounding.

        Raises:
          UserError: an input does not fit, the memory is too small, or the model produced NaN or Inf; the sentence says
            which.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"there is no output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        if posterior not in ("sample", "mode"):
            raise UserError(f"there is no posterior {posterior!r}: choose sample or mode")
        true_cfg_scale = true_cfg_scale if true_cfg is None else true_cfg
        if negative_prompt is None:
            negative_prompt, true_cfg_scale = "", 1.0
        seed = conform("seed", *like(Recipe, "seed"), seed)
        num_inference_steps = conform("num_inference_steps", *like(Evaluation, "num_steps"), num_inference_steps)
        guidance_scale = conform("guidance_scale", *like(Evaluation, "guidance_scale"), guidance_scale)
        true_cfg_scale = conform("true_cfg_scale", *like(Evaluation, "true_cfg_scale"), true_cfg_scale)
        many = reading.broadcast(
            {
                "image": reading.read_images(image),
                "mask_image": reading.read_masks(mask_image),
                "prompt": _texts(prompt),
                "negative_prompt": _texts(negative_prompt),
            }
        )
        count, height, width = _check_pictures(many["image"], many["mask_image"])
        images, masks = (
            np.stack([reading.pad_to_multiple(array, self.family.multiple) for array in many[name]])
            for name in ("image", "mask_image")
        )
        shape = (count, *self.family.latent_shape(*images.shape[1:3]))
        noise_key, posterior_key = jax.random.split(jax.random.key(seed))
        if noise is None:
            noise = sample_noise(noise_key, range(count), shape[1:])
        elif np.shape(noise) != shape:
            raise UserError(f"the noise has the shape {np.shape(noise)}, for these pictures it needs {shape}")
        with in_memory(f"{count} x {width} x {height} pixels", "fill fewer or smaller ones, or take more devices"):
            made = self.generate(
                images,
                masks,
                many["prompt"],
                jnp.asarray(noise, jnp.float32),
                num_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                true_cfg_scale=true_cfg_scale,
                negative_prompt=many["negative_prompt"],
                max_sequence_length=max_sequence_length,
                posterior_noise=sample_noise(posterior_key, range(count), shape[1:]) if posterior == "sample" else None,
            )[:, :height, :width]
        if not np.isfinite(made).all():
            raise UserError("the model produced NaN or Inf: lower the guidance scales, or check its weights")
        if output_type == "pil":
            return FillOutput([Image.fromarray(picture) for picture in np.round(made * 255).astype(np.uint8)])
        return FillOutput(made)

    def release_text_encoders(self) -> None:
        """Frees the text encoders; prompts that `prompts.encode` has seen before can still be used."""
        self.prompts.release()

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
        negative_prompt: str | Sequence[str] = "",
        max_sequence_length: int = 512,
        posterior_noise: jax.Array | None = None,
    ) -> np.ndarray:
        """Fills the masks of a batch of arrays: the denoising below `__call__`, and that of training and evaluation.

        Args:
          images: uint8 (B, H, W, 3); masks: (B, H, W), 1 = generate; prompts: B of them.
          noise: standard normal (B, H/f, W/f, C).
          transformer_params: another parameter set for the same transformer; the pipeline's own if None.
          num_steps: Euler steps of the schedule.
          stop: index of the schedule at which to stop and predict the data in one step, as the policy
            does in training; None denoises fully.
          guidance_scale, true_cfg_scale: see `sampler.velocity_of`; negative_prompt: one for all, or B of them.
          posterior_noise: see `conditioning.encode_image`.

        Returns:
          float32 (B, H, W, 3) in [0, 1].
        """
        text, negative = TextStates(*self.prompts.encode(prompts, max_sequence_length)), None
        if true_cfg_scale != 1.0:
            negatives = _texts(negative_prompt)
            negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
            negative = TextStates(*self.prompts.encode(negatives, max_sequence_length))
        params = {
            "transformer": self._on_devices("transformer") if transformer_params is None else transformer_params,
            "vae": self._on_devices("vae"),
        }
        batch = {
            "images": images,
            "masks": masks,
            "text": text,
            "negative": negative,
            "noise": noise,
            "posterior_noise": posterior_noise,
        }
        pictures = generating(
            params,
            self._placed(batch),
            padded_schedule(self.family, num_steps, *images.shape[1:3]),
            num_steps - 1 if stop is None else stop,
            guidance_scale,
            true_cfg_scale,
            family=self.family,
            tile=self.vae_tile and self.vae_tile // conditioning.vae_factor(self.vae),
            mesh=_mesh_of(params["transformer"]),
        )
        return hosts.fetch(pictures)

    def _placed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the devices: shared among them, if there is enough of it."""
        if self.mesh is not None:
            return hosts.place(batch, batch_sharding(self.mesh, len(batch["images"])))
        return jax.tree.map(jnp.asarray, batch)

    def _on_devices(self, name: str) -> Any:
        """A component's parameters, moved there by the first call that needs them."""
        self.params[name] = jax.tree.map(jnp.asarray, self.params[name])
        return self.params[name]


# Schedules are padded to a multiple of this, so that one program serves all numbers of steps up to it.
_SCHEDULE_BUCKET = 64
DENOISING = "denoising"  # name of the loop over the schedule in a program


def padded_schedule(family: FluxFill, num_steps: int, height: int, width: int) -> np.ndarray:
    """Noise levels as `generating` takes them, float32 (a multiple of `_SCHEDULE_BUCKET`,)."""
    schedule = family.schedule(num_steps, height, width)
    return np.pad(schedule, (0, -len(schedule) % _SCHEDULE_BUCKET))


def _mesh_of(params: Any) -> AbstractMesh | None:
    """Over which the parameters are spread, if they are."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))  # some may be on the host
    return next((s.mesh.abstract_mesh for s in shardings if isinstance(s, NamedSharding)), None)


@functools.partial(jax.jit, static_argnames=("family", "tile", "mesh"))
def generating(params, batch, schedule, stop, guidance_scale, true_cfg_scale, *, family, tile, mesh=None):
    """`_denoised` as the program of a mesh, which its attention and its activations go by."""
    made = traced_for(mesh, _denoised)
    return made(params, batch, schedule, stop, guidance_scale, true_cfg_scale, family, tile)


def _denoised(params, batch, schedule, stop, guidance_scale, true_cfg_scale, family, tile):
    """Denoises to index `stop`, then predicts the data in one step; from the last index before σ = 0 that is
    the last Euler step."""
    size = batch["masks"].shape[1:]
    requests = batch["images"], batch["masks"], batch["text"], batch["negative"]
    condition = family.condition(params["vae"], *requests, batch["posterior_noise"], tile)
    if batch["negative"] is None:
        true_cfg_scale = 1.0
    velocity = family.velocity(params["transformer"], condition, size, guidance_scale, true_cfg_scale)
    with jax.named_scope(DENOISING):
        tokens = sampler.denoise(velocity, conditioning.pack(batch["noise"]), schedule, stop)
    tokens = sampler.predict_data(velocity, tokens, jnp.full(len(tokens), schedule[stop]))
    return jnp.clip(family.decode(params["vae"], tokens, size, tile), 0.0, 1.0)


def _texts(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _check_pictures(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Number, height and width of the images.

    Raises:
      UserError: they have different sizes, or a mask has another one than its image.
    """
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        one = len(images) == 1
        reading.check_size(image, mask, ("the image", "the mask") if one else (f"image {number}", f"mask {number}"))
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise UserError(f"the images of one call have different sizes ({shown}): make a call for each size")
    return (len(images), *sizes.pop())


def sample_noise(key: jax.Array, index: Sequence[int] | np.ndarray, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal latents (B, h, w, C), each sample's from its own global index."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(jnp.asarray(index, jnp.int32))
