"""The whole chain of commands, every model smaller than the miniature and two steps each; the policy is an adapter.

    python -m tests.support.chain DIRECTORY

A process of its own with one device: for several, all the programs take longer to compile.
"""

import sys
from pathlib import Path

from onereward_jax.cli import main as cli

SCENES = 2  # a task, in every evaluation
STEPS = {"train.num_steps": 2, "train.log_every": 1, "optimizer.warmup_steps": 1}
VAE = {"vae.model.block_out_channels": (8, 8, 8), "vae.model.latent_channels": 4, "vae.model.norm_num_groups": 4}
BASE = {
    "base.scenes_per_task": 16,
    "base.transformer.in_channels": 16 + 16 + 64,
    "base.transformer.out_channels": 16,
    "base.transformer.num_layers": 1,
    "base.transformer.num_single_layers": 1,
    "base.transformer.attention_head_dim": 16,
    "base.transformer.num_attention_heads": 2,
    "base.transformer.joint_attention_dim": 16,
    "base.transformer.pooled_projection_dim": 16,
    "base.transformer.axes_dims_rope": (4, 6, 6),
    "base.text_encoder.hidden_size": 16,
    "base.text_encoder.intermediate_size": 32,
    "base.text_encoder.num_hidden_layers": 1,
    "base.text_encoder.num_attention_heads": 2,
    "base.text_encoder_2.d_model": 16,
    "base.text_encoder_2.d_kv": 8,
    "base.text_encoder_2.d_ff": 32,
    "base.text_encoder_2.num_layers": 1,
    "base.text_encoder_2.num_heads": 2,
}
JUDGE = {
    "judge.text_config.hidden_size": 32,
    "judge.text_config.intermediate_size": 64,
    "judge.text_config.num_hidden_layers": 1,
    "judge.text_config.num_attention_heads": 2,
    "judge.text_config.num_key_value_heads": 1,
    "judge.text_config.rope_parameters.mrope_section": (2, 3, 3),
    "judge.vision_config.depth": 1,
    "judge.vision_config.hidden_size": 32,
    "judge.vision_config.intermediate_size": 64,
    "judge.vision_config.num_heads": 2,
    "judge.vision_config.out_hidden_size": 32,
    "judge.vision_config.fullatt_block_indexes": (0,),
}
# No margin: pictures of untrained models differ little, and every cell shall have pairs.
PREFERENCES = {
    "preferences.synthetic_scenes_per_task": 2,
    "preferences.scenes_per_task": 2,
    "preferences.part_size": 2,
    "preferences.min_steps": 2,
    "preferences.max_steps": 3,
    "preferences.annotator_margin": 0.0,
}
FEEDBACK = {
    "rl.num_steps": 2,
    "rl.first_index": 0,
    "rl.last_index": 1,
    "evaluation.scenes_per_task": SCENES,
    "evaluation.judge_scenes_per_task": 4,
    "evaluation.num_steps": 2,
    "evaluation.batch_size": 4,
    "evaluation.images_per_task": 1,
    "evaluation.every": 1,
    "evaluation.scenes_while_training": 1,
    "ascent.scenes_per_task": SCENES,
    "ascent.num_steps": 5,
    "ascent.step_size": 0.1,
    "preferences.part_size": 2,
    "preferences.min_steps": 2,
    "preferences.max_steps": 3,
    "preferences.annotator_margin": 0.0,
}


def onereward(command: str, config: str, workdir: Path, overrides: dict) -> None:
    """Runs a command with a configuration; it must succeed."""
    arguments = [f"--config.{name}={value}" for name, value in overrides.items()]
    assert cli.main([command, "--config", config, *arguments, "--workdir", str(workdir)]) == 0


def main(root: Path) -> None:
    models, run = root / "models", root / "run"
    base, data = {"preferences.base": models / "base"}, {"judge.data": f"({str(root / 'preferences')!r},)"}
    onereward("train-vae", "miniature/vae", root / "vae", STEPS | VAE)
    onereward(
        "train-base", "miniature/base", root / "base", STEPS | BASE | {"base.vae": root / "vae" / "export" / "vae"}
    )
    assert cli.main(["package", "--base", str(root / "base" / "export"), "--out", str(models)]) == 0
    tuned = STEPS | {"base.start": models / "base", "base.train_text_encoders": "false", "base.scenes_per_task": 16}
    onereward("train-base", "miniature/base", root / "tuned_base", tuned)
    feedback = STEPS | FEEDBACK | {"model.base": models / "base", "model.judge": models / "judge"}
    onereward("sanity-checks", "dynamic", root / "sanity_checks", feedback)
    onereward("make-preferences", "miniature/judge", root / "preferences", JUDGE | PREFERENCES | base)
    onereward("train-judge", "miniature/judge", root / "first_judge", STEPS | JUDGE | PREFERENCES | base | data)
    second = {"judge.start": root / "first_judge" / "export", "judge.max_shift": 2, "judge.flips": True}
    second |= {"judge.retone": True, "judge.adversarial_radius": 0.02}
    second |= {"judge.synthetic_share": 0.5, "judge.questions_per_pair": 1}
    onereward("train-judge", "miniature/judge", root / "judge", STEPS | PREFERENCES | base | data | second)
    assert cli.main(["package", "--judge", str(root / "judge" / "export"), "--out", str(models)]) == 0
    onereward("reward-ascent", "dynamic", root / "reward_ascent", feedback)
    adapter = {"lora.rank": 2, "optimizer.learning_rate": 0.01}
    onereward("train", "dynamic", run, feedback | adapter)
    onereward("evaluate", "dynamic", run, feedback | adapter)

    started = {"judge.start": models / "judge", "judge.questions_per_pair": 1}
    onereward(
        "train-judge", "miniature/judge", root / "judge_adapter", STEPS | PREFERENCES | base | data | started | adapter
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
