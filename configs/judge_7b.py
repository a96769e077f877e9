"""The judge at full size: Qwen2.5-VL-7B-Instruct trained on preference pairs by Eq. 3, in full.

    onereward train-judge --config configs/judge_7b.py --config.judge.data="('DATA',)" --workdir runs/judge_7b
    onereward evaluate-judge --model runs/judge_7b/export --data HELD_OUT --untuned Qwen/Qwen2.5-VL-7B-Instruct

DATA is a directory of preference data, see docs/preferences.md. The variant `3b` starts from the 3B model. The weights
come from the Hugging Face hub; `--config.judge.start=DIR` takes a directory instead. Parameters, gradients, Adam's
moments and the average take 20 bytes a parameter in float32: 155 GiB for 7B, 70 GiB for 3B, shared by all devices
(`mesh.fsdp`). `--config.judge.freeze_vision=true` and `--config.judge.ema_decay=0` take less.
"""

from ml_collections import ConfigDict

from onereward_jax.tasks import QUESTION_TEMPLATE, QUESTION_WITH_PROMPT_TEMPLATE

VARIANTS = ("7b", "3b")


def get_config(variant: str = "7b") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/judge_7b.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()
    config.data.loader_threads = 8
    config.data.loader_timeout = 600.0  # seconds without a batch until the run ends; 0 waits for ever
    # Of a batch's pairs; 0 for a task that the data lacks.
    config.data.task_weights = ConfigDict(
        {"image_fill": 0.25, "image_extend": 0.25, "object_removal": 0.25, "text_rendering": 0.25}
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    config.question_length = 128  # tokens of the longest question, the prompt and the answer's start included

    # The paper's batch and rate; how long it trained, it does not say.
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-6,
            "warmup_steps": 100,
            "decay_steps": 0,
            "clip_norm": 1.0,
            "weight_decay": 0.0,
            "b2": 0.999,
        }
    )
    config.train = ConfigDict(
        {"num_steps": 5000, "batch_size": 16, "checkpoint_every": 500, "keep_checkpoints": 2, "log_every": 10}
    )
    config.train.max_skipped = 10  # updates in a row, for a loss or gradient that is not finite
    config.train.max_unsharded_mib = 64.0  # a warning names larger arrays that no axis of the mesh splits
    config.train.offload = ()  # of opt_state, ema and reference, what waits in the hosts' memory between its uses

    config.judge = ConfigDict()
    config.judge.start = f"Qwen/Qwen2.5-VL-{variant.upper()}-Instruct"
    config.judge.data = ("data/preferences",)
    config.judge.bad_share = 0.01
    config.judge.dtype = "bfloat16"
    config.judge.remat = "full"
    config.judge.freeze_vision = False
    config.judge.max_pixels = 1024 * 1024
    config.judge.image_step = 112  # of pixels; the vision tower's windows are as wide
    config.judge.held_out_share = 0.05
    config.judge.evaluate_every = 250
    config.judge.keep_best = True
    config.judge.ema_decay = 0.999
    config.judge.questions_per_pair = 4
    config.judge.balance_dimensions = False  # True draws a shape's rare dimensions as often as its frequent ones
    config.judge.only_task = ""  # a judge of one task alone
    config.judge.planted_share = 0.0
    config.judge.max_shift = 0
    config.judge.flips = False
    config.judge.retone = False
    config.judge.adversarial_radius = 0.0
    config.judge.template = QUESTION_TEMPLATE
    config.judge.template_with_prompt = QUESTION_WITH_PROMPT_TEMPLATE
    config.judge.text_config = ConfigDict(
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": (16, 24, 24)},
            "tie_word_embeddings": False,
        }
    )
    config.judge.vision_config = ConfigDict(
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": (7, 15, 23, 31),
        }
    )
    if variant == "3b":
        config.judge.text_config.update(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        config.judge.vision_config.out_hidden_size = 2048
    return config
