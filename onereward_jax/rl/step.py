"""One update of reward feedback learning: Algorithms 1 and 2 as one pure function.

    1. noises ε1 ≠ ε2 and a stopping index t per sample (or per batch)
    2. x_ref: the reference denoises from ε1 fully (or as far as the policy), decoded; no gradient
    3. x_θ: the policy denoises from ε2 to index t without gradient, then predicts the data once with gradient
    4. judge, loss over the task's dimensions, optimiser step, EMA

Reference images may come again, for another gradient of the same condition: with Algorithm 1 from a pool
(`rl.reference_cache`), with Algorithm 2 from the state.

Algorithm 1 reads `state.reference`; Algorithm 2 has none and reads `state.ema`. With LoRA all three parameter sets are
adapters of one frozen base.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from onereward_jax.errors import UserError
from onereward_jax.flow import conditioning, sampler
from onereward_jax.flow.schedule import Shift, sigmas
from onereward_jax.judge.augment import noise_together, shift_together
from onereward_jax.judge.scorer import Questions, Scorer, one_dimension_a_call
from onereward_jax.models import lora
from onereward_jax.parallel.offload import to_devices
from onereward_jax.rl.objective import reward_loss
from onereward_jax.tasks import CELLS
from onereward_jax.training.state import TrainState, apply_gradient

# The update's parts, as profiles and `onereward plan` name them; the last three with their backward passes.
REFERENCE, ROLLOUT = "reference_rollout", "policy_rollout"
PREDICTION, DECODING, JUDGEMENT = "prediction", "decoding", "judgement"
PARTS = (REFERENCE, ROLLOUT, PREDICTION, DECODING, JUDGEMENT)


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What the paper leaves open, and what it sets.

    Attributes:
      threshold: λ of Eq. 5.
      ema_decay: τ.
      num_steps: Euler steps of a full denoising, n.
      first_index, last_index: [t1, t2], both included: indices of the schedule at which the policy stops
        and predicts. Index i has σ = sigmas[i]; 0 is pure noise.
      index_per_sample: draw t for each sample; otherwise once for the batch.
      rollout_guidance_scale, rollout_true_cfg_scale: of both rollouts, without gradient.
      gradient_guidance_scale, gradient_true_cfg_scale: of the one prediction with gradient; true guidance
        there doubles its memory.
      flow_matching_weight: weight of the flow-matching loss on the batch's `target`, at the σ of the samples' t;
        0 leaves it out.
      matched_reference: the reference, too, stops at the sample's t and predicts the data once, so that neither image
        is sharper for having been denoised further; off, it denoises fully, as in the paper.
      judge_shift: the judge sees both images moved by up to so many pixels, anew for every sample, so that its
        patches' grid leaves no trace in the policy (`judge.augment.shift_together`); 0 is the paper.
      judge_noise: the judge sees both images under the same normal noise, of a deviation up to this for white at 1
        (`judge.augment.noise_together`); 0 is the paper.
      accumulate: micro-batches per update.
      predictions: t is drawn so often for each of the policy's rollouts, which is run once, to the latest of them; the
        update descends the mean of the predictions' losses. 1 is the paper.
      shared_prefix: the judge reads both images once and answers for all dimensions; off, it is called once a
        dimension. The answers are the same.
      reference_pool: directory of reference images that are used again (Algorithm 1); "" keeps none.
      reference_max_age: for so many updates after the one that made them reference images are used again (Algorithm 2):
        batches repeat their conditions, with other noises of the policy and other t. 0 is the paper.
    """

    threshold: float = 0.9
    ema_decay: float = 0.99
    num_steps: int = 50
    first_index: int = 15
    last_index: int = 35
    index_per_sample: bool = True
    rollout_guidance_scale: float = 1.0
    rollout_true_cfg_scale: float = 4.0
    gradient_guidance_scale: float = 1.0
    gradient_true_cfg_scale: float = 1.0
    flow_matching_weight: float = 0.0
    matched_reference: bool = False
    judge_shift: int = 0
    judge_noise: float = 0.0
    accumulate: int = 1
    predictions: int = 1
    shared_prefix: bool = True
    reference_pool: str = ""
    reference_max_age: int = 0

    def __post_init__(self):
        if not 0 <= self.first_index <= self.last_index < self.num_steps:
            raise UserError(
                f"the prediction indices must satisfy 0 <= first_index <= last_index < num_steps, not"
                f" {self.first_index}, {self.last_index}, {self.num_steps}: change the range or the steps"
            )
        if self.matched_reference and (self.predictions > 1 or self.reuses_references):
            raise UserError(
                "a matched reference is made for the policy's one t: set matched_reference to false, or predictions to"
                " 1, reference_pool to '' and reference_max_age to 0"
            )

    @property
    def true_guidance(self) -> bool:
        """Whether a negative prompt is read anywhere."""
        return self.rollout_true_cfg_scale != 1.0 or self.gradient_true_cfg_scale != 1.0

    @property
    def reuses_references(self) -> bool:
        return bool(self.reference_pool) or self.reference_max_age > 0


