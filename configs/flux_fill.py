"""FLUX.1-Fill at full size, improved by one Qwen2.5-VL-7B judge: OneReward (arXiv 2508.21066) with the paper's values.

    onereward plan --config flux_fill:dynamic_1024 --topology v5p:2x2x4    # does it fit, what does it take?
    onereward train --config flux_fill:dynamic_1024 --config.data.source=REQUESTS --workdir runs/flux_fill

Variants are {fixed,dynamic}[_lora]_{512,1024}: Algorithm 1 or 2, the whole transformer or an adapter of it, pixels a
side. The weights come from the Hugging Face hub; `--config.model.base=DIR` and `--config.model.judge=DIR` take
directories, such as a judge of `configs/judge_7b.py`. What an update takes on which slice: docs/lab-notes/scale.md.

The paper's values are the schema's defaults: rate 1e-5, batches of 8, about 8000 updates, 50 steps with true guidance
of 4. "Open" marks what the paper does not say.
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema

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
    config = schema.RewardFeedback.config_dict()
    config.algorithm = algorithm
    config.data.resolution = int(side)
    config.data.source = "data/requests"  # yours; empty, it would be coloured shapes on a few photographs
    # A device for each sample of the batch; what more there are share a sample's layers.
    config.mesh.fsdp = 8
    config.mesh.tensor = -1
    # These divide the tokens of both sizes of images.
    config.model.attention_blocks = (768, 768)
    config.optimizer.warmup_steps = 100  # open
    config.lora.rank = 64 if adapter else 0  # open
    config.lora.alpha = 64.0
    # Open: one index a batch (with one a sample, the rollout runs to the latest of them), and what guides the
    # prediction with gradient.
    config.rl.index_per_sample = False
    config.rl.gradient_true_cfg_scale = 4.0
    return config
