"""Settings of one update."""

import dataclasses

from onereward_jax.errors import UserError


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
      predictions: timesteps sampled per rollout; the rollout runs once, up to the last of them, and the update descends
        the mean of the predictions' losses. 1 is the paper.
      shared_prefix: the judge reads both images once and answers for all dimensions; off, it is called once a
        dimension. The answers are the same.
      reference_pool: directory of cached reference images (Algorithm 1); "" caches none.
      reference_max_age: updates for which reference images are used again after the one that made them (Algorithm 2):
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
