"""What a call of `FillPipeline` takes: checked and read, or told in one sentence what does not fit.

Shapes as in `flow.conditioning`: H×W pixels, latents (h, w, C), N tokens of 4C channels, f pixels a latent.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.config.option import Option, conform, did_you_mean, like
from onereward_jax.config.schema import Evaluation, Recipe, RewardFeedback
from onereward_jax.errors import UserError, shown, shown_name
from onereward_jax.flow.conditioning import TextStates, pack_mask, vae_factor
from onereward_jax.flow.flux_fill import FluxFill
from onereward_jax.flow.schedule import Shift, shifted, sigmas
from onereward_jax.images import reading
from onereward_jax.images.decoding import MAX_PIXELS

OUTPUT_TYPES = ("pil", "array", "np", "latent")
POSTERIORS = ("sample", "mode")
CALLBACK_TENSORS = ("latents", "prompt_embeds")
_STEPS = like(Evaluation, "num_steps")
_KINDS: dict[str, tuple[type, Option]] = {
    "num_inference_steps": _STEPS,
    "guidance_scale": like(Evaluation, "guidance_scale"),
    "true_cfg_scale": like(Evaluation, "true_cfg_scale"),
    "max_sequence_length": like(RewardFeedback, "max_sequence_length"),
    "seed": like(Recipe, "seed"),
    "generator": like(Recipe, "seed"),
    "strength": (float, Option(at_least=0, at_most=1)),
    "num_images_per_prompt": (int, Option(at_least=1, at_most=10_000)),
    "height": (int, Option(at_least=1, at_most=MAX_PIXELS)),
    "width": (int, Option(at_least=1, at_most=MAX_PIXELS)),
}


def number(name: str, value: Any) -> Any:
    """The value of an argument that is a number.

    Raises:
      UserError: it is none, or out of range.
    """
    return conform(name, *_KINDS[name], value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """The value of an argument that is one of a few words.

    Raises:
      UserError: it is another.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"there is no {name} {shown(value)}: choose one of {', '.join(choices)}")
    return value


def check_names(unknown: Mapping[str, Any], joint_attention_kwargs: Any, known: Sequence[str]) -> None:
    """Refuse arguments that there are not, and the one that is for diffusers' attention processors.

    Raises:
      UserError: there is one.
    """
    if joint_attention_kwargs:
        raise UserError("joint_attention_kwargs are not taken: give an adapter its weight by from_pretrained(lora=)")
    for name in unknown:
        raise UserError(f"a fill has no argument {shown_name(name)}{did_you_mean(name, known)}")


