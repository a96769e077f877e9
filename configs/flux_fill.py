"""FLUX.1-Fill at full size, improved by one Qwen2.5-VL-7B judge: OneReward (arXiv 2508.21066) with the paper's values.

    onereward plan --config configs/flux_fill.py:dynamic_1024 --topology v5p:2x2x4    # does it fit, what does it take?
    onereward train --config configs/flux_fill.py:dynamic_1024 --workdir runs/flux_fill

Variants are {fixed,dynamic}[_lora]_{512,1024}: Algorithm 1 or 2, the whole transformer or an adapter of it, pixels a
side. The weights come from the Hugging Face hub; `--config.model.base=DIR` and `--config.model.judge=DIR` take
directories, such as a judge of `configs/judge_7b.py`. "open" marks what the paper does not say.
"""

from ml_collections import ConfigDict

VARIANTS = tuple(
    f"{algorithm}{adapter}_{side}"
    for algorithm in ("dynamic", "fixed")
    for adapter in ("", "_lora")
    for side in (1024, 512)
)


def get_config(variant: str = "dynamic_1024") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/flux_fill.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    algorithm, *adapter, side = variant.split("_")
    config = ConfigDict()
    config.seed = 0
    config.algorithm = algorithm

    config.data = ConfigDict()
    config.data.resolution = int(side)
    config.data.seed = 0
    config.data.photos = ""
    config.data.loader_threads = 8
    config.data.loader_timeout = 600.0  # seconds without a batch until the run ends; 0 waits for ever
    config.data.target_flaws = 0.0
    config.data.num_conditions = 0  # pictures with mask and prompt that come again and again; 0: every one is new
    # Fill is .5 with text rendering inside it; how much of it that is: open.
    config.data.task_weights = ConfigDict(
        {"image_fill": 0.35, "text_rendering": 0.15, "image_extend": 0.25, "object_removal": 0.25}
    )
    # A device for each sample of the batch; what more there are share a sample's layers.
    config.mesh = ConfigDict({"data": 1, "fsdp": 8, "tensor": -1})
    config.max_sequence_length = 512  # tokens that T5 reads of a prompt
    config.question_length = 128  # tokens of the judge's longest question, the prompt and the answer's start included

    config.model = ConfigDict({"base": "black-forest-labs/FLUX.1-Fill-dev", "judge": "Qwen/Qwen2.5-VL-7B-Instruct"})
    config.model.judge_adapters = ()  # of that judge: with several, the mean of their P(Yes) is the reward
    config.model.dtype = "bfloat16"  # of the computation and of what is frozen; masters are float32
    config.model.remat = "full"
    # Of the transformer: splash attention on TPU, cuDNN on GPU, or one of xla, splash and cudnn. Queries, and keys with
    # values, of a block of splash attention: they divide the tokens of both sizes of pictures.
    config.model.attention = "auto"
    config.model.attention_blocks = (768, 768)

    # The paper's rate; the rest is open.
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-5,
            "warmup_steps": 100,
            "decay_steps": 0,
            "clip_norm": 1.0,
            "weight_decay": 0.0,
            "b2": 0.999,
        }
    )
    # The paper trains with batches of 8, "about 8,000 iterations".
    config.train = ConfigDict(
        {"num_steps": 8000, "batch_size": 8, "checkpoint_every": 500, "keep_checkpoints": 2, "log_every": 10}
    )
    config.train.max_skipped = 10  # updates in a row, for a loss or gradient that is not finite
    config.train.max_unsharded_mib = 64.0  # a warning names larger arrays that no axis of the mesh splits
    config.train.offload = ()  # of opt_state, ema and reference, what waits in the hosts' memory between its uses
    config.lora = ConfigDict({"rank": 64 if adapter else 0, "alpha": 64.0})  # open
    config.lora.targets = r"attn/(to|add)_|ff|proj_mlp|proj_out"

    # The fields of onereward_jax.rl.step.StepConfig.
    config.rl = ConfigDict()
    config.rl.threshold = 0.9  # λ, open
    config.rl.ema_decay = 0.99  # τ, open
    # Steps of a rollout: as at inference. Indices of the prediction [t1, t2], half-way on average: open.
    config.rl.num_steps = 50
    config.rl.first_index = 15
    config.rl.last_index = 35
    # One index a batch: with one a sample, the rollout runs to the latest of them.
    config.rl.index_per_sample = False
    # As OneReward's transformers are run; what guides the prediction with gradient: open.
    config.rl.rollout_guidance_scale = 1.0
    config.rl.rollout_true_cfg_scale = 4.0
    config.rl.gradient_guidance_scale = 1.0
    config.rl.gradient_true_cfg_scale = 4.0
    # Not in the paper.
    config.rl.flow_matching_weight = 0.0
    config.rl.matched_reference = False
    config.rl.judge_shift = 0
    config.rl.judge_noise = 0.0
    config.rl.accumulate = 1
    # Less compute for a gradient, see docs/scale.md: predictions t a rollout, one call of the judge for all dimensions,
    # a directory that keeps Algorithm 1's references, for how many updates those of Algorithm 2 are used again.
    config.rl.predictions = 1
    config.rl.shared_prefix = True
    config.rl.reference_pool = ""
    config.rl.reference_max_age = 0

    config.evaluation = ConfigDict()
    config.evaluation.scenes_per_task = 100
    config.evaluation.judge_scenes_per_task = 100
    config.evaluation.num_steps = 50
    config.evaluation.guidance_scale = 1.0
    config.evaluation.true_cfg_scale = 4.0
    config.evaluation.batch_size = 8
    config.evaluation.pictures_per_task = 6
    config.evaluation.what = "policy"  # or "ema"
    config.evaluation.every = 0
    config.evaluation.watched_scenes = 16
    return config
