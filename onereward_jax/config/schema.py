"""Every setting there is: the only list of names, types, defaults, limits and meanings.

A setting is added by one line in its group, such as

    margin: float = option(0.1, at_least=0, at_most=1, help="...")

in `RewardLearning`. With it `--config.rl.margin=0.2` sets it and a wrong value is answered in one sentence; `onereward
config` shows it; `onereward config --docs docs/reference/settings.md` lists it; a working directory remembers it; and
whoever has the configuration reads `config.rl.margin`. What settings must satisfy together is in the group's `check`,
or in the recipe's where it is of several groups.

A group is a frozen dataclass. A recipe composes the groups that one kind of training reads, and says which of their
defaults are its own. Defaults are the paper's (arXiv 2508.21066) where it gives a value, and otherwise what full-size
models take; what differs stands in configs/. Imports no JAX.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ml_collections import ConfigDict

from onereward_jax.config.option import SEEDS, Settings, did_you_mean, option
from onereward_jax.errors import UserError
from onereward_jax.questions import LONGEST, QUESTION_TEMPLATE, QUESTION_WITH_PROMPT_TEMPLATE, check_template
from onereward_jax.tasks import TASKS

# Parts of a train state that may wait in the hosts' memory (`train.offload`).
OFFLOADABLE = ("opt_state", "ema", "reference")
MOST_DISAGREEMENT = 0.5  # the largest standard deviation of numbers in [0, 1]
_DTYPES = ("float32", "bfloat16", "float16")
_REMAT = ("none", "dots", "full")
# Limits of numbers, on both sides: beyond what any run takes, and within what arithmetic, memory and libraries bear.
_DEVICES = {"at_least": 1, "at_most": 2**20}
_AXIS = {
    **_DEVICES,
    "also": (-1,),
    "resumable": True,
    "words": f"a whole number from 1 to {2**20:,}, or -1 for the rest",
}
_UPDATES = {"at_least": 0, "at_most": 10**9}  # optax counts in 32 bits
_BATCH = {"at_least": 1, "at_most": 2**16}
_EULER_STEPS = {"at_least": 1, "at_most": 10_000}  # of a schedule
_SCENES = {"at_least": 1, "at_most": 10**6}
_SHARE = {"at_least": 0, "at_most": 1}
_BELOW_ONE = {"at_least": 0, "below": 1}
_SCALE = {"at_least": 0, "at_most": 1000}  # of guidance
_WEIGHT = {"at_least": 0, "at_most": 10**6}  # of a part of a loss
_PIXELS = {"at_least": 0, "at_most": 2**14}  # of a side
_MODEL = {"at_least": -(10**9), "at_most": 10**9}  # numbers of a model's config.json


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Data(Settings):
    """What batches are made of."""

    name: ClassVar[str] = "data"

    # Fill is a half with text rendering inside it; how much of it that is, the paper leaves open.
    task_weights: Mapping[str, float] = option(
        {"image_fill": 0.35, "text_rendering": 0.15, "image_extend": 0.25, "object_removal": 0.25},
        at_least=1e-6,
        at_most=1e6,
        also=(0,),
        in_reference=True,
        help="how often each task is drawn; 0 leaves one out",
    )
    # 32 is the least that scenes can be drawn in; an autoencoder may ask for a multiple of more than 8.
    resolution: int = option(
        1024,
        at_least=32,
        at_most=2**14,
        multiple_of=8,
        in_reference=True,
        help="pixels of a side; of buckets, of the square that has their area",
    )
    loader_threads: int = option(8, at_least=0, at_most=256, resumable=True, help="threads that make samples ahead")
    loader_timeout: float = option(
        600.0,
        at_least=0,
        at_most=10**7,
        resumable=True,
        help="seconds without a batch until the run ends; 0 waits for ever",
    )

    def check(self) -> None:
        for task in self.task_weights:
            if task not in TASKS:
                hint = did_you_mean(task, TASKS) or f": choose among {', '.join(TASKS)}"
                raise UserError(f"data.task_weights has the unknown task {task!r}{hint}")
        if not any(self.task_weights.values()):
            raise UserError("data.task_weights are all zero: give at least one task a positive weight")


@dataclass(frozen=True)
class SceneData(Data):
    """Scenes of the proving ground: requests whose right answer is known."""

    seed: int = option(0, **SEEDS, in_reference=True, help="of the scenes")
    photos: str = option("", help="folder of photographs instead of the packaged ones")
    synthetic_defects: float = option(
        0.0,
        **_SHARE,
        help="share of training targets with a synthetic defect, as web data has",
        was="data.target_flaws",
    )
    # An epoch's order is drawn at once.
    num_conditions: int = option(
        0, at_least=0, at_most=10**7, help="scenes that come again and again; 0: every one is new"
    )


@dataclass(frozen=True)
class RequestData(Data):
    """A user's own requests. Images keep about their aspect, in buckets of about the same area."""

    source: str = option(
        "",
        help="your requests: a folder of images, a .jsonl file or a TFDS directory, see docs/reference/requests.md",
        was="data.path",
    )
    held_out: str = option("", help="requests that are held out, as in data.source; empty: a share of data.source")
    held_out_share: float = option(0.05, **_BELOW_ONE, help="share of the images of data.source that are held out")
    caption: str = option("", help="prompt of requests that have none")
    bad_share: float = option(0.1, **_SHARE, help="share of the requests that may be bad")
    inside_only: bool = option(False, help="a request with a path that leads out of the source's folder is a bad one")
    bucket_step: int = option(64, at_least=8, at_most=2**14, help="sides are multiples of it, in pixels")
    max_aspect: float = option(2.0, at_least=1, at_most=16, help="of the buckets' longer side to the shorter")
    min_hole: float = option(0.2, above=0, below=1, help="least side of a drawn mask, as a share of the image's")
    max_hole: float = option(0.7, above=0, below=1, help="largest side of a drawn mask")

    def check(self) -> None:
        super().check()
        if self.min_hole > self.max_hole:
            raise _order("data.min_hole", self.min_hole, "at most", "data.max_hole", self.max_hole)
        if self.source and self.resolution % self.bucket_step:
            raise UserError(
                f"data.resolution {self.resolution} is no multiple of data.bucket_step {self.bucket_step}: change one"
                " of them"
            )


