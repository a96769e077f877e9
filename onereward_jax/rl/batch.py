"""What one update reads: the schema of a batch."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.flow.conditioning import TextStates
from onereward_jax.flow.family import PolicyFamily
from onereward_jax.judge.question_batches import MAX_DIMENSIONS
from onereward_jax.judge.scorer import Questions


class KnownReferences(NamedTuple):
    """Reference images of earlier updates.

    Attributes:
      images: float32 (B, H, W, 3) in [0, 1].
      known: bool (B,), whether the sample's image is one; the others are made.
    """

    images: Any
    known: Any


class MatchingTargets(NamedTuple):
    """Images that flow matching learns in the place of the requests' targets, under masks and prompts of their own.

    Attributes:
      image, mask, text, target: as in `Batch`.
    """

    image: Any
    mask: Any
    text: TextStates
    target: Any


@flax.struct.dataclass
class Batch:
    """B samples of H×W pixels; every array has the samples on its leading axis.

    Attributes:
      index: int32 (B,), global sample index: the sample's randomness, whatever the batch size or the number of hosts.
      image: uint8 (B, H, W, 3).
      mask: uint8 (B, H, W), 1 = generate.
      text: float32 prompt_embeds (B, L, D) and pooled (B, P) of the prompts.
      questions: a question for each dimension of the sample's task.
      negative: as `text`, of the negative prompt; only with true guidance.
      target: uint8 (B, H, W, 3), what flow matching learns; only with a flow_matching_weight.
      target_weight: float32 (B,), 1 where there is a target and 0 where there is none; only where some have none.
      matching: what flow matching learns instead; only with data.targets.
      condition: int32 (B,), where conditions recur: the randomness of the reference, in the index's place.
      age: int32 (B,), updates since the batch's conditions came first; only with a reference_max_age.
      references: reference images of earlier updates; only where they are used again.
    """

    index: Any
    image: Any
    mask: Any
    text: TextStates
    questions: Questions
    negative: TextStates | None = None
    target: Any = None
    target_weight: Any = None
    matching: MatchingTargets | None = None
    condition: Any = None
    age: Any = None
    references: KnownReferences | None = None


def batch_shapes(config: RewardFeedback, family: PolicyFamily) -> Batch:
    """A batch of `jax.ShapeDtypeStruct`s, as the trainer of a configuration makes them.

    Args:
      family: of the policy, whose text states a batch brings.
    """
    step_config, side, size = config.rl, config.data.resolution, config.train.batch_size

    def shape(*sample: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *sample), dtype)

    number = shape(dtype=jnp.int32)
    image = shape(side, side, 3, dtype=jnp.uint8)
    states = family.text_shapes(config.max_sequence_length)
    text = jax.tree.map(lambda one: shape(*one, dtype=jnp.float32), states, is_leaf=lambda x: isinstance(x, tuple))
    questions = Questions(
        ids=shape(MAX_DIMENSIONS, config.question_length, dtype=jnp.int32),
        lengths=shape(MAX_DIMENSIONS, dtype=jnp.int32),
        weights=shape(MAX_DIMENSIONS, dtype=jnp.float32),
        cell=shape(MAX_DIMENSIONS, dtype=jnp.int32),
    )
    known = KnownReferences(shape(side, side, 3, dtype=jnp.float32), shape(dtype=jnp.bool_))
    recurs = config.data.num_conditions or step_config.reference_max_age
    mask, learns = shape(side, side, dtype=jnp.uint8), step_config.flow_matching_weight > 0
    matching = MatchingTargets(image, mask, text, image) if learns and config.data.targets else None
    return Batch(
        index=number,
        image=image,
        mask=mask,
        text=text,
        questions=questions,
        negative=text if step_config.true_guidance else None,
        target=image if learns and matching is None else None,
        matching=matching,
        condition=number if recurs else None,
        age=number if step_config.reference_max_age else None,
        references=known if step_config.reference_cache else None,
    )