def array(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Numbers of a shape, in which None is any length: as they are in half precision, else float32.

    Args:
      value: of NumPy, JAX, or whatever else gives NumPy an array, such as a tensor of torch on the CPU.

    Raises:
      UserError: they are none, of another shape, or not finite.
    """
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on another device, or with a gradient
        raise UserError(f"{name} can't be read as a NumPy array ({error}): give one") from None
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(f"{name} is an array of {found.dtype}: give float32")
    wanted = tuple(size if want is None else want for want, size in zip(shape, found.shape, strict=False))
    if found.shape != wanted or found.ndim != len(shape) or not found.size:
        form = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"{name} has the shape {found.shape}: here it needs ({form})")
    if not np.isfinite(found.astype(np.float32)).all():
        raise UserError(f"{name} has NaN or Inf: give finite numbers")
    return found if found.dtype.itemsize == 2 else found.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- prompts


class Prompts(NamedTuple):
    """Of one branch of the guidance, P of them.

    Attributes:
      clip, t5: texts, as the two encoders read them.
      states: in their place, where they came encoded.
    """

    clip: list[str]
    t5: list[str]
    states: TextStates | None = None

    def __len__(self) -> int:
        return len(self.clip) if self.states is None else len(self.states.prompt_embeds)


def read_prompts(
    prompt: Any, prompt_2: Any, prompt_embeds: Any, pooled_prompt_embeds: Any, transformer: Any, negative: str = ""
) -> Prompts:
    """The arguments of those names, with "negative_" before them or not.

    Raises:
      UserError: they don't fit together, or are neither texts nor encodings for this transformer.
    """
    plain, second, embeds, pooled = (
        f"{negative}{name}" for name in ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds")
    )
    if (prompt_embeds is None) != (pooled_prompt_embeds is None):
        raise UserError(f"{embeds} and {pooled} go together: give both, or neither")
    if prompt_embeds is not None:
        if prompt is not None or prompt_2 is not None:
            raise UserError(f"give {plain} and {second}, or {embeds}, not both")
        states = array(embeds, prompt_embeds, (None, None, transformer.joint_attention_dim))
        return Prompts(
            [],
            [],
            TextStates(states, array(pooled, pooled_prompt_embeds, (len(states), transformer.pooled_projection_dim))),
        )
    if prompt is None:
        raise UserError(f"there is no {plain}: give one, or {embeds} and {pooled}")
    clip, t5 = _texts(plain, prompt), _texts(second, prompt_2 or prompt)
    count = reading.common_number({plain: len(clip), second: len(t5)})
    return Prompts(clip * (count // len(clip)), t5 * (count // len(t5)))


def read_negative_prompts(prompt: Any, prompt_2: Any, embeds: Any, pooled: Any, transformer: Any) -> Prompts | None:
    """The negative arguments of `read_prompts`; None where there is none of them.

    Raises:
      UserError: see there.
    """
    if embeds is not None and prompt == "":  # the default
        prompt = None
    if all(given is None for given in (prompt, prompt_2, embeds, pooled)):
        return None
    return read_prompts(prompt, prompt_2, embeds, pooled, transformer, "negative_")


def check_lengths(text: TextStates, negative: TextStates) -> None:
    """Refuse prompts of other numbers of tokens than the negative ones.

    Raises:
      UserError: they differ.
    """
    lengths = text.prompt_embeds.shape[1], negative.prompt_embeds.shape[1]
    if lengths[0] != lengths[1]:
        raise UserError(
            f"the prompts have {lengths[0]} tokens, the negative ones {lengths[1]}: give both as many, or as texts"
        )


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} is {shown(given)}: give a text, or a list of texts")
    return list(texts)


# ----------------------------------------------------------------------------------------------------------- images


class Pictures(NamedTuple):
    """Images and masks of one size.

    Attributes:
      images: uint8 (I, H', W', 3), padded; None where they come as `latents`.
      masks: uint8 (M, H', W'), 1 = generate, padded; None where `latents` hold them.
      latents: packed, of masked images and masks: float32 (L, N, 4C + 4f²).
      size: (H, W) of what comes out; padded: (H', W').
    """

    images: np.ndarray | None
    masks: np.ndarray | None
    latents: np.ndarray | None
    size: tuple[int, int]
    padded: tuple[int, int]

    def numbers(self) -> dict[str, int]:
        """How many there are of each that is given, by the argument's name."""
        many = {"image": self.images, "mask_image": self.masks, "masked_image_latents": self.latents}
        return {name: len(given) for name, given in many.items() if given is not None}


def read_pictures(
    image: Any, mask_image: Any, masked_image_latents: Any, height: Any, width: Any, family: FluxFill
) -> Pictures:
    """The arguments of those names.

    Raises:
      UserError, OSError: they can't be read, or don't fit together.
    """
    if image is None and masked_image_latents is None:
        raise UserError("there is no image: give image and mask_image, or masked_image_latents")
    if image is not None and masked_image_latents is not None:
        raise UserError("give image and mask_image, or masked_image_latents, not both")
    if image is not None and mask_image is None:
        raise UserError("there is no mask_image: give a mask of the image's size, white where to generate")
    read_images = None if image is None else reading.read_images(image)
    read_masks = None if mask_image is None else reading.read_masks(mask_image)
    multiple = family.multiple
    size = _size(_common_size(read_images, read_masks), height, width, multiple)
    fit = lambda change, arrays: np.stack([reading.pad_to_multiple(change(one, *size), multiple) for one in arrays])
    masks = None if read_masks is None else fit(reading.resize_mask, read_masks)
    padded = (size[0] + -size[0] % multiple, size[1] + -size[1] % multiple)
    if read_images is None:
        return Pictures(None, None, _with_mask(masked_image_latents, masks, family, padded), size, padded)
    return Pictures(fit(reading.resize, read_images), masks, None, size, padded)


def _common_size(images: Sequence[np.ndarray] | None, masks: Sequence[np.ndarray] | None) -> tuple[int, int] | None:
    """(H, W) of all images and masks, if there are any.

    Raises:
      UserError: they have different sizes.
    """
    first, word = (masks, "mask") if images is None else (images, "image")
    if first is None:
        return None
    sizes = {one.shape[:2] for one in first}
    if len(sizes) > 1:
        given = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise UserError(f"the {word}s of one call have different sizes ({given}): make a call for each size")
    for place, mask in enumerate(masks or ()):
        names = f"{word} 0" if len(first) > 1 else f"the {word}", f"mask {place}" if place else "the mask"
        reading.check_size(first[0], mask, names)
    height, width = sizes.pop()
    return height, width


def _size(own: tuple[int, int] | None, height: Any, width: Any, multiple: int) -> tuple[int, int]:
    """(H, W) of what comes out: as asked, rounded down to tokens as diffusers does, else that of the images.

    Raises:
      UserError: there is no such size.
    """
    if own is None and (height is None or width is None):
        raise UserError("masked_image_latents do not tell the size of the images: give height and width")
    size = []
    for name, given, there in zip(("height", "width"), (height, width), own or (0, 0), strict=True):
        side = there if given is None else number(name, given)
        side -= 0 if given is None else side % multiple
        if side < 1:
            raise UserError(f"{name} is {given}: give a multiple of {multiple} pixels")
        if given not in (None, side):
            warnings.warn(f"{name} {given} is no multiple of {multiple}: the images get {side}", stacklevel=4)
        size.append(side)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"images of {size[1]}x{size[0]} are too large: ask for at most {MAX_PIXELS} pixels")
    return size[0], size[1]


