"""CLIP, opened: unit vectors of texts and of images, each in batches of one size."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.errors import UserError
from onereward_jax.models.clip import CLIP
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import load_component
from onereward_jax.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ClipEncoder:
    """A CLIP model on one device, where its weights lie from the first use on.

    Attributes:
      directory: of its files.
      dimension: of the vectors, P.
      image_size: side S of what it sees of an image, in pixels.
    """

    def __init__(self, path: str, batch_size: int = 8):
        """
        Args:
          path: a directory or hub repository in transformers' layout: "openai/clip-vit-large-patch14".
          batch_size: texts or images that are encoded at once.

        Raises:
          FileNotFoundError, UserError: it is missing, or no CLIP model.
        """
        self.directory = model_directory(path)
        self._module, params = load_component(self.directory, "clip")
        self.dimension, self.image_size = self._module.projection_dim, self._module.vision_model.image_size
        self.batch_size = batch_size
        self.prepare = _preparation(self.directory, self.image_size)
        on_device = functools.cache(lambda: jax.tree.map(jnp.asarray, params))

        def compiled(method: Callable) -> Callable[[np.ndarray], jax.Array]:
            apply = jax.jit(lambda params, values: self._module.apply({"params": params}, values, method=method))
            return lambda values: apply(on_device(), jnp.asarray(values))

        self._of_texts, self._of_images = compiled(CLIP.text_features), compiled(CLIP.image_features)

    @functools.cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.directory, self._module.text_model.vocab_size)

    def check_texts(self) -> None:
        """Open the tokenizer now.

        Raises:
          UserError: its files can't be read, or have tokens that the model doesn't have.
        """
        _ = self._tokenizer

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Encode texts, cut to what the model reads: float32 (B, P), unit vectors."""
        length = self._module.text_model.max_position_embeddings
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
        return self._unit(self._of_texts, self._tokenizer(list(prompts), return_tensors="np", **options)["input_ids"])

    def images(self, pictures: Iterable[np.ndarray]) -> np.ndarray:
        """Encode images, uint8 (H, W, 3) of any sizes: float32 (B, P), unit vectors."""
        return self.prepared(np.stack([self.prepare(picture) for picture in pictures]))

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """Encode what `prepare` made, float32 (B, S, S, 3): float32 (B, P), unit vectors."""
        return self._unit(self._of_images, pixels)

    def _unit(self, encode: Callable[[np.ndarray], jax.Array], values: np.ndarray) -> np.ndarray:
        """Encode rows in batches; the last one is filled up, so that one compiled program serves all."""
        starts = range(0, len(values), self.batch_size)
        rows = [np.minimum(np.arange(start, start + self.batch_size), len(values) - 1) for start in starts]
        found = np.concatenate([np.asarray(encode(values[batch]), np.float32) for batch in rows])[: len(values)]
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


def _preparation(directory: Path, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """transformers' preparation of an image in its variant without torch: uint8 (H, W, 3) -> float32 (S, S, 3)."""
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
        return np.transpose(np.asarray(made[0], np.float32), (1, 2, 0))

    return prepare