@dataclass(frozen=True)
class PolicyData(SceneData, RequestData):
    """Requests that a policy is trained on: your own or, without a data.source, scenes of the proving ground."""

    targets: str = option(
        "",
        help="images with prompts, as in data.source, that flow matching learns in the place of the requests' targets",
    )

    def check(self) -> None:
        super().check()
        if self.targets and not self.source:
            raise UserError(
                "data.targets is for requests of your own, but data.source is empty: set it, or leave it out"
            )


# -------------------------------------------------------------------------------------- devices, models, optimisation


@dataclass(frozen=True)
class Mesh(Settings):
    """How devices share the work; one axis may be -1, what the others leave, or both fsdp and tensor: fsdp is then as
    many devices as share the batch evenly."""

    name: ClassVar[str] = "mesh"

    data: int = option(1, **_AXIS, help="devices that share a batch and split no weights")
    fsdp: int = option(-1, **_AXIS, help="devices that share a batch and split the weights")
    tensor: int = option(1, **_AXIS, help="devices that split layers, and a sample's tokens")


@dataclass(frozen=True)
class Models(Settings):
    """The models that a run starts from, and how they are computed."""

    name: ClassVar[str] = "model"

    base: str = option(
        "black-forest-labs/FLUX.1-Fill-dev",
        content=True,
        words="a directory in diffusers layout, or a repository",
        help="fill model: a directory in diffusers layout, or a repository of the Hugging Face hub",
    )
    dtype: str = option(
        "bfloat16",
        choices=_DTYPES,
        in_reference=True,
        help="of the computation and of what is frozen; masters are float32",
    )
    remat: str = option("full", choices=_REMAT, help="what a backward pass computes again, to keep less")


@dataclass(frozen=True)
class PolicyModels(Models):
    """The models of reward feedback learning."""

    judge: str = option(
        "Qwen/Qwen2.5-VL-7B-Instruct", content=True, help="judge: a directory in transformers layout, or a repository"
    )
    judge_adapters: tuple[str, ...] = option(
        (), content=True, help="adapters of that judge: with several, the mean of their P(Yes) is the reward"
    )
    attention: str = option(
        "auto",
        choices=("auto", "xla", "splash", "cudnn", "reference"),
        help="of the transformer; auto takes splash on TPU, cuDNN on GPU",
    )
    attention_blocks: tuple[int, int] | None = option(
        None,
        at_least=128,
        at_most=2**16,
        multiple_of=128,
        words=f"two multiples of 128 up to {2**16:,}, such as (768,768)",
        help="tokens of a block of splash attention, queries and keys: they divide the tokens of image and prompt",
    )


@dataclass(frozen=True)
class Optimizer(Settings):
    """AdamW after clipping."""

    name: ClassVar[str] = "optimizer"

    learning_rate: float = option(1e-5, above=0, at_most=10, help="after the warm-up")
    warmup_steps: int = option(0, **_UPDATES, help="updates over which the rate rises from 0")
    decay_steps: int = option(0, **_UPDATES, help="updates until the rate is a tenth, by a cosine; 0 keeps it constant")
    clip_norm: float = option(1.0, above=0, at_most=1e30, help="largest norm of a gradient")
    weight_decay: float = option(0.0, at_least=0, at_most=1000, help="of AdamW")
    b2: float = option(0.999, **_BELOW_ONE, paper="β2", help="decay of Adam's second moment")

    def check(self) -> None:
        if 0 < self.decay_steps <= self.warmup_steps:
            raise UserError(
                f"optimizer.decay_steps is {self.decay_steps}, which is not beyond optimizer.warmup_steps"
                f" {self.warmup_steps}: raise it, or set it to 0 for a constant rate"
            )


@dataclass(frozen=True)
class Training(Settings):
    """How long a run trains, and what it writes."""

    name: ClassVar[str] = "train"

    num_steps: int = option(8000, at_least=1, at_most=10**9, resumable=True, help="updates")
    batch_size: int = option(8, **_BATCH, help="samples of an update")
    checkpoint_every: int = option(500, **_UPDATES, resumable=True, help="updates between checkpoints; 0: by time only")
    checkpoint_minutes: float = option(
        15.0,
        at_least=0,
        at_most=1e6,
        resumable=True,
        help="minutes after which a checkpoint is written whatever the updates; 0: never",
    )
    keep_checkpoints: int = option(2, at_least=1, at_most=10**9, resumable=True, help="the newest ones")
    log_every: int = option(10, **_UPDATES, resumable=True, help="updates between lines of metrics.jsonl")
    max_skipped: int = option(
        10, **_UPDATES, resumable=True, help="updates in a row that may be skipped for a loss that is not finite"
    )
    max_unsharded_mib: float = option(
        64.0, above=0, at_most=1e9, resumable=True, help="a warning names larger arrays that no axis of the mesh splits"
    )
    offload: tuple[str, ...] = option(
        (),
        choices=OFFLOADABLE,
        resumable=True,
        words=f"a tuple of parts of the state ({', '.join(OFFLOADABLE)}), such as \"('opt_state',)\"",
        help="parts of the state that wait in the hosts' memory between their uses",
    )