def _with_mask(given: Any, masks: np.ndarray | None, family: FluxFill, padded: tuple[int, int]) -> np.ndarray:
    """`masked_image_latents` with the masks behind them: float32 (L, N, 4C + 4f²).

    Args:
      given: these, or without masks, (L, N, 4C), where there are `masks` (M, H', W').

    Raises:
      UserError: they are neither, or don't fit in number.
    """
    tokens, channels = family.token_shape(*padded)
    if masks is None:
        factor = vae_factor(family.vae)
        return array("masked_image_latents", given, (None, tokens, channels + 4 * factor**2)).astype(np.float32)
    latents = array("masked_image_latents", given, (None, tokens, channels)).astype(np.float32)
    count = reading.common_number({"masked_image_latents": len(latents), "mask_image": len(masks)})
    packed = np.asarray(pack_mask(jnp.asarray(masks, jnp.float32), vae_factor(family.vae)))
    return np.concatenate([repeated(latents, count), repeated(packed, count)], axis=-1)


def count(pictures: Pictures, prompts: Prompts, negatives: Prompts | None, num_images_per_prompt: Any) -> int:
    """The number of images that come out.

    Raises:
      UserError: the numbers don't fit together.
    """
    numbers = pictures.numbers() | {"prompt": len(prompts)}
    if negatives is not None:
        numbers["negative_prompt"] = len(negatives)
    return reading.common_number(numbers) * number("num_images_per_prompt", num_images_per_prompt)


