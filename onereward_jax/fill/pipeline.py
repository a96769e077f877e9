"""A mask-guided generator as a whole: prompts, image and mask in, pictures out."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from PIL import Image

from onereward_jax.atomic_files import atomic_directory
from onereward_jax.config.find import find_model
from onereward_jax.errors import UserError, in_memory
from onereward_jax.fill import denoising, inputs
from onereward_jax.fill.denoising import Batch, Setup
from onereward_jax.fill.diffusers_io import FOLDERS, check_fit, read_shift, single_file, write_model_index
from onereward_jax.fill.prompts import PromptEncoder
from onereward_jax.flow import conditioning
from onereward_jax.flow.conditioning import TextStates
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import Shift
from onereward_jax.parallel import hosts
from onereward_jax.parallel.activations import batch_sharding
from onereward_jax.weights.bfl import open_bfl
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import PARAM_DTYPES, load_component, module_from_directory, open_component, param_shapes
from onereward_jax.weights.peft_adapters import Adapters, with_adapters
from onereward_jax.weights.save import write_component


class FillOutput(NamedTuple):
    """What a call of `FillPipeline` gives, by name or as the one element of a tuple.

    Attributes:
      images: B PIL images, or float32 (B, H, W, 3) in [0, 1], or of `output_type="latent"` float32 (B, N, 4C).
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
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = inputs.CALLBACK_TENSORS  # this and the next as in diffusers
    # Of the call whose callback runs.
    _guidance_scale: float = dataclasses.field(default=0.0, init=False, repr=False, compare=False)
    _num_timesteps: int = dataclasses.field(default=0, init=False, repr=False, compare=False)
    _interrupt: bool = dataclasses.field(default=False, init=False, repr=False, compare=False)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

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
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 30.0,
        num_images_per_prompt: int = 1,
        generator: int | Sequence[int] | None = None,
        latents: Any = None,
        prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        negative_prompt: str | Sequence[str] | None = "",
        negative_prompt_2: str | Sequence[str] | None = None,
        negative_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        true_cfg_scale: float = 1.0,
        true_cfg: float | None = None,
        seed: int = 0,
        noise: Any = None,
        posterior: Any = "sample",
        **unknown: Any,
    ) -> FillOutput:
        """Fills the white part of the masks; one program is compiled for each size of pictures and number of them.

        Takes what diffusers' FluxFillPipeline takes, and the negative arguments of its FluxPipeline.

        Args:
          prompt: what the hole should show; one for all pictures, or one for each.
          prompt_2: what T5 reads, if not the same as CLIP.
          image: PIL image, path, or uint8 (H, W, 3), or many of them: a list, or an array (B, H, W, 3). Of one size in
            a call. A size that is not divisible by 16 is padded at the right and the bottom by repeating the outermost
            pixels, of image and mask, and the pictures come back at the size that came in.
          mask_image: the same, of the image's size, white = generate; one for all pictures, or one for each.
          masked_image_latents: in place of `image`: what it is encoded to, packed and normalised, float32 (B, N, 4C)
            with `mask_image` beside it, or (B, N, 4C + 4f²) with the packed mask in it, as diffusers has it.
          height, width: of the pictures; image and mask are resized to it by Pillow's Lanczos filter. Rounded down to a
            multiple of 16. None: as the image.
          strength: share of the schedule that is run, from the image's own latents with that much noise; 1 starts from
            noise alone.
          num_inference_steps: Euler steps.
          sigmas: noise levels before the shift, in place of `num_inference_steps`.
          guidance_scale: the embedded guidance; 30 is FLUX.1-Fill's, OneReward's transformers are run with 1.
          num_images_per_prompt: pictures of each prompt and image, which come one after the other.
          generator: a seed as `seed`, or a list of one for each picture: each picture is what it is alone.
          latents: packed float32 (B, N, 4C) at the first noise level: repeats the run of another program. JAX draws
            other noise of a seed than torch.
          prompt_embeds, pooled_prompt_embeds: in place of `prompt`: T5's states (B, L, D) and CLIP's (B, P).
          output_type: "pil"; "array" (diffusers' "np"), float32 (B, H, W, 3) in [0, 1] before any rounding; or
            "latent", packed float32 (B, N, 4C).
          return_dict: makes no difference: a `FillOutput` is a tuple.
          joint_attention_kwargs: not taken; adapters have their weights from `from_pretrained`.
          callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step, which is then
            a program of its own; returns `tensors`, changed or not. `pipeline._interrupt = True` ends with this step.
          callback_on_step_end_tensor_inputs: of "latents" and "prompt_embeds", those that are in `tensors`.
          max_sequence_length: tokens that T5 reads.
          negative_prompt: what it should not show; read only if `true_cfg_scale` is not 1. None, the default of
            diffusers' pipelines, does without true guidance, as there.
          negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds: as of `prompt`.
          true_cfg_scale: s of true guidance, which doubles the work; 1 does without. OneReward's run with 4. `true_cfg`
            is its other name.
          seed: of the noise, and of the posterior; each picture of a call has its own.
          noise: standard normal float32 (B, H/8, W/8, C), not packed, of the padded size, in place of that of a seed.
          posterior: "sample" draws the latents of the masked image as diffusers does, "mode" takes their mean; or
            standard normal noise to draw them with, of the shape of `noise`.

        Raises:
          UserError: an input does not fit, the memory is too small, or the model produced NaN or Inf; the sentence says
            which.
        """
        # Check inputs.
        inputs.check_names(unknown, joint_attention_kwargs, list(inspect.signature(self.__call__).parameters))
        inputs.choice("output_type", output_type, inputs.OUTPUT_TYPES)
        tensor_names = inputs.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        max_sequence_length = inputs.number("max_sequence_length", max_sequence_length)
        guidance_scale = inputs.number("guidance_scale", guidance_scale)
        true_cfg_scale = inputs.number("true_cfg_scale", true_cfg_scale if true_cfg is None else true_cfg)
        pictures = inputs.read_pictures(image, mask_image, masked_image_latents, height, width, self.family)
        prompts = inputs.read_prompts(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds, self.transformer)
        negatives = None
        if true_cfg_scale != 1.0:
            encoded = negative_prompt_embeds, negative_pooled_prompt_embeds
            negatives = inputs.read_negative_prompts(negative_prompt, negative_prompt_2, *encoded, self.transformer)
        count = inputs.count(pictures, prompts, negatives, num_images_per_prompt)
        num_tokens, channels = self.family.token_shape(*pictures.padded)
        schedule = inputs.noise_levels(num_inference_steps, sigmas, strength, num_tokens, self.shift)
        seeds = inputs.seeds(seed, generator, count)
        drawn, drawn_posterior = _draw(seeds, (count, *self.family.latent_shape(*pictures.padded)))
        noise = drawn if noise is None else inputs.array("noise", noise, drawn.shape)
        posterior_noise = inputs.posterior_noise(posterior, drawn_posterior)
        if latents is not None:
            latents = inputs.array("latents", latents, (count, num_tokens, channels))
        elif schedule[0] < 1 and pictures.images is None:
            raise UserError("the first noise level is below 1 and starts from the image: give image, or latents")

        size = pictures.size
        with in_memory(f"{count} x {size[1]} x {size[0]} pixels", "fill fewer or smaller ones, or take more devices"):
            # Encode prompts.
            text, negative = self._encoded(prompts, max_sequence_length), None
            if negatives is not None:
                negative = self._encoded(negatives, max_sequence_length)
                inputs.check_lengths(text, negative)

            # Prepare latents.
            given = text, negative, pictures.images, pictures.masks, posterior_noise, pictures.latents
            batch = Batch(latents, *inputs.repeated(given, count))
            if latents is None:
                batch = dataclasses.replace(batch, tokens=self._start(batch, noise, schedule[0]))

            # Denoise and decode.
            scales, decodes = (guidance_scale, true_cfg_scale), output_type != "latent"
            if callback_on_step_end is None:
                made = self._fill(batch, pictures.padded, schedule, scales, decodes=decodes)
            else:
                look = callback_on_step_end, tensor_names
                made = self._fill_by_steps(batch, pictures.padded, schedule, scales, *look, decodes=decodes)

        if not np.isfinite(made).all():
            raise UserError("the model produced NaN or Inf: lower the guidance scales, or check its weights")
        if output_type == "latent":
            return FillOutput(made)
        made = made[:, : size[0], : size[1]]
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
        num_steps: int | Sequence[int] = 50,
        stop: int | None = None,
        guidance_scale: float | Sequence[float] = 30.0,
        true_cfg_scale: float | Sequence[float] = 1.0,
        negative_prompt: str | Sequence[str] = "",
        max_sequence_length: int = 512,
        posterior_noise: jax.Array | None = None,
    ) -> np.ndarray:
        """Fills the masks of a batch of arrays: the denoising below `__call__`, and that of training and evaluation.

        Args:
          images: uint8 (B, H, W, 3); masks: (B, H, W), 1 = generate; prompts: B of them.
          noise: standard normal (B, H/f, W/f, C).
          transformer_params: another parameter set for the same transformer; the pipeline's own if None.
          num_steps: Euler steps of the schedule, one number for all or B of them: the batch takes as long as the most.
          stop: index of the schedule at which to stop and predict the data in one step, as the policy
            does in training; None denoises fully.
          guidance_scale, true_cfg_scale: see `sampler.velocity_of`; one for all, or B of them, as the negative_prompt.
            A batch without any true guidance, all 1, takes half the work.
          posterior_noise: see `conditioning.encode_image`.

        Returns:
          float32 (B, H, W, 3) in [0, 1].
        """
        text, negative = TextStates(*self.prompts.encode(prompts, max_sequence_length)), None
        if np.any(np.asarray(true_cfg_scale) != 1.0):
            negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
            negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
            negative = TextStates(*self.prompts.encode(negatives, max_sequence_length))
        size = images.shape[1], images.shape[2]
        last: Any
        if isinstance(num_steps, int):
            schedule, last = self.family.schedule(num_steps, *size), num_steps - 1
        else:
            each = [self.family.schedule(number, *size) for number in num_steps]
            schedule = np.stack([np.pad(one, (0, max(map(len, each)) - len(one))) for one in each], axis=1)
            last = np.asarray(num_steps, np.int32) - 1
        return self._fill(
            Batch(conditioning.pack(noise), text, negative, images, masks, posterior_noise),
            size,
            schedule,
            (_scale(guidance_scale), _scale(true_cfg_scale)),
            stop=last if stop is None else stop,
            transformer_params=transformer_params,
        )

    def _encoded(self, prompts: inputs.Prompts, max_sequence_length: int) -> TextStates:
        return prompts.states or TextStates(*self.prompts.encode(prompts.clip, max_sequence_length, prompts.t5))

    def _start(self, batch: Batch, noise: Any, sigma: float) -> jax.Array:
        """Tokens at the first noise level: noise, and below σ = 1 the images in it."""
        noise = jnp.asarray(noise, jnp.float32)
        if sigma == 1:
            return conditioning.pack(noise)
        params = self._on_devices("vae")
        images, posterior_noise, noise = self._placed((batch.images, batch.posterior_noise, noise))
        setup = self._setup(batch.images.shape[1:3], params)
        return denoising.partly_noised(params, images, posterior_noise, noise, sigma, setup=setup)

    def _fill(
        self,
        batch: Batch,
        size: tuple[int, int],
        schedule: np.ndarray,
        scales: tuple[Any, Any],
        *,
        stop: Any = None,
        transformer_params: Any = None,
        decodes: bool = True,
    ) -> np.ndarray:
        """Denoise in one program: images, or tokens if it `decodes` not."""
        params = self._params(transformer_params)
        made = (denoising.fill if decodes else denoising.denoise)(
            params,
            self._placed(batch),
            denoising.padded(schedule),
            len(schedule) - 2 if stop is None else stop,
            scales,
            setup=self._setup(size, params["transformer"]),
        )
        return hosts.fetch(made)

    def _fill_by_steps(
        self,
        batch: Batch,
        size: tuple[int, int],
        schedule: np.ndarray,
        scales: tuple[float, float],
        callback: Callable[..., Any],
        tensor_names: Sequence[str],
        *,
        decodes: bool = True,
    ) -> np.ndarray:
        """`_fill`, with the callback after every step."""
        params, batch = self._params(), self._placed(batch)
        setup = self._setup(size, params["transformer"])
        self._guidance_scale, self._num_timesteps, self._interrupt = scales[0], len(schedule) - 1, False
        condition = denoising.encode(params["vae"], batch, setup=setup)
        tensors = {"latents": batch.tokens, "prompt_embeds": condition.prompt_embeds}
        for place, (sigma, next_sigma) in enumerate(itertools.pairwise(schedule)):
            condition = condition.replace(prompt_embeds=tensors["prompt_embeds"])
            levels = sigma, next_sigma
            tensors["latents"] = denoising.step(
                params["transformer"], condition, tensors["latents"], *levels, scales, setup=setup
            )
            tensors = self._placed(inputs.call_back(callback, tensor_names, self, place, sigma, tensors))
            if self._interrupt:
                break
        tokens = tensors["latents"]
        return hosts.fetch(denoising.decode(params["vae"], tokens, setup=setup) if decodes else tokens)

    def _setup(self, size: tuple[int, int], params: Any) -> Setup:
        tile = self.vae_tile and self.vae_tile // conditioning.vae_factor(self.vae)
        return Setup(self.family, size, tile, _mesh_of(params))

    def _params(self, transformer_params: Any = None) -> dict[str, Any]:
        """On the devices; `transformer_params` in the place of the pipeline's own."""
        own = transformer_params is None
        return {
            "transformer": self._on_devices("transformer") if own else transformer_params,
            "vae": self._on_devices("vae"),
        }

    def _placed(self, batch: Any) -> Any:
        """Arrays of B samples on the devices: shared among them, if there are enough."""
        if self.mesh is not None:
            return hosts.place(batch, batch_sharding(self.mesh, len(jax.tree.leaves(batch)[0])))
        return jax.tree.map(jnp.asarray, batch)

    def _on_devices(self, name: str) -> Any:
        """A component's parameters, moved there by the first call that needs them."""
        self.params[name] = jax.tree.map(jnp.asarray, self.params[name])
        return self.params[name]


def _scale(scale: float | Sequence[float]) -> Any:
    """One scale for all samples, or float32 (B,) one for each."""
    return scale if isinstance(scale, int | float) else np.asarray(scale, np.float32)


def _mesh_of(params: Any) -> AbstractMesh | None:
    """Over which the parameters are spread, if they are."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))  # some may be on the host
    return next((s.mesh.abstract_mesh for s in shardings if isinstance(s, NamedSharding)), None)


def _draw(seeds: int | list[int], shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Noise (B, h, w, C) and as much for the posterior: of one seed, or of one for each sample as if it were alone."""
    if isinstance(seeds, int):
        draw = lambda key: sample_noise(key, range(shape[0]), shape[1:])
        of_noise, of_posterior = jax.random.split(jax.random.key(seeds))
        return draw(of_noise), draw(of_posterior)
    noise, posterior_noise = zip(*(_draw(seed, (1, *shape[1:])) for seed in seeds), strict=True)
    return jnp.concatenate(noise), jnp.concatenate(posterior_noise)


def sample_noise(key: jax.Array, index: Sequence[int] | np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal latents (B, h, w, C), each sample's from its own global index."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(jnp.asarray(index, jnp.int32))