@dataclass(frozen=True)
class PolicyTraining(Training):
    """How long a policy trains, what it writes, and when it ends before its last update."""

    # Both leave the checkpoints as they are: without them, a run that they ended resumes from its newest one.
    stop_on_alarm: bool = option(
        False,
        resumable=True,
        help="an alarm (see alarms) ends the run, which exports its state of the last evaluation without one; keeps"
        " that checkpoint beside train.keep_checkpoints",
    )
    stop_without_gain: int = option(
        0,
        **_UPDATES,
        resumable=True,
        help="evaluations in a row without a gain (alarms.least_gain) that end the run, which exports its best state;"
        " keeps that checkpoint beside train.keep_checkpoints; 0: never",
    )


@dataclass(frozen=True)
class Adapter(Settings):
    """LoRA: with a rank, an adapter is trained instead of the model."""

    name: ClassVar[str] = "lora"

    rank: int = option(0, at_least=0, at_most=4096, paper="r", help="0 trains the whole model")
    alpha: float = option(16.0, above=0, at_most=1e6, paper="α", help="the adapter counts alpha / rank")
    targets: str = option(
        r"attn/(to|add)_|ff|proj_mlp|proj_out", regex=True, help="adapts layers whose path has a match"
    )


# --------------------------------------------------------------------------------------------- reward feedback learning


@dataclass(frozen=True)
class RewardLearning(Settings):
    """The update of reward feedback learning: what the paper sets, and what it leaves open."""

    name: ClassVar[str] = "rl"

    threshold: float = option(
        0.9, above=0, at_most=1, paper="λ", help="of Eq. 5: P(Yes) beyond which nothing is gained"
    )
    ema_decay: float = option(0.99, **_BELOW_ONE, paper="τ", help="of the policy's moving average")
    num_steps: int = option(50, **_EULER_STEPS, paper="n", in_reference=True, help="Euler steps of a full denoising")
    policy_steps: int | None = option(
        None,
        **_EULER_STEPS,
        help="Euler steps of the policy's rollout, of whose schedule every index is; none: rl.num_steps",
    )
    reference_steps: int | None = option(
        None, **_EULER_STEPS, help="Euler steps of the reference's rollout; none: rl.num_steps"
    )
    first_index: int = option(
        15,
        at_least=0,
        at_most=9999,
        paper="t1",
        help="first index of the schedule at which the policy stops and predicts; 0 is noise",
    )
    last_index: int = option(35, at_least=0, at_most=9999, paper="t2", help="last such index, included")
    estimator: str = option(
        "posterior",
        choices=("posterior", "endpoint", "ascent"),
        help="how the policy's image gets its gradient: posterior, as in the paper, predicts it from x_t; endpoint"
        " denoises it fully and takes the gradient through a few of the velocities on the way; ascent moves the"
        " posterior's prediction up the reward and learns that by flow matching",
    )
    gradient_steps: int = option(
        2, **_EULER_STEPS, paper="K", help="velocities of a sample that get a gradient, with the estimator endpoint"
    )
    gradient_first_index: int = option(
        0, at_least=0, at_most=9999, paper="k1", help="first index of the schedule at which they may lie"
    )
    gradient_last_index: int | None = option(
        None, at_least=0, at_most=9999, paper="k2", help="last such index, included; none: the schedule's last"
    )
    late_bias: float = option(
        0.0, at_least=0, at_most=100, paper="b", help="an index i is drawn with a weight of (i + 1)^b; 0: all alike"
    )
    rescale: float = option(
        1.0, **_SHARE, paper="ρ", help="share to which the velocities drawn stand for those not drawn"
    )
    ascent_steps: int = option(
        4, at_least=0, at_most=1000, help="steps up the reward from the prediction, with the estimator ascent"
    )
    ascent_step_size: float = option(
        0.02, above=0, at_most=1000, help="root mean square of such a step, in latents that vary by about 1"
    )
    trust_radius: float = option(0.05, above=0, at_most=1000, help="root mean square of all of them together, at most")
    index_per_sample: bool = option(
        True, help="draw t for each sample, not once for the batch; the rollout then runs to the latest of them"
    )
    rollout_guidance_scale: float = option(
        1.0, **_SCALE, in_reference=True, help="that the model is told, in both rollouts, without gradient"
    )
    rollout_true_cfg_scale: float = option(
        4.0, **_SCALE, in_reference=True, help="of true guidance in both rollouts; 1 has none"
    )
    gradient_guidance_scale: float = option(
        1.0, **_SCALE, help="that the model is told, in the prediction with gradient"
    )
    gradient_true_cfg_scale: float = option(
        1.0, **_SCALE, help="of true guidance in the prediction with gradient, which doubles its memory; 1 has none"
    )
    flow_matching_weight: float = option(
        0.0, **_WEIGHT, help="of the flow-matching loss on the samples' targets, at the σ of their t; 0 leaves it out"
    )
    matched_reference: bool = option(
        False,
        help="the reference, too, stops at the sample's t and predicts once, so that neither image is sharper for"
        " having been denoised further; off, as in the paper, it denoises fully",
    )
    keep_outside: bool = option(
        False,
        help="the judge sees the request's own pixels outside the mask, in both images, as a user gets them: what the"
        " policy does there gains nothing, in training and evaluations; off is the paper",
    )
    judge_shift: int = option(
        0,
        **_PIXELS,
        help="the judge sees both images moved by up to so many pixels, so that its patches' grid leaves no trace in"
        " the policy; 0 is the paper",
    )
    judge_noise: float = option(
        0.0,
        at_least=0,
        at_most=10,
        help="the judge sees both images under the same noise, of a deviation up to this; 0 is the paper",
    )
    max_disagreement: float = option(
        MOST_DISAGREEMENT,
        at_least=0,
        at_most=MOST_DISAGREEMENT,
        help="with several model.judge_adapters: an answer gives no gradient where their P(Yes) have a standard"
        " deviation above this; .5, the largest there is, gates nothing",
    )
    accumulate: int = option(1, **_BATCH, help="micro-batches of an update")
    # One after the other in the compiled program.
    predictions: int = option(
        1,
        at_least=1,
        at_most=64,
        help="timesteps drawn for each rollout of the policy, which runs once, up to the last of them; with the"
        " estimator endpoint, sets of K velocities; 1 is the paper",
    )
    shared_prefix: bool = option(
        True, help="the judge reads both images once for all dimensions; off, once a dimension, with the same answers"
    )
    reference_cache: str = option(
        "",
        resumable=True,
        words="a directory, or empty",
        help="directory that keeps Algorithm 1's reference images for later updates",
        was="rl.reference_pool",
    )
    reference_max_age: int = option(
        0, **_UPDATES, help="updates for which reference images of Algorithm 2 are used again; 0 is the paper"
    )

    refresh_margin: float = option(
        0.05,
        above=0,
        at_most=1,
        help="with the algorithm earned: how much more than at the last refresh the other judge must prefer the policy"
        " to the base, as a mean of the tasks' P(policy better), for the policy to become the reference",
    )

    def check(self) -> None:
        if self.first_index > self.last_index:
            raise _order("rl.first_index", self.first_index, "at most", "rl.last_index", self.last_index)
        if self.uses_index and self.last_index >= self.steps_of_policy:
            raise _order("rl.last_index", self.last_index, "below", self._name_of_steps, self.steps_of_policy)
        if self.estimator == "endpoint":
            self._check_endpoint()
        if self.matched_reference and self.reuses_references:
            raise UserError(
                "rl.matched_reference makes a reference for the policy's t, which is of no use again: set it to false,"
                " or rl.reference_cache to '' and rl.reference_max_age to 0"
            )
        if self.matched_reference and self.predictions > 1:
            raise UserError(
                "rl.matched_reference makes a reference for the policy's one t: set it to false, or rl.predictions to 1"
            )
        if self.matched_reference and self.steps_of_policy != self.steps_of_reference:
            raise UserError(
                "rl.matched_reference stops the reference at the policy's t, but rl.policy_steps and rl.reference_steps"
                " give them different schedules: set it to false, or both alike"
            )

    def _check_endpoint(self) -> None:
        first, last = self.gradient_range
        if last >= self.steps_of_policy:
            raise _order("rl.gradient_last_index", last, "below", self._name_of_steps, self.steps_of_policy)
        if self.gradient_steps > last - first + 1:
            raise UserError(
                f"rl.gradient_steps is {self.gradient_steps}, but from index {first} to {last} there are"
                f" {max(0, last - first + 1)}: change one of them"
            )
        if self.matched_reference:
            raise UserError("the estimator endpoint denoises the policy fully: set rl.matched_reference to false")

    @property
    def uses_index(self) -> bool:
        """Whether anything goes by t: the endpoint denoises past it, and only flow matching has its σ."""
        return self.estimator != "endpoint" or self.flow_matching_weight > 0

    @property
    def gradient_range(self) -> tuple[int, int]:
        """[k1, k2]."""
        last = self.gradient_last_index
        return self.gradient_first_index, self.steps_of_policy - 1 if last is None else last

    @property
    def steps_of_policy(self) -> int:
        return self.num_steps if self.policy_steps is None else self.policy_steps

    @property
    def steps_of_reference(self) -> int:
        return self.num_steps if self.reference_steps is None else self.reference_steps

    @property
    def _name_of_steps(self) -> str:
        return "rl.num_steps" if self.policy_steps is None else "rl.policy_steps"

    @property
    def true_guidance(self) -> bool:
        """Whether a negative prompt is read anywhere."""
        return self.rollout_true_cfg_scale != 1.0 or self.gradient_true_cfg_scale != 1.0

    @property
    def reuses_references(self) -> bool:
        return bool(self.reference_cache) or self.reference_max_age > 0


