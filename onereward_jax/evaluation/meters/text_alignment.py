"""Whether the generated part shows what the prompt says: the cosine of both in CLIP's space (Hessel et al. 2021)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.atomic_files import fingerprint
from onereward_jax.data.sample import Sample
from onereward_jax.errors import UserError
from onereward_jax.evaluation.judge_predictions import batches_of
from onereward_jax.evaluation.meters.meter import Measured, Meter
from onereward_jax.models.clip import CLIP
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import load_component
from onereward_jax.weights.tokenizer import load_tokenizer

_BATCH = 8  # images that are encoded at once


def text_alignment(path: str) -> Meter:
    """Make the meter of a CLIP model, which lies on one device from its first measurement on.

    "clip" is of the whole image; "clip_inside" of the part inside the mask's bounding box, made square.

    Args:
      path: a directory or hub repository in transformers' layout: "openai/clip-vit-large-patch14".

    Raises:
      FileNotFoundError, UserError: it is missing, or no CLIP model.
    """
    directory = model_directory(path)
    module, params = load_component(directory, "clip")
    tokenizer = load_tokenizer(directory, module.text_model.vocab_size)
    processor = _processor(directory, module.vision_model.image_size)
    # Not beside the policies and judges, which answer before anything is measured.
    on_device = functools.cache(lambda: jax.tree.map(jnp.asarray, params))
    encode_text = jax.jit(lambda params, ids: module.apply({"params": params}, ids, method=CLIP.text_features))
    encode = jax.jit(lambda params, pixels: module.apply({"params": params}, pixels, method=CLIP.image_features))

    def texts(prompts: Sequence[str]) -> np.ndarray:
        length = module.text_model.max_position_embeddings
        ids = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="np")[
            "input_ids"
        ]
        return _in_batches(lambda rows: encode_text(on_device(), jnp.asarray(ids[rows])), len(ids))

    def images(pictures: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.concatenate([processor(picture) for picture in pictures])
        return _in_batches(lambda rows: encode(on_device(), jnp.asarray(pixels[rows])), len(pixels))

    def measure(samples: Sequence[Sample], pictures: Sequence[np.ndarray]) -> Measured:
        asked = ["text_alignment" in dimensions_of(sample.task, sample.prompt) for sample in samples]
        rows = [row for row, described in enumerate(asked) if described]
        found: Measured = [{} for _ in samples]
        if not rows:
            return found
        of_texts = texts([samples[row].prompt for row in rows])
        whole = images([pictures[row] for row in rows])
        inside = images([_around(samples[row].mask, pictures[row]) for row in rows])
        for number, row in enumerate(rows):
            found[row] = {
                "clip": float(of_texts[number] @ whole[number]),
                "clip_inside": float(of_texts[number] @ inside[number]),
            }
        return found

    return Meter(
        name="text_alignment",
        tasks=tuple(task for task in TASKS if "text_alignment" in dimensions_of(task)),
        measure=measure,
        about={"version": 1, "clip": fingerprint(directory)},
        values={
            "clip": ("CLIP's cosine of prompt and image", True),
            "clip_inside": ("CLIP's cosine of prompt and what the mask shows", True),
        },
    )


def _in_batches(encode, count: int) -> np.ndarray:
    """Unit vectors of `count` rows, encoded in batches of one size."""
    parts = [np.asarray(encode(rows), np.float32) for rows in batches_of(count, _BATCH)]
    found = np.concatenate(parts)[:count]
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def _around(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The square around the mask's bounding box, as far as the image reaches."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return image
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1

    def span(found: np.ndarray, length: int) -> slice:
        start = int(np.clip((found[0] + found[-1] + 1 - side) // 2, 0, max(0, length - side)))
        return slice(start, min(length, start + side))

    return image[span(rows, image.shape[0]), span(columns, image.shape[1])]


def _processor(directory, size: int):
    """transformers' preparation of an image, uint8 (H, W, 3) -> float32 (1, size, size, 3), in its variant without
    torch."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if not (directory / "preprocessor_config.json").is_file():
        raise UserError(f"{directory} has no preprocessor_config.json: put all files of its release there")
    processor = CLIPImageProcessorPil.from_pretrained(directory, local_files_only=True)
    if dict(processor.crop_size) != {"height": size, "width": size}:
        raise UserError(
            f"{directory / 'preprocessor_config.json'} crops images to {dict(processor.crop_size)}, but the model reads"
            f" {size} x {size} pixels: use the files of one release"
        )

    def prepare(image: np.ndarray) -> np.ndarray:
        made = processor(images=[image], input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return np.transpose(np.asarray(made, np.float32), (0, 2, 3, 1))

    return prepare
