"""One update of reward feedback learning: Algorithms 1 and 2 as one pure function.

    1. noises ε1 ≠ ε2 and a stopping index t per sample (or per batch)
    2. x_ref: the reference denoises from ε1 fully (or as far as the policy), decoded; no gradient
    3. x_θ: the policy denoises from ε2 without gradient, to index t or fully, and the estimator makes its image
    4. judge, loss over the task's dimensions, optimiser step, EMA

`rl.reference_images` says where x_ref comes from, `rl.estimator` how x_θ gets its gradient. With LoRA policy, EMA and
reference are adapters of one frozen base.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from onereward_jax.config.schema import RewardLearning
from onereward_jax.flow.conditioning import keep_outside
from onereward_jax.flow.family import PolicyFamily
from onereward_jax.judge.augment import noise_together, shift_together
from onereward_jax.judge.scorer import Scorer, one_dimension_a_call
from onereward_jax.rl.accumulation import mean_over, mean_over_micro_batches
from onereward_jax.rl.batch import Batch
from onereward_jax.rl.estimator import Estimator, Rolled, estimator_of
from onereward_jax.rl.flow_matching import flow_matching_loss
from onereward_jax.rl.profile_scopes import JUDGEMENT, REFERENCE
from onereward_jax.rl.random_draws import PredictionDraw, draw
from onereward_jax.rl.reference_images import Fresh, references_of
from onereward_jax.rl.reward_loss import reward_loss
from onereward_jax.rl.reward_metrics import cell_sums, with_rewards
from onereward_jax.rl.rollout import Flow, Frozen
from onereward_jax.training.state import TrainState, apply_gradient

Metrics = dict[str, jax.Array]


def make_step(
    family: PolicyFamily,
    judge: Scorer,
    optimizer: optax.GradientTransformation,
    config: RewardLearning,
    adapter_scale: float = 1.0,
) -> Callable[[TrainState, Frozen, Batch], tuple[TrainState, Any]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, pure and ready for `jax.jit`.

    With a `Frozen.base`, the state's parameters are adapters of it, each scaled by `adapter_scale`.

    Metrics are scalars; `rewards/<task>/<dimension>` is NaN where the batch has no such cell. With a reference_cache
    (metrics, reference images) take their place, see `rl.reference_images.Cached`.
    """
    judge = judge if config.shared_prefix else one_dimension_a_call(judge)
    return RewardFeedback(
        family, references_of(config), estimator_of(config), judge, optimizer, config, adapter_scale
    ).step


def make_reward_gradient(
    family: PolicyFamily, judge: Scorer, config: RewardLearning, adapter_scale: float = 1.0
) -> Callable[[TrainState, Frozen, Batch], Any]:
    """Builds (state, frozen, batch) -> the gradient of Eq. 5 alone, as the update has it before its optimiser; the
    references are made anew."""
    alone = dataclasses.replace(config, flow_matching_weight=0.0, reference_cache="", reference_max_age=0)
    judge = judge if config.shared_prefix else one_dimension_a_call(judge)
    update = RewardFeedback(
        family, references_of(alone), estimator_of(alone), judge, optax.identity(), alone, adapter_scale
    )

    def gradient(state: TrainState, frozen: Frozen, batch: Batch) -> Any:
        of_batch = functools.partial(update.gradient, state, frozen)
        return mean_over_micro_batches(of_batch, batch, config.accumulate)[0][0]

    return gradient