@dataclass(frozen=True)
class Evaluation(Settings):
    """How a policy is measured, while it is trained and afterwards."""

    name: ClassVar[str] = "evaluation"

    scenes_per_task: int = option(100, **_SCENES, help="held-out scenes that policy and base model are compared on")
    judge_scenes_per_task: int = option(100, **_SCENES, help="held-out scenes that the judge is measured on")
    num_steps: int = option(50, **_EULER_STEPS, help="Euler steps of an image")
    guidance_scale: float = option(1.0, **_SCALE, help="that the model is told")
    true_cfg_scale: float = option(4.0, **_SCALE, help="of true guidance; 1 has none")
    batch_size: int = option(8, **_BATCH, help="images made at once")
    images_per_task: int = option(6, **_SCENES, help="scenes that the report shows", was="evaluation.pictures_per_task")
    weights: str = option(
        "policy", choices=("policy", "ema"), help="the trained weights, or their average", was="evaluation.what"
    )
    every: int = option(0, **_UPDATES, help="updates between evaluations while training; 0 does none")
    scenes_while_training: int = option(
        16,
        **_SCENES,
        help="held-out scenes a task of an evaluation while training, others than those at the end",
        was="evaluation.watched_scenes",
    )
    other_judge: str = option(
        "",
        help="a judge that training never sees, asked about held-out requests while training: a directory, or a"
        " repository; empty asks the training judge alone",
    )

    def check(self) -> None:
        if self.images_per_task > self.scenes_per_task:
            names = "evaluation.images_per_task", "evaluation.scenes_per_task"
            raise _order(names[0], self.images_per_task, "at most", names[1], self.scenes_per_task)


