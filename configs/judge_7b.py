"""The judge at full size: Qwen2.5-VL-7B-Instruct trained on preference pairs by Eq. 3, in full.

    onereward train-judge --config judge_7b --config.judge.data="('DATA',)" --workdir runs/judge_7b
    onereward evaluate-judge --model runs/judge_7b/export --data HELD_OUT --untuned Qwen/Qwen2.5-VL-7B-Instruct

DATA is a directory of preference data, see docs/how-to/preferences.md. The variant `3b` starts from the 3B model. The
weights come from the Hugging Face hub; `--config.judge.start=DIR` takes a directory instead. Parameters, gradients,
Adam's moments and the average take 20 bytes a parameter in float32: 155 GiB for 7B, 70 GiB for 3B, shared by all
devices (`mesh.fsdp`). `--config.judge.freeze_vision=true` and `--config.judge.ema_decay=0` take less.
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema
from onereward_jax.tasks import TASKS

VARIANTS = ("7b", "3b")


def get_config(variant: str = "7b") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/judge_7b.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = schema.JudgeTraining.config_dict()
    config.data.task_weights = dict.fromkeys(TASKS, 0.25)
    config.optimizer.warmup_steps = 100
    config.judge.start = f"Qwen/Qwen2.5-VL-{variant.upper()}-Instruct"
    # What the released models are; a judge that starts from one reads its own config.json.
    config.judge.text_config = {
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
    config.judge.vision_config = {
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
