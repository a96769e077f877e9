"""Runs of `onereward finetune` on pictures and a model that are smaller than any: what tests look at.

    python -m tests.support.finetuning_runs DIRECTORY

A process of its own with one device: for eight, the programs take twice as long to compile.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from onereward_jax.cli import main as cli
from tests.support import tiny_fill

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "finetune.py"
STEPS = 4


def write_pictures(folder: Path) -> None:
    """Four upright and four lying, one with a mask of its own; a ninth is damaged."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        size = (40, 60, 3) if number % 2 else (60, 40, 3)
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(tiny_fill.PROMPTS[number % 3])
    Image.fromarray(np.pad(np.full((20, 40), 255, np.uint8), 10)).save(folder / "1_mask.png")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "torn.txt").write_text("remove")


def finetune(root: Path, name: str, **more) -> int:
    overrides = {
        "model.base": root / "base",
        "data.source": root / "pictures",
        "data.bad_share": 0.2,
        "data.resolution": 32,
        "data.bucket_step": 8,
        "data.held_out_share": 0.25,
        "max_sequence_length": tiny_fill.T5_LENGTH,
        "optimizer.warmup_steps": 1,
        "train.num_steps": STEPS,
        "train.batch_size": 2,
        "finetune.evaluate_every": 2,
        "finetune.held_out_draws": 2,
        "finetune.sample_every": 0,
        **more,
    }
    arguments = [f"--config.{field}={value}" for field, value in overrides.items()]
    return cli.main(["finetune", "--config", str(CONFIG), *arguments, "--workdir", str(root / name)])


def main(root: Path) -> None:
    write_pictures(root / "pictures")
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base")
    assert finetune(root, "whole") == 0  # its four batches are upright, lying, lying, upright
    assert finetune(root, "stopped", **{"train.num_steps": STEPS // 2}) == 0
    assert finetune(root, "stopped") == 0

    adapter = {"lora.rank": 2, "lora.targets": "attn/to_q", "train.num_steps": 2, "data.max_aspect": 1.0}
    sheet = {"finetune.sample_every": 2, "finetune.num_samples": 1, "finetune.sample_steps": 2}
    assert finetune(root, "adapter", **adapter, **sheet, **{"finetune.ema_decay": 0.0, "data.held_out_share": 0.0}) == 0

    (root / "pictures" / "0.txt").write_text("another caption")
    assert finetune(root, "stopped", **{"train.num_steps": STEPS + 2}) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