def _limit(default: float, at_least: float, at_most: float, help: str) -> Any:
    return option(default, at_least=at_least, at_most=at_most, help=f"{help}; none: no alarm")


@dataclass(frozen=True)
class Alarms(Settings):
    """What is measured of reward hacking while a policy is trained, and beyond which limits that is an alarm.

    Limits hold for the mean of a task's held-out samples. Every one is provisional: chosen from what the value can be,
    not from runs. `python -m benchmarks.alarms limits` makes limits from runs.
    """

    name: ClassVar[str] = "alarms"

    in_a_row: int = option(
        2, at_least=1, at_most=1000, help="evaluations in a row that are beyond a limit when an alarm is raised"
    )
    least_gain: float = option(
        0.005,
        **_SHARE,
        help="rise of the judge's mean P(policy better than base), by evaluation.other_judge if there is one, that is a"
        " gain; the best before counts",
    )
    reencodings: tuple[str, ...] = option(
        (),
        choices=("jpeg", "shift", "noise"),
        words="a tuple of jpeg, shift and noise, such as \"('jpeg',)\"",
        help="changes of both images that should leave the judge's answer; empty, since each asks the judge once more"
        " about every held-out request: with all three, an evaluation asks four times as often",
    )
    members: bool = option(False, help="ask the judges of an ensemble (model.judge_adapters) one by one, too")
    seeds: int = option(
        0,
        at_least=0,
        at_most=64,
        help="more answers to the first four requests of each task and size, from other noise; 0: none",
    )
    gradient_cosines: bool = option(
        False,
        help="compare the gradients of dimensions and of tasks at the update before each evaluation, which costs up to"
        " 9 more gradients",
    )

    sure: float | None = _limit(
        0.5, 0, 1, "share of P(policy better than base) above .95. Half: on most requests the judge has nothing to add"
    )
    deviation: float | None = _limit(
        0.02,
        0,
        1,
        "least standard deviation of P(policy better than base) where its mean is above .75. Below: the judge says the"
        " same of every image",
    )
    judge_gap: float | None = _limit(
        0.15,
        0,
        1,
        "the training judge's P(policy better than base) above evaluation.other_judge's. Judges that are right equally"
        " often differ by chance, by a few hundredths on 16 requests",
    )
    disagreement: float | None = _limit(
        0.2, 0, 1, "standard deviation over an ensemble's judges (alarms.members). .2: of four, one says .9 and one .4"
    )
    lost_to_jpeg: float | None = _limit(
        0.1,
        0,
        1,
        "P(policy better than base) lost when both images are saved as JPEG files of quality 75 (alarms.reencodings)."
        " .1: half of what a P of .7 has above a draw",
    )
    lost_to_shift: float | None = _limit(0.1, 0, 1, "the same when both are shifted by half a patch of the judge")
    lost_to_noise: float | None = _limit(0.1, 0, 1, "the same under noise of a deviation of .05")
    judge_grid: float | None = _limit(
        0.05,
        0,
        1,
        "share of the edges' variance inside the mask that lies at the period of the judge's patches, above the base's."
        " Sharp images of 64 pixels without any grid have about .01",
    )
    latent_grid: float | None = _limit(0.05, 0, 1, "the same at the period of the autoencoder's latents")
    saturation: float | None = _limit(
        0.4, 0, 10, "mean saturation inside the mask against the base's, |log of the ratio|. .4: half as much again"
    )
    contrast: float | None = _limit(
        0.4, 0, 10, "the same of the contrast. A policy that no longer blurs gains some, too"
    )
    drift_gain: float | None = _limit(
        0.02,
        0,
        1,
        "mean change of pixels outside the mask above the base's, in images as they are judged: 0 with rl.keep_outside."
        " .02: five grey levels, which are seen",
    )
    diversity: float | None = _limit(
        0.5, 0, 1, "least distance between answers from other noise (alarms.seeds), as a share of the base's"
    )
    gradient_cosine: float | None = _limit(
        -0.5, -1, 1, "least cosine between gradients of two dimensions or tasks. 0: unrelated; -1: opposed"
    )

    def check(self) -> None:
        if len(set(self.reencodings)) < len(self.reencodings):
            raise UserError(f"alarms.reencodings names one twice: {', '.join(self.reencodings)}")


@dataclass(frozen=True)
class Ascent(Settings):
    """`onereward reward-ascent`: how far it follows the judge's gradient."""

    name: ClassVar[str] = "ascent"

    scenes_per_task: int = option(50, **_SCENES, help="held-out scenes")
    num_steps: int = option(10, **_EULER_STEPS, help="steps along the gradient")
    step_size: float = option(0.02, above=0, at_most=1000, help="of a step, in latents whose gradient is normalised")