@dataclasses.dataclass(frozen=True, eq=False)
class RewardFeedback:
    """The parts of Algorithms 1 and 2; `step` is one iteration."""

    family: PolicyFamily
    references: Fresh
    estimator: Estimator
    judge: Scorer
    optimizer: optax.GradientTransformation
    config: RewardLearning
    adapter_scale: float

    def step(self, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Any]:
        batch = self.references.recall(state, batch)
        gradient_of = functools.partial(self.gradient, state, frozen)
        (gradient, metrics), images = mean_over_micro_batches(gradient_of, batch, self.config.accumulate)
        loss = metrics["learning/loss"]
        state, update = apply_gradient(state, loss, gradient, self.optimizer, self.config.ema_decay)
        return self.references.finish(state, batch, with_rewards(metrics) | update, images)

    def gradient(self, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[tuple[Any, Metrics], Any]:
        """((gradient, metrics), reference images if they are kept) of a micro-batch."""
        size = batch.mask.shape[1:]
        schedule_of = lambda steps: jnp.asarray(self.family.schedule(steps, *size))
        schedule, of_reference = map(schedule_of, (self.config.steps_of_policy, self.config.steps_of_reference))
        draws = draw(state, batch, self.family.token_shape(*size), self.config)
        condition = self.family.condition(frozen.vae, batch.image, batch.mask, batch.text, batch.negative)
        flow = Flow(self.family, frozen, jax.lax.stop_gradient(condition), size, schedule, self.adapter_scale)
        matching = flow
        if batch.matching is not None:
            image, mask, text, _ = batch.matching
            condition = jax.lax.stop_gradient(self.family.condition(frozen.vae, image, mask, text, None))
            matching = dataclasses.replace(flow, condition=condition)
        with jax.named_scope(REFERENCE):
            images = self.references(dataclasses.replace(flow, schedule=of_reference), state, draws, batch)
        rolled = self.estimator.rollout(flow, state.params, draws)
        rolled, images = jax.lax.stop_gradient((rolled, images))

        def gradient_of(rolled: Rolled) -> tuple[Any, Metrics]:
            value = lambda image: self.judge_images(image, flow, batch, images, rolled.draw)[0]
            judged = self.estimator.judged(flow, state.params, rolled, value)
            rolled = jax.lax.stop_gradient(judged)
            loss = functools.partial(
                self.loss, flow=flow, matching=matching, batch=batch, references=images, rolled=rolled
            )
            (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
            return gradient, metrics

        mean = gradient_of(rolled) if len(draws.predictions) == 1 else mean_over(gradient_of, rolled)
        return mean, self.references.kept(images)

    def loss(
        self, params: Any, *, flow: Flow, matching: Flow, batch: Batch, references: jax.Array, rolled: Rolled
    ) -> tuple[jax.Array, Metrics]:
        """Eq. 5 of one image, and with a flow_matching_weight flow matching beside it.

        Args:
          matching: of what flow matching learns: `flow`, unless the batch brings images for that.
        """
        config = self.config
        image = self.estimator.image(flow, params, rolled)
        value, p_yes = self.judge_images(image, flow, batch, references, rolled.draw)
        metrics = {"learning/reward_loss": value, **cell_sums(p_yes, batch.questions.cell)}
        if config.flow_matching_weight:
            target = batch.target if batch.matching is None else batch.matching.target
            error = flow_matching_loss(
                matching,
                flow.whole(params),
                target,
                rolled.draw,
                config.gradient_guidance_scale,
                batch.target_weight,
            )
            metrics["learning/flow_matching_loss"] = error
            value += config.flow_matching_weight * error
        return value, metrics | {"learning/loss": value, "learning/sigma": rolled.sigmas.mean()}

    def judge_images(
        self, image: jax.Array, flow: Flow, batch: Batch, references: jax.Array, draw: PredictionDraw
    ) -> tuple[jax.Array, jax.Array]:
        """Eq. 5 of the policy's images, and P(Yes), (B, D)."""
        if self.config.keep_outside:
            image, references = (keep_outside(batch.image, batch.mask, made) for made in (image, references))
        first, second = self.augment(image, references, draw)
        with jax.named_scope(JUDGEMENT):
            log_p = self.judge(flow.frozen.judge, first, second, batch.questions)
        p_yes = jnp.exp(log_p[..., 0])
        return reward_loss(p_yes, batch.questions.weights, self.config.threshold), p_yes

    def augment(self, image: jax.Array, reference: jax.Array, draw: PredictionDraw) -> tuple[jax.Array, jax.Array]:
        """Both images as the judge sees them: moved alike, under the same noise."""
        first, second = shift_together(draw.shift_keys, image, reference, self.config.judge_shift)
        return noise_together(draw.noise_keys, first, second, self.config.judge_noise)
