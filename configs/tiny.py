"""The miniature: every part in its real architecture, small enough for two CPU cores.

    onereward train --config configs/tiny.py:quick --workdir runs/quick      # a few minutes
    onereward evaluate --config configs/tiny.py:quick --workdir runs/quick   # writes runs/quick/report.html

    onereward train --config configs/tiny.py:fixed --workdir runs/fixed      # Algorithm 1, longer
    onereward train --config configs/tiny.py:dynamic --workdir runs/dynamic  # Algorithm 2, longer

The variants `vae`, `base`, `judge` and `second_judge` to `fifth_judge` make the packaged models in miniature/ from
nothing; launch/miniature.sh runs them in their order. `one_judge` and `task_judge` compare one judge for all tasks with
one a task, see docs/miniature.md.
"""

from ml_collections import ConfigDict

VARIANTS = (
    *("quick", "fixed", "dynamic", "vae", "base"),
    *("judge", "second_judge", "third_judge", "fourth_judge", "fifth_judge"),
    *("one_judge", "task_judge"),
)


def get_config(variant: str = "quick") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/tiny.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.seed = 0

    # Scenes with a known truth on photographs; `photos` names a folder to use instead of the packaged ones.
    config.data = ConfigDict()
    config.data.resolution = 64
    config.data.seed = 0
    config.data.photos = ""
    config.data.loader_threads = 2
    config.data.loader_timeout = 600.0  # seconds without a batch until the run ends; 0 waits for ever
    config.data.target_flaws = 0.3  # share of training targets with a planted flaw, as web data has
    config.data.task_weights = ConfigDict(
        {"image_fill": 0.25, "image_extend": 0.25, "object_removal": 0.25, "text_rendering": 0.25}
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.max_sequence_length = 16  # tokens that T5 reads of a prompt
    config.question_length = 20  # tokens of the judge's longest question, answer's start included

    # With a rank, an adapter is trained instead of the model, of the layers whose path has a match of `targets`.
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": r"attn/(to|add)_|ff|proj_mlp|proj_out"})

    stages = {
        "vae": _vae,
        "base": _base,
        "judge": _judge,
        "second_judge": _second_judge,
        "third_judge": _third_judge,
        "fourth_judge": _fourth_judge,
        "fifth_judge": _fifth_judge,
        "one_judge": _one_judge,
        "task_judge": _task_judge,
    }
    stages.get(variant, _reward_feedback)(config)
    for name in {"vae": ("lora", "max_sequence_length", "question_length"), "base": ("question_length",)}.get(
        variant, ()
    ):
        del config[name]
    if variant == "fixed":
        config.algorithm = "fixed"
    if variant in ("fixed", "dynamic"):
        config.train.num_steps = 500
        config.optimizer.decay_steps = 500
        config.evaluation.every = 50
        config.evaluation.watched_scenes = 32
    return config


def _reward_feedback(config: ConfigDict) -> None:
    config.algorithm = "dynamic"
    config.data.num_conditions = 0  # scenes that come again and again; 0: every one is new

    # diffusers layout, transformers layout
    config.model = ConfigDict({"base": "miniature/base", "judge": "miniature/judge"})
    config.model.judge_adapters = ()  # of that judge: with several, the mean of their P(Yes) is the reward
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.optimizer = _optimizer(5e-5, warmup_steps=5)
    config.optimizer.weight_decay = 0.0
    config.train = _train(200, 8, checkpoint_every=40, log_every=1)

    # The fields of onereward_jax.rl.step.StepConfig
    config.rl = ConfigDict()
    config.rl.threshold = 0.9
    config.rl.ema_decay = 0.95
    config.rl.num_steps = 8
    # Late: an early prediction is blurred, and beside the reference the judge would ask for nothing but sharpness.
    config.rl.first_index = 6
    config.rl.last_index = 7
    config.rl.index_per_sample = True
    config.rl.rollout_guidance_scale = 1.0
    config.rl.rollout_true_cfg_scale = 1.0
    config.rl.gradient_guidance_scale = 1.0
    config.rl.gradient_true_cfg_scale = 1.0
    config.rl.flow_matching_weight = 0.5
    config.rl.matched_reference = False
    # What holds under all shifts and noise is in the picture; the rest is the judge's own.
    config.rl.judge_shift = 4
    config.rl.judge_noise = 0.15
    config.rl.accumulate = 1
    # Less compute for a gradient, see docs/scale.md: predictions t a rollout, one call of the judge for all dimensions,
    # a directory that keeps Algorithm 1's references, for how many updates those of Algorithm 2 are used again.
    config.rl.predictions = 1
    config.rl.shared_prefix = True
    config.rl.reference_pool = ""
    config.rl.reference_max_age = 0

    config.preferences = _preferences()
    config.preferences.part_size = 25

    config.evaluation = ConfigDict()
    config.evaluation.scenes_per_task = 400
    config.evaluation.judge_scenes_per_task = 200
    config.evaluation.num_steps = 8
    config.evaluation.guidance_scale = 1.0
    config.evaluation.true_cfg_scale = 1.0
    config.evaluation.batch_size = 50
    config.evaluation.pictures_per_task = 6
    config.evaluation.what = "policy"  # or "ema"
    # `onereward reward-ascent`: how far it follows the judge's gradient.
    config.ascent = ConfigDict({"scenes_per_task": 50, "num_steps": 10, "step_size": 0.02})

    # While training: the truth on so many other held-out scenes a task, every so many updates; 0 never looks.
    config.evaluation.every = 40
    config.evaluation.watched_scenes = 16


def _vae(config: ConfigDict) -> None:
    config.optimizer = _optimizer(2e-3, warmup_steps=100, decay_steps=4000)
    config.train = _train(4000, 8)
    config.vae = ConfigDict()
    config.vae.model = ConfigDict(
        {
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (16, 32, 64),
            "layers_per_block": 1,
            "latent_channels": 16,
            "norm_num_groups": 8,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    )
    config.vae.ema_decay = 0.995
    config.vae.kl_weight = 1e-5
    config.vae.edge_weight = 0.25
    config.vae.square_weight = 3.0


def _base(config: ConfigDict) -> None:
    config.optimizer = _optimizer(1e-3, warmup_steps=100, decay_steps=9000)
    config.train = _train(9000, 16)
    config.base = ConfigDict()
    config.base.start = ""  # a model in diffusers layout to go on from; the models below are read if it is empty
    config.base.train_text_encoders = True
    config.base.dtype = "float32"
    config.base.remat = "none"
    config.base.vae = "runs/miniature/vae/export/vae"
    config.base.scenes_per_task = 4000
    config.base.transformer = ConfigDict(
        {
            "patch_size": 1,
            "in_channels": 192,
            "out_channels": 64,
            "num_layers": 2,
            "num_single_layers": 4,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
            "guidance_embeds": True,
            "axes_dims_rope": (8, 12, 12),
        }
    )
    config.base.text_encoder = ConfigDict(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": 64,
        }
    )
    config.base.text_encoder_2 = ConfigDict(
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
        }
    )
    config.base.prompt_dropout = 0.1
    config.base.ema_decay = 0.999