# ---------------------------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class Preferences(Settings):
    """How preference data of the proving ground is made: candidates, and a simulated annotator's choices."""

    name: ClassVar[str] = "preferences"

    base: str = option("", content=True, help="directory of the fill model that makes candidates")
    policies: tuple[str, ...] = option(
        (), content=True, help="transformers trained against an earlier judge, which make half of the base's candidates"
    )
    first_scene: int = option(0, at_least=0, at_most=10**9, help="number of the first scene")
    synthetic_scenes_per_task: int = option(
        1536,
        at_least=0,
        at_most=10**6,
        help="scenes whose candidates have synthetic defects",
        was="preferences.planted_scenes_per_task",
    )
    scenes_per_task: int = option(512, at_least=0, at_most=10**6, help="scenes whose candidates the base model makes")
    part_size: int = option(32, **_SCENES, help="scenes of a file")
    decoded_share: float = option(
        0.75, **_SHARE, help="share of the scenes with synthetic defects that go through the autoencoder"
    )
    latent_noise_share: float = option(0.4, **_SHARE, help="share of those candidates that get noise on their latents")
    max_latent_noise: float = option(0.8, at_least=0.1, at_most=100, help="largest strength of that noise")
    min_steps: int = option(3, **_EULER_STEPS, help="least Euler steps of a candidate")
    max_steps: int = option(12, **_EULER_STEPS, help="most Euler steps of a candidate")
    one_step_share: float = option(
        0.5, **_SHARE, help="share of candidates that stop early and predict the rest in one step"
    )
    guided_share: float = option(0.25, **_SHARE, help="share of candidates made with true guidance")
    max_true_cfg_scale: float = option(3.0, at_least=1.2, at_most=1000, help="largest scale of that guidance")
    annotator_noise: float = option(0.05, at_least=0, at_most=10, help="deviation of the simulated annotator's error")
    annotator_margin: float = option(
        0.2, at_least=0, at_most=10, help="gap below which the annotator sees no difference"
    )

    def check(self) -> None:
        if self.min_steps > self.max_steps:
            raise _order("preferences.min_steps", self.min_steps, "at most", "preferences.max_steps", self.max_steps)


@dataclass(frozen=True)
class JudgeModel(Settings):
    """The judge, and what it is shown while it is trained (Eq. 3)."""

    name: ClassVar[str] = "judge"

    start: str = option(
        "Qwen/Qwen2.5-VL-7B-Instruct", content=True, help="a judge to start from; empty: an untrained one"
    )
    data: tuple[str, ...] = option(
        ("data/preferences",), content=True, help="directories of preference data, see docs/how-to/preferences.md"
    )
    bad_share: float = option(0.01, **_SHARE, help="share of each directory's records that may be bad")
    dtype: str = option("bfloat16", choices=_DTYPES, help="of the computation")
    remat: str = option("full", choices=_REMAT, help="what a backward pass computes again, to keep less")
    freeze_vision: bool = option(False, help="leave the vision tower as it is")
    max_pixels: int = option(
        1024 * 1024, at_least=0, at_most=2**28, help="of an image; 0 leaves it to the judge's processor"
    )
    image_step: int = option(
        112, **_PIXELS, help="sides are rounded to its multiples; 0 leaves them to the judge's processor"
    )
    held_out_share: float = option(0.05, **_BELOW_ONE, help="share of the records that are held out")
    held_out_records: int = option(
        1000, at_least=1, at_most=10**6, help="records held out at most; the rest of that share is trained on"
    )
    evaluate_every: int = option(250, **_UPDATES, help="updates between evaluations on held-out records; 0 does none")
    keep_best: bool = option(True, help="export the judge that was best on held-out records, not the last")
    ema_decay: float = option(0.999, **_BELOW_ONE, help="of the weights' moving average; 0 keeps none")
    questions_per_pair: int = option(4, at_least=1, at_most=64, help="dimensions asked of a pair, annotated ones first")
    balance_dimensions: bool = option(False, help="draw a task's rare dimensions as often as its frequent ones")
    task: str = option(
        "",
        choices=("", *TASKS),
        words=f"empty, or one of {', '.join(TASKS)}",
        help="train the judge of this task alone, on the pairs that the judge of all tasks would see of it",
        was="judge.only_task",
    )
    synthetic_share: float = option(
        0.0,
        **_SHARE,
        help="share of the pairs that are made while training, with synthetic defects",
        was="judge.planted_share",
    )
    glyph_share: float = option(
        0.0,
        **_SHARE,
        help="share of those of text rendering that have a defect of letters or strokes: missing, doubled, swapped,"
        " broken, blurred",
    )
    max_shift: int = option(0, **_PIXELS, help="pixels by which both images are moved alike")
    flips: bool = option(False, help="mirror both images alike, where the prompt allows it")
    retone: bool = option(False, help="change the colours of both images alike")
    adversarial_radius: float = option(
        0.0, **_SHARE, help="share of the range of values by which images are changed against the judge"
    )
    template: str = option(QUESTION_TEMPLATE, help="of the question")
    template_with_prompt: str = option(QUESTION_WITH_PROMPT_TEMPLATE, help="of the question about a prompt")
    text_config: Mapping[str, Any] = option(
        {}, **_MODEL, help="config.json of an untrained judge's language model; the vocabulary's size may be left out"
    )
    vision_config: Mapping[str, Any] = option(
        {},
        **_MODEL,
        any_length=("fullatt_block_indexes",),
        help="config.json of an untrained judge's vision tower",
    )

    def check(self) -> None:
        words: tuple[str, ...] = ("task", "dimension")
        for name, template in (("template", self.template), ("template_with_prompt", self.template_with_prompt)):
            try:
                check_template(template, words)
            except UserError as error:
                raise UserError(f"judge.{name}: {error}") from None
            words += ("prompt",)
        if self.evaluate_every and not self.held_out_share:
            raise UserError("judge.evaluate_every is set, but judge.held_out_share is 0: hold some records out")
        if self.keep_best and not self.evaluate_every:
            raise UserError("judge.keep_best needs judge.evaluate_every: say how often the judge is measured")


# ---------------------------------------------------------------------------------------------- fill models


