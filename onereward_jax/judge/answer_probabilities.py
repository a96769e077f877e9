"""The judge's answer: log P(Yes) and log P(No) for pairs of images, as a pure function.

The system turn and both images are computed once; the questions of all dimensions follow in one packed
sequence. A question attends to the prefix and itself, at the positions it would have alone.
Shapes: B pairs, D questions (dimensions) per pair, S tokens per question, P tokens in the prefix.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.judge.conversation import Prefix
from onereward_jax.judge.vision import Grid, ImageSettings, preprocess
from onereward_jax.parallel.activations import shard_batch


@flax.struct.dataclass
class ImageTokens:
    """Images after the vision tower.

    Attributes:
      features: (B, M, D), tokens row by row.
      grid: static, rows and columns of tokens.
    """

    features: jax.Array
    grid: Grid = flax.struct.field(pytree_node=False)


Images = jax.Array | ImageTokens  # (B, H, W, 3) in [0, 1], or already encoded


def encode_patches(model: Any, params: Any, patches: jax.Array, grid: Grid) -> ImageTokens:
    """Encode patches (B, N, 3 · T · p²) from the image processor with the vision tower; `grid` counts patches."""
    merge = model.visual.spatial_merge_size
    features = model.apply({"params": params}, patches, grid, method="encode_image")
    return ImageTokens(features, (grid[0] // merge, grid[1] // merge))


def encode_image(model: Any, params: Any, images: Images, settings: ImageSettings) -> ImageTokens:
    """Encode pixels with the vision tower; images that are already encoded are returned unchanged.

    Args:
      model: a `Qwen2_5_VL`.
      images: (B, H, W, 3), float in [0, 1].
    """
    if isinstance(images, ImageTokens):
        return images
    return encode_patches(model, params, *preprocess(images, settings))


def prefix_positions(prefix: Prefix, first: Grid, second: Grid) -> np.ndarray:
    """Compute the M-RoPE positions of the prefix.

    Text advances all three positions; an image stays at one time and spans rows and columns; the text after it
    continues from its longer side.

    Args:
      first, second: rows and columns of the images' tokens.

    Returns:
      (3, P + 1) int32; the last column is the position of the question's first token.
    """
    parts, start = [], 0

    def text(ids):
        nonlocal start
        parts.append(np.tile(np.arange(start, start + len(ids)), (3, 1)))
        start += len(ids)

    def image(grid):
        nonlocal start
        parts.append(start + np.stack([np.zeros(grid, int), *np.indices(grid)]).reshape(3, -1))
        start += max(grid)

    text(prefix.begin)
    image(first)
    text(prefix.middle)
    image(second)
    text(prefix.end)
    parts.append(np.full((3, 1), start))
    return np.concatenate(parts, axis=1).astype(np.int32)


def packed_mask(prefix_length: int, questions: int, question_length: int) -> np.ndarray:
    """Make the attention mask: causal, except that a question does not see the questions before it.

    Returns:
      (L, L) boolean, queries first, L = prefix_length + questions · question_length.
    """
    block = np.concatenate([np.zeros(prefix_length, int), 1 + np.repeat(np.arange(questions), question_length)])
    causal = np.tril(np.ones((len(block), len(block)), bool))
    return causal & ((block[None, :] == 0) | (block[None, :] == block[:, None]))


def answer_logits(
    model: Any,
    params: Any,
    first: ImageTokens,
    second: ImageTokens,
    prefix: Prefix,
    question_ids: jax.Array,
    question_lengths: jax.Array,
) -> jax.Array:
    """Compute the logits of each question's answer over the whole vocabulary: float32 (B, D, V).

    For the arguments see `log_p_answers`.
    """
    batch, questions, question_length = question_ids.shape
    apply = lambda method, *inputs: model.apply({"params": params}, *inputs, method=method)

    text = apply("embed", np.asarray(prefix.begin + prefix.middle + prefix.end, np.int32))
    text = jnp.broadcast_to(text, (batch, *text.shape))
    begin, middle, end = jnp.split(text, [len(prefix.begin), len(prefix.begin + prefix.middle)], axis=1)
    asked = apply("embed", question_ids.reshape(batch, -1))
    # (B, P + D·S, width)
    embeddings = jnp.concatenate([begin, first.features, middle, second.features, end, asked], axis=1)

    positions = prefix_positions(prefix, first.grid, second.grid)
    prefix_length = positions.shape[1] - 1
    offsets = np.tile(np.arange(question_length), questions)
    positions = np.concatenate([positions[:, :-1], positions[:, -1:] + offsets], axis=1)
    mask = packed_mask(prefix_length, questions, question_length)

    states = apply("decode", embeddings, jnp.asarray(positions)[:, None], jnp.asarray(mask)[None])
    # The output matrix is applied to the last token of each question only.
    asked = states[:, prefix_length:].reshape(batch, questions, question_length, -1)
    last = jnp.maximum(question_lengths - 1, 0)[..., None, None]
    return shard_batch(apply("unembed", jnp.take_along_axis(asked, last, axis=2)[:, :, 0]))


def log_p_answers(
    model: Any,
    params: Any,
    first: Images,
    second: Images,
    prefix: Prefix,
    question_ids: jax.Array,
    question_lengths: jax.Array,
    yes_no: tuple[int, int],
    settings: ImageSettings,
) -> jax.Array:
    """Compute log P(Yes) and log P(No), over the whole vocabulary, for pairs of images.

    Args:
      model: a `Qwen2_5_VL`, with the methods `encode_image`, `embed`, `decode` and `unembed`.
      params: its parameters.
      first, second: (B, H, W, 3), float in [0, 1], of any two sizes, or `ImageTokens`.
      prefix: the text around the images.
      question_ids: int32 (B, D, S), padded.
      question_lengths: int32 (B, D); 0 where a dimension is not asked, so that its answer is meaningless.
      yes_no: token ids of the two answers.
      settings: image preprocessing.

    Returns:
      float32 (B, D, 2).
    """
    first, second = (encode_image(model, params, images, settings) for images in (first, second))
    logits = answer_logits(model, params, first, second, prefix, question_ids, question_lengths)
    return jax.nn.log_softmax(logits, axis=-1)[..., jnp.asarray(yes_no)]


def log_p_both_orders(
    model: Any,
    params: Any,
    first: Images,
    second: Images,
    prefix: Prefix,
    question_ids: jax.Array,
    question_lengths: jax.Array,
    yes_no: tuple[int, int],
    settings: ImageSettings,
) -> jax.Array:
    """Compute `log_p_answers` for (first, second) and (second, first), encoding each image once.

    Returns:
      float32 (2, B, D, 2).
    """
    if not isinstance(first, ImageTokens) and not isinstance(second, ImageTokens) and first.shape == second.shape:
        tokens = encode_image(model, params, jnp.concatenate([first, second]), settings)
        first, second = (ImageTokens(features, tokens.grid) for features in jnp.split(tokens.features, 2))
    else:
        first, second = (encode_image(model, params, images, settings) for images in (first, second))
    ask = lambda a, b, ids, lengths: log_p_answers(model, params, a, b, prefix, ids, lengths, yes_no, settings)
    if first.grid != second.grid:
        return jnp.stack(
            [ask(first, second, question_ids, question_lengths), ask(second, first, question_ids, question_lengths)]
        )
    pair = lambda a, b: ImageTokens(jnp.concatenate([a.features, b.features]), a.grid)
    twice = lambda x: jnp.concatenate([x, x])
    both = ask(pair(first, second), pair(second, first), twice(question_ids), twice(question_lengths))
    return both.reshape(2, -1, *both.shape[1:])