def _judge(config: ConfigDict) -> None:
    config.optimizer = _optimizer(6e-4, warmup_steps=100, decay_steps=3500)
    config.train = _train(3500, 16)
    config.preferences = _preferences()

    config.lora.targets = r"layers/(self_attn|mlp)/"
    config.judge = ConfigDict()
    config.judge.start = ""  # a judge to go on from
    # Preference data in either form (docs/preferences.md), such as directories of make-preferences.
    config.judge.data = ("runs/miniature/preferences",)
    config.judge.bad_share = 0.01  # of each one's records, that may be bad
    config.judge.dtype = "float32"
    config.judge.remat = "none"
    config.judge.freeze_vision = False
    # Pictures: at most so many pixels, sides rounded to multiples of a step; 0 leaves both to the judge's processor.
    config.judge.max_pixels = 0
    config.judge.image_step = 0
    # Held-out records, and how often the judge is measured on them; of those judges the best may be kept, not the last.
    config.judge.held_out_share = 0.0
    config.judge.evaluate_every = 0
    config.judge.keep_best = False
    # Share of the pairs that are made while it trains, see proving_ground/synthetic_pairs.py; others are preferences.
    config.judge.planted_share = 0.0
    config.judge.questions_per_pair = 4
    # Of a task's dimensions each is drawn as often as the others, however few pairs are annotated in it.
    config.judge.balance_dimensions = False
    # A judge of one task alone is trained on the pairs that the judge of all, under the same weights, sees of it.
    config.judge.only_task = ""
    # Changes of both images alike: by up to so many pixels, and mirrored where the prompt allows it.
    config.judge.max_shift = 0
    config.judge.flips = False
    config.judge.retone = False
    # The judge is trained on pictures changed against it, invisibly: by up to so much of the range from black to white.
    config.judge.adversarial_radius = 0.0
    # Shorter than the words of onereward_jax.tasks: a question's tokens are most of what the miniature computes.
    config.judge.template = "{task}: {dimension}?"
    config.judge.template_with_prompt = "{task}: {prompt}?"
    config.judge.text_config = ConfigDict(
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": (4, 6, 6)},
            "tie_word_embeddings": True,
        }
    )
    config.judge.vision_config = ConfigDict(
        {
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "out_hidden_size": 128,
            "fullatt_block_indexes": (2,),
        }
    )
    config.judge.ema_decay = 0.999  # 0 keeps no average


def _second_judge(config: ConfigDict) -> None:
    """Goes on with more preferences, in which policies that fooled the first judge compete with the base model."""
    _judge(config)
    config.optimizer = _optimizer(4e-4, warmup_steps=200, decay_steps=5000)
    config.train.num_steps = 5000
    config.preferences.first_scene = 2048
    config.preferences.planted_scenes_per_task = 1024
    config.preferences.scenes_per_task = 2048
    config.preferences.policies = (
        "runs/miniature/policy_early/export/policy",
        "runs/miniature/policy_late/export/policy",
    )
    config.judge.start = "runs/miniature/judge/export"
    config.judge.data = ("runs/miniature/preferences", "runs/miniature/second_preferences")
    config.judge.max_shift = 4
    config.judge.flips = True