@dataclass(frozen=True)
class Finetune(Settings):
    """Flow matching on a user's own images."""

    name: ClassVar[str] = "finetune"

    # At 1 a guidance-distilled model gives the plain velocity, which is what flow matching asks for: so do sd-scripts
    # (docs/flux_train_network.md: "for training, specify 1.0") and InfiniteYou (bytedance/InfiniteYou issue 48).
    # diffusers' train_dreambooth_flux.py takes 3.5.
    guidance_scale: float = option(1.0, **_SCALE, help="that the model is told in training")
    prompt_dropout: float = option(0.1, **_SHARE, help="share of the samples without their prompt")
    ema_decay: float = option(0.99, **_BELOW_ONE, help="of the weights' moving average; 0 keeps none")
    evaluate_every: int = option(250, **_UPDATES, help="updates between losses on held-out images; 0 measures none")
    held_out_draws: int = option(
        4, at_least=1, at_most=10_000, help="noises and noise levels of a held-out image, the same every time"
    )
    sample_every: int = option(
        250, **_UPDATES, help="updates between grids of images that the model makes; 0 makes none"
    )
    num_samples: int = option(4, at_least=0, at_most=1000, help="images of a grid")
    sample_steps: int = option(28, **_EULER_STEPS, help="Euler steps of such an image")
    sample_guidance_scale: float = option(30.0, **_SCALE, help="that the model is told for it")
    sample_true_cfg_scale: float = option(1.0, **_SCALE, help="of true guidance for it; 1 has none")


@dataclass(frozen=True)
class Autoencoder(Settings):
    """The miniature's autoencoder."""

    name: ClassVar[str] = "vae"

    model: Mapping[str, Any] = option(
        {}, **_MODEL, any_length=("block_out_channels",), help="config.json of the autoencoder"
    )
    ema_decay: float = option(0.995, **_BELOW_ONE, help="of the weights' moving average")
    kl_weight: float = option(1e-5, **_WEIGHT, help="of the Kullback–Leibler loss")
    edge_weight: float = option(0.25, **_WEIGHT, help="of the loss on differences between neighbours")
    square_weight: float = option(3.0, **_WEIGHT, help="of the squared error, beside the absolute")


@dataclass(frozen=True)
class BaseModel(Settings):
    """The miniature's fill model."""

    name: ClassVar[str] = "base"

    start: str = option("", content=True, help="a model in diffusers layout to start from; empty: an untrained one")
    train_text_encoders: bool = option(True, help="let the text encoders learn, too")
    dtype: str = option("float32", choices=_DTYPES, help="of the computation")
    remat: str = option("none", choices=_REMAT, help="what a backward pass computes again, to keep less")
    vae: str = option("", content=True, help="directory of the autoencoder of an untrained model")
    scenes_per_task: int = option(4000, **_SCENES, help="scenes that are encoded once and come again")
    transformer: Mapping[str, Any] = option({}, **_MODEL, help="config.json of an untrained transformer")
    text_encoder: Mapping[str, Any] = option({}, **_MODEL, help="config.json of an untrained CLIP text encoder")
    text_encoder_2: Mapping[str, Any] = option({}, **_MODEL, help="config.json of an untrained T5 encoder")
    prompt_dropout: float = option(0.1, **_SHARE, help="share of the samples without their prompt")
    ema_decay: float = option(0.999, **_BELOW_ONE, help="of the weights' moving average")


# ------------------------------------------------------------------------------------------------------------ recipes


def _seed() -> Any:
    return option(0, **SEEDS, in_reference=True, help="of every random number")


def _max_sequence_length() -> Any:
    return option(512, at_least=1, at_most=512, in_reference=True, help="tokens that T5 reads of a prompt")


def _question_length() -> Any:
    return option(
        128,
        at_least=1,
        at_most=LONGEST,
        help="tokens of the longest question, the prompt and the answer's start included",
    )


@dataclass(frozen=True)
class Recipe(Settings):
    """Base of the kinds of training.

    Attributes:
      own: the group by which a configuration of this recipe is known.
      title: what it is.
    """

    own: ClassVar[str]
    title: ClassVar[str]

    seed: int = _seed()
    data: Data = field(default_factory=Data)
    mesh: Mesh = field(default_factory=Mesh)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Training = field(default_factory=Training)

    @classmethod
    def config_dict(cls) -> ConfigDict:
        """All settings at their defaults: where a file in configs/ starts. What is set there is checked when the file
        is loaded, and not before."""
        return ConfigDict(cls().to_dict(), type_safe=False)


