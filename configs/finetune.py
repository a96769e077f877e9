"""Flow-matching fine-tuning of a FLUX-Fill model on your own images; see docs/how-to/finetune.md.

    onereward finetune --config.data.source=IMAGES --workdir runs/mine                               # the variant tiny
    onereward finetune --config finetune:flux_fill --config.data.source=IMAGES --workdir runs/mine

`tiny` starts from the packaged miniature and takes a minute or two on two CPU cores. `flux_fill` trains an adapter of
FLUX.1-Fill-dev at 1024 pixels, or at 512 by `--config.data.resolution=512`. `--config.lora.rank=0
--config.optimizer.learning_rate=1e-5` trains the whole transformer: parameters, gradient, Adam's moments and the
average take 20 bytes a parameter in float32, 222 GiB, shared by all devices (`mesh.fsdp`).
"""

from ml_collections import ConfigDict

from onereward_jax.config import schema

VARIANTS = ("tiny", "flux_fill")


def get_config(variant: str = "tiny") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/finetune.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = schema.Finetuning.config_dict()
    # What the images lack is left out. Removal and text are of images whose metadata says so.
    config.data.task_weights = {
        "image_fill": 0.5,
        "image_extend": 0.25,
        "object_removal": 0.25,
        "text_rendering": 0.25,
    }
    config.optimizer.weight_decay = 0.01
    if variant == "flux_fill":
        config.lora.rank = 16
        # A device for each sample of the batch; what more there are share a sample's layers.
        config.mesh.tensor = -1
        config.optimizer.warmup_steps = 100
        return config

    config.model.base = "miniature/base"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.max_sequence_length = 16
    config.data.resolution = 64
    config.data.bucket_step = 16
    config.data.held_out_share = 0.2
    config.data.loader_threads = 2
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.99
    config.train.num_steps = 150
    config.train.batch_size = 8
    config.train.checkpoint_every = 50
    config.finetune.evaluate_every = 50
    config.finetune.held_out_draws = 16
    config.finetune.sample_every = 50
    config.finetune.sample_steps = 8
    config.finetune.sample_guidance_scale = 1.0
    return config