def repeated(tree: Any, count: int) -> Any:
    """Arrays of `count` rows, of arrays with fewer, of which it is a multiple: each row as often, in its place."""
    repeat = lambda x: (jnp if isinstance(x, jax.Array) else np).repeat(x, count // len(x), axis=0)
    return jax.tree.map(lambda x: x if len(x) == count else repeat(x), tree)


# ------------------------------------------------------------------------------------------------ schedule, callback


def noise_levels(
    num_inference_steps: Any, given: Sequence[float] | None, strength: Any, num_tokens: int, shift: Shift
) -> np.ndarray:
    """The schedule of a call, as diffusers makes it: float32 (n + 1,), falling to 0.

    Args:
      given: levels before the shift, in place of a number of steps.
      strength: the share of the steps, from the last on, that are taken.

    Raises:
      UserError: there is no such schedule.
    """
    strength = number("strength", strength)
    if given is None:
        schedule = sigmas(number("num_inference_steps", num_inference_steps), num_tokens, shift)
    else:
        levels = np.asarray(given, np.float64) if _are_numbers(given) else np.zeros(0)
        if levels.ndim != 1 or not len(levels) or not 0 < levels[-1] <= levels[0] <= 1 or (np.diff(levels) >= 0).any():
            raise UserError(f"sigmas are {shown(given)}: give numbers that fall, from at most 1 to above 0")
        number("num_inference_steps", len(levels))
        schedule = shifted(levels, num_tokens, shift)
    steps = len(schedule) - 1
    first = int(max(steps - min(steps * strength, steps), 0))
    if first == steps:
        raise UserError(
            f"with strength {strength:g}, no step is left of {steps}: raise strength, or num_inference_steps"
        )
    return schedule[first:]


def _are_numbers(given: Any) -> bool:
    try:
        return np.issubdtype(np.asarray(given).dtype, np.number) and bool(np.isfinite(np.asarray(given)).all())
    except (TypeError, ValueError, RuntimeError):
        return False


def seeds(seed: Any, generator: Any, count: int) -> int | list[int]:
    """One seed for all images, or one for each of `count`.

    Raises:
      UserError: they are no seeds, or not so many.
    """
    if generator is None:
        return number("seed", seed)
    many = isinstance(generator, list | tuple | np.ndarray)
    for one in generator if many else [generator]:
        if hasattr(one, "initial_seed"):  # torch's
            raise UserError(
                "generator is of torch, whose numbers JAX can't draw: give a seed, or latents for the very same noise"
            )
        number("generator", one)
    if many and len(generator) != count:
        raise UserError(
            f"generator has {len(generator)} seeds, but there are {count} images: give one for each, or one"
        )
    return [int(one) for one in generator] if many else int(generator)


def posterior_noise(posterior: Any, drawn: jax.Array) -> Any:
    """The noise by which latents of images are sampled, (B, h, w, C); None takes their mean.

    Raises:
      UserError: `posterior` is neither noise nor one of `POSTERIORS`.
    """
    if isinstance(posterior, str) or posterior is None:
        return drawn if choice("posterior", posterior, POSTERIORS) == "sample" else None
    return array("posterior", posterior, drawn.shape)


def check_callback(callback: Any, names: Any) -> tuple[str, ...]:
    """`callback_on_step_end` and `callback_on_step_end_tensor_inputs`: the names as a tuple.

    Raises:
      UserError: it can't be called, or there are no such tensors.
    """
    if callback is not None and not callable(callback):
        raise UserError(f"callback_on_step_end is {shown(callback)}: give a function")
    if not isinstance(names, list | tuple):
        raise UserError(f"callback_on_step_end_tensor_inputs is {shown(names)}: give a list of names")
    return tuple(choice("tensor for callback_on_step_end", name, CALLBACK_TENSORS) for name in names)


def call_back(
    callback: Callable[..., Any],
    names: Sequence[str],
    pipeline: Any,
    place: int,
    sigma: float,
    tensors: Mapping[str, jax.Array],
) -> dict[str, Any]:
    """`tensors` after a callback, to which those of the `names` are given, and which may return others in their place.

    Raises:
      UserError: it returns something else.
    """
    answer = callback(pipeline, place, np.float32(1000 * sigma), {name: tensors[name] for name in names})
    if not isinstance(answer, Mapping):
        raise UserError(f"callback_on_step_end gave {shown(answer)}: return its last argument, a dictionary")
    changed = {name: answer[name] for name in tensors if answer.get(name) is not None}
    return dict(tensors) | {
        name: array(f"{name} of callback_on_step_end", value, tensors[name].shape)
        for name, value in changed.items()
        if value is not tensors[name]
    }
