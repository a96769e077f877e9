"""Flow-matching fine-tuning of a FLUX-Fill model on a user's own pictures; see docs/finetune.md.

    onereward finetune --config configs/finetune.py --config.data.path=PICTURES --workdir runs/mine            # tiny
    onereward finetune --config configs/finetune.py:flux_fill --config.data.path=PICTURES --workdir runs/mine

`tiny` starts from the packaged miniature and takes a minute or two on two CPU cores. `flux_fill` trains an adapter of
FLUX.1-Fill-dev at 1024 pixels, or at 512 by `--config.data.resolution=512`. `--config.lora.rank=0
--config.optimizer.learning_rate=1e-5` trains the whole transformer: parameters, gradient, Adam's moments and the
average take 20 bytes a parameter in float32, 222 GiB, shared by all devices (`mesh.fsdp`).
"""

from ml_collections import ConfigDict

VARIANTS = ("tiny", "flux_fill")


def get_config(variant: str = "tiny") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/finetune.py has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    tiny = variant == "tiny"
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict()
    config.model.base = "miniature/base" if tiny else "black-forest-labs/FLUX.1-Fill-dev"
    config.model.dtype = "float32" if tiny else "bfloat16"
    config.model.remat = "none" if tiny else "full"
    config.max_sequence_length = 16 if tiny else 512  # tokens that T5 reads of a caption

    config.data = ConfigDict()
    config.data.path = ""  # a folder of pictures, or a .jsonl file: docs/finetune.md
    config.data.caption = ""  # of pictures that have none
    config.data.bad_share = 0.1  # of the pictures, that may be bad
    config.data.held_out_share = 0.2 if tiny else 0.05
    config.data.loader_threads = 2 if tiny else 8
    config.data.loader_timeout = 600.0  # seconds without a batch until the run ends; 0 waits for ever
    # Pictures keep about their aspect, up to the one here, in buckets of the area of a square of this side; all sides
    # are multiples of the step.
    config.data.resolution = 64 if tiny else 1024
    config.data.bucket_step = 16 if tiny else 64
    config.data.max_aspect = 2.0
    # A drawn mask's sides, as shares of the picture's.
    config.data.min_hole = 0.2
    config.data.max_hole = 0.7
    # What the pictures lack is left out. Removal and text are of pictures whose metadata says so.
    config.data.task_weights = ConfigDict(
        {"image_fill": 0.5, "image_extend": 0.25, "object_removal": 0.25, "text_rendering": 0.25}
    )
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})

    # With a rank, an adapter is trained instead of the model, of the layers whose path has a match of `targets`.
    config.lora = ConfigDict()
    config.lora.rank = 0 if tiny else 16
    config.lora.alpha = 16.0
    config.lora.targets = r"attn/(to|add)_|ff|proj_mlp|proj_out"

    config.optimizer = ConfigDict()
    # 1e-4 for adapters as in diffusers' train_dreambooth_lora_flux.py and sd-scripts' docs/flux_train_network.md.
    config.optimizer.learning_rate = 2e-4 if tiny else 1e-4
    config.optimizer.warmup_steps = 20 if tiny else 100
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99 if tiny else 0.999
    config.train = ConfigDict()
    config.train.num_steps = 150 if tiny else 2000
    config.train.batch_size = 8 if tiny else 4
    config.train.checkpoint_every = 50 if tiny else 250
    config.train.keep_checkpoints = 2
    config.train.log_every = 10
    config.train.max_skipped = 10  # updates in a row, for a loss or gradient that is not finite
    config.train.max_unsharded_mib = 64.0  # a warning names larger arrays that no axis of the mesh splits
    config.train.offload = ()  # of opt_state, ema and reference, what waits in the hosts' memory between its uses

    config.finetune = ConfigDict()
    # The guidance that the model is told in training. At 1 a guidance-distilled model gives the plain velocity, which
    # is what flow matching asks for: so do sd-scripts (docs/flux_train_network.md: "for training, specify 1.0") and
    # InfiniteYou (bytedance/InfiniteYou issue 48). diffusers' train_dreambooth_flux.py takes 3.5.
    config.finetune.guidance_scale = 1.0
    config.finetune.prompt_dropout = 0.1
    config.finetune.ema_decay = 0.99  # 0 keeps no average
    # The loss on held-out pictures, each at so many noises and noise levels, the same every time. 0 never looks.
    config.finetune.evaluate_every = 50 if tiny else 250
    config.finetune.held_out_draws = 16 if tiny else 4
    # Sheets of pictures that the model makes under masks of held-out pictures, or of others if none is held out.
    config.finetune.sample_every = 50 if tiny else 250
    config.finetune.num_samples = 4
    config.finetune.sample_steps = 8 if tiny else 28
    config.finetune.sample_guidance_scale = 1.0 if tiny else 30.0
    config.finetune.sample_true_cfg_scale = 1.0
    return config