@flax.struct.dataclass
class Frozen:
    """Parameters that the update reads and never changes; with LoRA, the transformer that the adapters are of."""

    vae: Any
    judge: Any
    base: Any | None = None


def make_step(
    transformer: Any,
    vae: Any,
    judge: Scorer,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    shift: Shift = Shift(),  # noqa: B008 (frozen)
    adapter_scale: float = 1.0,
) -> Callable[[TrainState, Frozen, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    A batch holds
      index: int32 (B,), global sample index: the sample's randomness, whatever the batch size or host count
      image: uint8 (B, H, W, 3), mask: uint8 (B, H, W), 1 = generate
      prompt_embeds (B, L, D), pooled (B, P); negative_prompt_embeds, negative_pooled with true guidance
      question_ids (B, E, S), question_lengths (B, E), weights (B, E): a question per dimension, 0 on padding
      cell: int32 (B, E), index into `tasks.CELLS`, −1 on padding
      target: uint8 (B, H, W, 3), only with flow_matching_weight
      condition: int32 (B,), where conditions come again: the randomness of the reference, in the index's place
      reference: float32 (B, H, W, 3) in [0, 1], reference_known: bool (B,), only with a reference_pool: what it has
      age: int32 (B,), only with a reference_max_age: updates since the batch's conditions came first

    With a `Frozen.base`, the state's parameters are adapters of it, each scaled by `adapter_scale`.

    Metrics are scalars; `rewards/<task>/<dimension>` is NaN where the batch has no such cell. With a reference_pool
    "references" is among them: the reference images of all samples.
    """
    if not config.shared_prefix:
        judge = one_dimension_a_call(judge)

    def transformer_params(frozen, params):
        return params if frozen.base is None else lora.attach(frozen.base, params, adapter_scale)

    def rollout_velocity(params, condition, ids):
        return sampler.velocity_of(
            transformer, params, condition, ids, config.rollout_guidance_scale, config.rollout_true_cfg_scale
        )

    def decode(frozen, tokens, height, width):
        images = conditioning.decode_latents(vae, frozen.vae, conditioning.unpack(tokens, height, width))
        return conditioning.to_unit_range(images)

    def loss_and_gradient(state: TrainState, frozen: Frozen, batch):
        batch_size, image_height, image_width = batch["mask"].shape
        factor = conditioning.vae_factor(vae)
        height, width = image_height // factor, image_width // factor
        ids = conditioning.image_ids(height, width)
        schedule = jnp.asarray(sigmas(config.num_steps, len(ids), shift))

        # 1. Randomness of each sample by its global index.
        keys_of = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(state.key, index), 6))
        keys = keys_of(batch["index"])
        reference_keys = keys_of(batch["condition"]) if "condition" in batch else keys
        shape = (len(ids), 4 * vae.latent_channels)
        normal = jax.vmap(lambda key: jax.random.normal(key, shape))
        reference_noise, policy_noise = normal(reference_keys[:, 0]), normal(keys[:, 1])

        def draw(number):
            """What the prediction of a number has for itself: keys (B, 6) and index t (B,)."""
            again = lambda key: jax.random.fold_in(key, number) if number else key  # noqa: E731
            its_keys = jax.vmap(jax.vmap(again))(keys)
            if config.index_per_sample:
                index_keys = its_keys[:, 3]
            else:
                of_batch = again(jax.random.fold_in(state.key, -1 - state.step))
                index_keys = jnp.broadcast_to(of_batch, (batch_size,))
            index = lambda key: jax.random.randint(key, (), config.first_index, config.last_index + 1)  # noqa: E731
            return its_keys, jax.vmap(index)(index_keys)

        draws = [draw(number) for number in range(config.predictions)]

        masked_image, mask = conditioning.encode_masked_image(vae, frozen.vae, batch["image"], batch["mask"])
        condition = conditioning.Condition(
            masked_image=masked_image,
            mask=mask,
            prompt_embeds=batch["prompt_embeds"],
            pooled=batch["pooled"],
            negative_prompt_embeds=batch.get("negative_prompt_embeds"),
            negative_pooled=batch.get("negative_pooled"),
        )
        condition = jax.lax.stop_gradient(condition)

        # 2. The reference's full denoising, or its prediction at t; or its images of before.
        def make_references():
            reference_params = to_devices(state.ema if state.reference is None else state.reference)
            reference = rollout_velocity(transformer_params(frozen, reference_params), condition, ids)
            if config.matched_reference:
                _, stop = draws[0]
                reference_tokens = sampler.denoise(reference, reference_noise, schedule, stop)
                reference_tokens = sampler.predict_data(reference, reference_tokens, schedule[stop])
            else:
                reference_tokens = sampler.denoise(reference, reference_noise, schedule, config.num_steps)
            return jnp.clip(decode(frozen, reference_tokens, height, width), 0.0, 1.0)

        with jax.named_scope(REFERENCE):
            if config.reuses_references:
                kept, known = batch["reference"], batch["reference_known"]
                complete = lambda: jnp.where(known[:, None, None, None], kept, make_references())  # noqa: E731
                reference_images = jax.lax.cond(known.all(), lambda: kept, complete)
            else:
                reference_images = make_references()

        # 3. The policy's rollout to t, and one prediction; or past several t, each with a prediction.
        with jax.named_scope(ROLLOUT):
            policy = rollout_velocity(transformer_params(frozen, state.params), condition, ids)
            if config.predictions == 1:
                its_keys, stop = draws[0]
                tokens = sampler.denoise(policy, policy_noise, schedule, stop)
            else:
                its_keys, stop = (jnp.stack(each) for each in zip(*draws, strict=True))
                tokens = sampler.denoise_past(policy, policy_noise, schedule, stop)
        tokens, reference_images = jax.lax.stop_gradient((tokens, reference_images))

        def loss(params, keys, stop, tokens):
            params = transformer_params(frozen, params)
            velocity = sampler.velocity_of(
                transformer, params, condition, ids, config.gradient_guidance_scale, config.gradient_true_cfg_scale
            )
            with jax.named_scope(PREDICTION):
                predicted = sampler.predict_data(velocity, tokens, schedule[stop])
            with jax.named_scope(DECODING):
                policy_images = decode(frozen, predicted, height, width)
            first, second = shift_together(keys[:, 4], policy_images, reference_images, config.judge_shift)
            first, second = noise_together(keys[:, 5], first, second, config.judge_noise)
            with jax.named_scope(JUDGEMENT):
                questions = Questions(batch["question_ids"], batch["question_lengths"])
                log_p = judge(frozen.judge, first, second, questions)
            p_yes = jnp.exp(log_p[..., 0])
            value = reward_loss(p_yes, batch["weights"], config.threshold)
            metrics = {"learning/reward_loss": value, **_cell_sums(p_yes, batch["cell"])}
            if config.flow_matching_weight:
                data = conditioning.to_model_range(batch["target"])
                data = conditioning.pack(conditioning.encode_image(vae, frozen.vae, data))
                matching_noise = normal(keys[:, 2])
                sigma = schedule[stop][:, None, None]
                noisy = (1 - sigma) * data + sigma * matching_noise
                # Flow matching has the conditional velocity as its minimum: no true guidance here.
                conditional = sampler.velocity_of(transformer, params, condition, ids, config.gradient_guidance_scale)
                error = conditional(noisy, schedule[stop]) - (matching_noise - data)
                metrics["learning/flow_matching_loss"] = jnp.mean(jnp.square(error))
                value += config.flow_matching_weight * metrics["learning/flow_matching_loss"]
            return value, metrics | {"learning/loss": value, "learning/sigma": schedule[stop].mean()}

        def of_prediction(prediction):
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *prediction)
            return gradient, metrics

        prediction = its_keys, stop, tokens
        mean = of_prediction(prediction) if config.predictions == 1 else _mean(of_prediction, prediction)
        return mean, reference_images if config.reuses_references else None

    def step(state: TrainState, frozen: Frozen, batch):
        if config.reference_max_age:
            assert state.references is not None, "the state has no place for references"
            batch = batch | {"reference": state.references, "reference_known": batch["age"] > 0}
            # Of an update that was skipped there may be no picture.
            batch["reference_known"] &= jnp.isfinite(state.references).all(axis=(1, 2, 3))
        of_part = lambda part: loss_and_gradient(state, frozen, part)  # noqa: E731
        if config.accumulate == 1:
            (gradient, metrics), references = of_part(batch)
        else:
            (gradient, metrics), references = _mean_and_kept(of_part, _micro_batches(batch, config.accumulate))
            references = jax.tree.map(_whole_batch, references)

        # 4. Optimiser and EMA.
        state, update = apply_gradient(state, metrics["learning/loss"], gradient, optimizer, config.ema_decay)
        metrics = _finish_metrics(metrics) | update
        if config.reference_max_age:
            state = dataclasses.replace(state, references=references)
            metrics["learning/reference_age"] = batch["age"].astype(jnp.float32).mean()
        if config.reference_pool:
            metrics["references"] = references
        return state, metrics

    return step


def _micro_batches(batch: Any, parts: int) -> Any:
    """A batch's arrays (B, ...) as (parts, B/parts, ...).

    Sample i goes to micro-batch i mod parts, so that a batch sharded in contiguous pieces leaves each
    device a piece of every micro-batch.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _whole_batch(parts: jax.Array) -> jax.Array:
    """The inverse of `_micro_batches`, of an array."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def _mean(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Mean over the inputs' leading axis, one after the other: the memory is that of one."""
    return _mean_and_kept(lambda part: (function(part), None), inputs)[0]


def _mean_and_kept(function: Callable[[Any], tuple[Any, Any]], inputs: Any) -> tuple[Any, Any]:
    """As `_mean`, of a function's first result; and all of its second, stacked."""
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        result, kept = function(part)
        return jax.tree.map(jnp.add, total, result), kept

    total, kept = jax.lax.scan(add, zeros, inputs)
    count = jax.tree.leaves(inputs)[0].shape[0]
    return jax.tree.map(lambda x: x / count, total), kept


def _cell_sums(p_yes: jax.Array, cell: jax.Array) -> dict[str, jax.Array]:
    """Sum of P(Yes) and number of answers of each cell: additive over micro-batches."""
    member = cell[..., None] == jnp.arange(len(CELLS))
    return {
        "reward_sums": (p_yes[..., None] * member).sum(axis=(0, 1)),
        "reward_counts": member.sum(axis=(0, 1)).astype(jnp.float32),
    }


def _finish_metrics(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    sums, counts = metrics.pop("reward_sums"), metrics.pop("reward_counts")
    means = sums / counts  # 0/0: NaN, the cell is not in this batch
    rewards = {f"rewards/{task}/{dimension}": means[i] for i, (task, dimension) in enumerate(CELLS)}
    return metrics | rewards | {"rewards/mean": sums.sum() / counts.sum()}
