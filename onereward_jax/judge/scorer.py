"""The judge as a pure function of its parameters: model, prefix, answer ids and image settings frozen together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.judge import answer_probabilities
from onereward_jax.judge.answer_probabilities import ImageTokens
from onereward_jax.judge.conversation import Prefix
from onereward_jax.judge.vision import ImageSettings


@flax.struct.dataclass
class Questions:
    """The questions about each of B pairs of images: E questions, one per dimension, of at most S tokens.

    Attributes:
      ids: int32 (B, E, S), padded.
      lengths: int32 (B, E); 0 where a dimension is not asked, so that its answer is meaningless.
      weights: float32 (B, E), 1 where it is asked, 0 on padding.
      cell: int32 (B, E), index into `tasks.CELLS`, −1 on padding.
    """

    ids: Any
    lengths: Any
    weights: Any = None
    cell: Any = None

    def arrays(self) -> dict[str, Any]:
        """Return the arrays under their names in batches of the judge's training and evaluation."""
        return {
            "question_ids": self.ids,
            "question_lengths": self.lengths,
            "weights": self.weights,
            "cell": self.cell,
        }


# (judge parameters, first and second images (B, H, W, 3), questions) -> log P(Yes), log P(No): float32 (B, E, 2)
Scorer = Callable[[Any, Any, Any, Questions], jax.Array]


@dataclasses.dataclass(frozen=True)
class JudgeScorer:
    """Computes log-probabilities of the two answers from parameters, images and questions, without a tokenizer.

    Attributes:
      model: `Qwen2_5_VL`.
      prefix: the text around the two images.
      yes_no: token ids of the two answers.
      settings: how images are resized, normalised and split into patches.
    """

    model: Any
    prefix: Prefix
    yes_no: tuple[int, int]
    settings: ImageSettings

    def __call__(
        self, params: Any, first: Any, second: Any, questions: Questions, both_orders: bool = False
    ) -> jax.Array:
        """Compute log P(Yes) and log P(No) over the whole vocabulary; can be jitted and differentiated.

        Args:
          params: the model's parameters.
          first, second: (B, H, W, 3), float in [0, 1] or uint8, of any two sizes, or `ImageTokens`.
          questions: only `ids` and `lengths` are used.
          both_orders: also ask with the images swapped; each image is still encoded once.

        Returns:
          float32 (B, E, 2), or (2, B, E, 2) with both orders.
        """
        log_p = answer_probabilities.log_p_both_orders if both_orders else answer_probabilities.log_p_answers
        images = unit_range(first), unit_range(second)
        asked = questions.ids, questions.lengths
        return log_p(self.model, params, *images, self.prefix, *asked, self.yes_no, self.settings)

    def ask_batch(self, params: Any, batch: Mapping[str, Any], both_orders: bool = False) -> jax.Array:
        """Ask about a batch of the judge's training or evaluation: `ask_batch(self, ...)`."""
        return ask_batch(self, params, batch, both_orders)


def ask_batch(scorer: Any, params: Any, batch: Mapping[str, Any], both_orders: bool = False) -> jax.Array:
    """Ask about a batch of the judge's training or evaluation; see `JudgeScorer`.

    Args:
      batch: first, second: (B, H, W, 3), float in [0, 1] or uint8, of any two sizes, or `ImageTokens`
        question_ids: int32 (B, D, S); question_lengths: int32 (B, D), 0 where a dimension is not asked
    """
    asked = Questions(batch["question_ids"], batch["question_lengths"])
    return scorer(params, batch["first"], batch["second"], asked, both_orders)


def one_dimension_a_call(judge: Scorer) -> Scorer:
    """Call the judge once per dimension e, as the paper writes it: P(Yes | x_θ, x_ref, q_e)."""

    def ask(params: Any, first: Any, second: Any, questions: Questions) -> jax.Array:
        asked = Questions(questions.ids, questions.lengths)
        each = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], asked)
        answers = jax.lax.map(lambda one: judge(params, first, second, one)[:, 0], each)
        return jnp.moveaxis(answers, 0, 1)

    return ask


def unit_range(images: Any) -> Any:
    """Convert uint8 images to floats in [0, 1]; return others unchanged."""
    if not isinstance(images, ImageTokens) and images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255.0
    return images