def _third_judge(config: ConfigDict) -> None:
    """Goes on with pairs that are new at every step, and more of the base's pictures."""
    _second_judge(config)
    config.optimizer = _optimizer(5e-4, warmup_steps=100, decay_steps=13000)
    config.train.num_steps = 13000
    config.preferences.first_scene = 5120
    config.preferences.planted_scenes_per_task = 0
    config.preferences.policies = ()
    config.judge.start = "runs/miniature/second_judge/export"
    config.judge.data += ("runs/miniature/third_preferences",)
    config.judge.planted_share = 0.4
    # Most pairs are annotated in one dimension: what is asked beyond costs a question and teaches nothing.
    config.judge.questions_per_pair = 1


def _fourth_judge(config: ConfigDict) -> None:
    """Goes on with what policies that pleased the third judge overdid."""
    _third_judge(config)
    config.preferences.first_scene = 7168
    config.preferences.policies = (
        "runs/miniature/policy_gentle/export/policy",
        "runs/miniature/policy_grainy/export/policy",
        "runs/miniature/policy_sharp/export/policy",
    )
    config.judge.start = "runs/miniature/third_judge/export"
    config.judge.data += ("runs/miniature/fourth_preferences",)


def _fifth_judge(config: ConfigDict) -> None:
    """Goes on with what policies that pleased the fourth judge overdid, and with rare dimensions as often as others."""
    _third_judge(config)
    config.optimizer = _optimizer(3e-4, warmup_steps=100, decay_steps=2500)
    config.train.num_steps = 2500
    config.preferences.first_scene = 9216
    config.preferences.scenes_per_task = 1024
    config.preferences.policies = (
        "runs/miniature/policy_bold/export/policy",
        "runs/miniature/policy_free/export/policy",
    )
    config.judge.start = "runs/miniature/fourth_judge/export"
    config.judge.data = ("runs/miniature/fifth_preferences/train", "runs/miniature/fifth_extensions/train")
    config.judge.planted_share = 0.25
    config.judge.balance_dimensions = True
    # Pairs that differ in the aesthetics of an extension are the rarest.
    config.data.task_weights.image_extend = 0.4


def _one_judge(config: ConfigDict) -> None:
    """A judge for all tasks from nothing, to be compared with one a task."""
    _fifth_judge(config)
    config.optimizer = _optimizer(6e-4, warmup_steps=100, decay_steps=4000)
    config.train.num_steps = 4000
    config.judge.start = ""
    config.judge.planted_share = 0.5
    config.data.task_weights.image_extend = 0.25


def _task_judge(config: ConfigDict) -> None:
    """The judge of one task, `judge.only_task`: four of them take the steps of `one_judge` and see its pairs."""
    _one_judge(config)
    config.optimizer.decay_steps = 1000
    config.train.num_steps = 1000
    config.judge.ema_decay = 0.996  # over the same share of the run


def _preferences() -> ConfigDict:
    """How candidates are made: see onereward_jax.candidates.simulated."""
    return ConfigDict(
        {
            "base": "miniature/base",
            "policies": (),  # transformers trained against an earlier judge, which make half of the base's candidates
            "first_scene": 0,
            "planted_scenes_per_task": 1536,
            "scenes_per_task": 512,
            "part_size": 32,
            # Of the planted scenes: how many go through the autoencoder, how many of those candidates get latent noise.
            "decoded_share": 0.75,
            "latent_noise_share": 0.4,
            "max_latent_noise": 0.8,
            "min_steps": 3,
            "max_steps": 12,
            "one_step_share": 0.5,
            "guided_share": 0.25,
            "max_true_cfg_scale": 3.0,
            # Of the simulated annotator: deviation of its error, and the gap below which it sees no difference.
            "annotator_noise": 0.05,
            "annotator_margin": 0.2,
        }
    )


def _optimizer(learning_rate: float, warmup_steps: int, decay_steps: int = 0) -> ConfigDict:
    """AdamW; `decay_steps` = 0 keeps the rate constant after the warm-up."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "decay_steps": decay_steps,
            "clip_norm": 1.0,
            "weight_decay": 0.01,
            "b2": 0.99,
        }
    )


def _train(num_steps: int, batch_size: int, checkpoint_every: int = 500, log_every: int = 10) -> ConfigDict:
    return ConfigDict(
        {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "checkpoint_every": checkpoint_every,
            "keep_checkpoints": 2,
            "log_every": log_every,
            "max_skipped": 10,  # updates in a row, for a loss or gradient that is not finite
            "max_unsharded_mib": 64.0,  # a warning names larger arrays that no axis of the mesh splits
            "offload": (),  # of opt_state, ema and reference, what waits in the hosts' memory between its uses
        }
    )