@dataclass(frozen=True)
class RewardFeedback(Recipe):
    """Reward feedback learning: `onereward train`, `evaluate`, `reward-ascent`, `sanity-checks` and `plan`."""

    own: ClassVar[str] = "rl"
    title: ClassVar[str] = "reward feedback learning"

    algorithm: str = option(
        "dynamic",
        choices=("fixed", "dynamic", "earned"),
        help="the reference is the base model (Algorithm 1), the EMA (2), or the policy as it was when it last did"
        " better in the eyes of evaluation.other_judge, see rl.refresh_margin",
    )
    data: PolicyData = field(default_factory=PolicyData)
    train: PolicyTraining = field(default_factory=PolicyTraining)
    max_sequence_length: int = _max_sequence_length()
    question_length: int = _question_length()
    model: PolicyModels = field(default_factory=PolicyModels)
    lora: Adapter = field(default_factory=Adapter)
    rl: RewardLearning = field(default_factory=RewardLearning)
    evaluation: Evaluation = field(default_factory=Evaluation)
    alarms: Alarms = field(default_factory=Alarms)
    preferences: Preferences = field(default_factory=Preferences)
    ascent: Ascent = field(default_factory=Ascent)

    # What these groups say is measured; training reads none of it. A policy may be measured otherwise than was planned.
    MEASURING: ClassVar[tuple[str, ...]] = ("alarms", "ascent", "evaluation", "preferences")

    @property
    def only_measuring(self) -> tuple[str, ...]:
        """`MEASURING`, without what this run is trained by."""
        return tuple(name for name in self.MEASURING if name != "evaluation" or self.algorithm != "earned")

    def check(self) -> None:
        rl, size, count = self.rl, self.train.batch_size, self.data.num_conditions
        for name in ("stop_on_alarm", "stop_without_gain"):
            if self.train[name] and not self.evaluation.every:
                raise UserError(f"train.{name} goes by evaluations, but evaluation.every is 0: set it")
        if size % rl.accumulate:
            raise UserError(
                f"rl.accumulate is {rl.accumulate}, which does not divide train.batch_size {size}: change one of them"
            )
        if count % size:
            raise UserError(
                f"data.num_conditions {count} is no multiple of train.batch_size {size}, so that a batch would lie in"
                " two epochs: change one of them"
            )
        if rl.reference_cache and self.algorithm != "fixed":
            raise UserError(
                'rl.reference_cache needs algorithm "fixed", whose references never change; with "dynamic" use'
                " rl.reference_max_age"
            )
        if rl.reference_cache and not count:
            raise UserError(
                "rl.reference_cache is of use where conditions recur: set data.num_conditions to how many there are"
            )
        if rl.max_disagreement < MOST_DISAGREEMENT and len(self.model.judge_adapters) < 2:
            raise UserError(
                "rl.max_disagreement is about several judges: name two or more in model.judge_adapters, or set it to"
                f" {MOST_DISAGREEMENT}"
            )
        if self.alarms.members and len(self.model.judge_adapters) < 2:
            raise UserError(
                "alarms.members is about several judges: name two or more in model.judge_adapters, or leave it out"
            )
        for name in ("members", "seeds", "gradient_cosines"):
            if self.alarms[name] and not self.evaluation.every:
                raise UserError(f"alarms.{name} is measured at evaluations, but evaluation.every is 0: set it")
        if self.algorithm == "earned" and not (self.evaluation.every and self.evaluation.other_judge):
            raise UserError(
                'the algorithm "earned" asks another judge about held-out requests: set evaluation.other_judge and'
                " evaluation.every"
            )
        if rl.reference_max_age and self.algorithm != "dynamic":
            raise UserError('rl.reference_max_age needs algorithm "dynamic"; with "fixed" use rl.reference_cache')
        if "reference" in self.train.offload and self.algorithm == "dynamic":
            raise UserError("train.offload names the reference, which algorithm dynamic has none of: leave it out")


@dataclass(frozen=True)
class JudgeTraining(Recipe):
    """The judge's training (Eq. 3): `onereward train-judge` and `make-preferences`."""

    own: ClassVar[str] = "judge"
    title: ClassVar[str] = "the training of a judge"

    data: SceneData = field(default_factory=SceneData)
    max_sequence_length: int = _max_sequence_length()
    question_length: int = _question_length()
    # The paper's batch and rate; how long it trained, it does not say.
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-6))
    train: Training = field(default_factory=lambda: Training(num_steps=5000, batch_size=16))
    lora: Adapter = field(default_factory=lambda: Adapter(targets=r"layers/(self_attn|mlp)/"))
    judge: JudgeModel = field(default_factory=JudgeModel)
    preferences: Preferences = field(default_factory=Preferences)

    def check(self) -> None:
        _check_adapter(self.lora.rank, "judge.start", self.judge.start)


@dataclass(frozen=True)
class Finetuning(Recipe):
    """Fine-tuning of a fill model on a user's own images: `onereward finetune`."""

    own: ClassVar[str] = "finetune"
    title: ClassVar[str] = "fine-tuning"

    max_sequence_length: int = _max_sequence_length()
    data: RequestData = field(default_factory=RequestData)
    model: Models = field(default_factory=Models)
    # The rate for adapters as in diffusers' train_dreambooth_lora_flux.py and sd-scripts' docs/flux_train_network.md.
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-4))
    train: Training = field(default_factory=lambda: Training(num_steps=2000, batch_size=4, checkpoint_every=250))
    lora: Adapter = field(default_factory=Adapter)
    finetune: Finetune = field(default_factory=Finetune)


@dataclass(frozen=True)
class AutoencoderTraining(Recipe):
    """The training of the miniature's autoencoder: `onereward train-vae`."""

    own: ClassVar[str] = "vae"
    title: ClassVar[str] = "the training of an autoencoder"

    data: SceneData = field(default_factory=SceneData)
    vae: Autoencoder = field(default_factory=Autoencoder)


@dataclass(frozen=True)
class BaseTraining(Recipe):
    """The training of the miniature's fill model: `onereward train-base`."""

    own: ClassVar[str] = "base"
    title: ClassVar[str] = "the training of a fill model"

    data: SceneData = field(default_factory=SceneData)
    max_sequence_length: int = _max_sequence_length()
    lora: Adapter = field(default_factory=Adapter)
    base: BaseModel = field(default_factory=BaseModel)

    def check(self) -> None:
        _check_adapter(self.lora.rank, "base.start", self.base.start)
        if self.lora.rank and self.base.train_text_encoders:
            raise UserError(
                "lora.rank trains the transformer's adapter alone: set base.train_text_encoders to false, or rank 0"
            )


RECIPES: tuple[type[Recipe], ...] = (RewardFeedback, JudgeTraining, Finetuning, AutoencoderTraining, BaseTraining)


def _check_adapter(rank: int, name: str, start: str) -> None:
    if rank and not start:
        raise UserError(f"lora.rank is {rank}, but there is no model to adapt: set {name}, or rank 0")


def _order(lower: str, less: float, relation: str, upper: str, greater: float) -> UserError:
    return UserError(f"{lower} ({less}) must be {relation} {upper} ({greater}): change one of them")
