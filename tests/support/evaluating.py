"""Exports a run, evaluates its policy and fills an image, in one process or one of several that share a directory.

    python -m tests.support.evaluating DIRECTORY

`make(DIRECTORY)` has made the models, the run and the requests there.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.cli.main import _run
from onereward_jax.config.load import load_config
from onereward_jax.images.grid import write_png
from onereward_jax.parallel import heartbeat
from onereward_jax.training.checkpoint import Checkpointer
from tests.support import tiny_fill, tiny_judge

SIDE = 32
SETTINGS = {
    "data.resolution": SIDE,
    "data.bucket_step": 8,
    "data.max_aspect": 1,
    "evaluation.num_steps": 2,
    "evaluation.batch_size": 2,
    "evaluation.true_cfg_scale": 1,
    "evaluation.images_per_task": 1,
    "evaluation.scenes_per_task": 3,
    "max_sequence_length": tiny_fill.T5_LENGTH,
}


def make(root: Path) -> None:
    """A base and a judge, the checkpoint of a run from that base, and requests of two tasks."""
    pipeline = tiny_fill.pipeline(root / "tokenizers")
    pipeline.save_pretrained(root / "base", "bfloat16")
    tiny_judge.judge(depth=1, fullatt_block_indexes=(0,), num_hidden_layers=1).save_pretrained(root / "judge")
    (root / "run").mkdir()
    config = load_config("fixed", {"model.base": str(root / "base")})
    (root / "run" / "config.json").write_text(json.dumps(config.flat()))
    checkpointer = Checkpointer(root / "run" / "checkpoints")
    checkpointer.save(1, {"params": jax.tree.map(jnp.asarray, policy())})
    checkpointer.close()
    draw, requests = np.random.default_rng(0), []
    for number in range(5):
        write_png(root / "requests" / f"{number}.png", draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        write_png(root / "requests" / f"clean{number}.png", draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        mask = np.zeros((SIDE, SIDE, 3), np.uint8)
        mask[8:20, 4:24] = 255
        write_png(root / "requests" / f"mask{number}.png", mask)
        request = {"id": f"r{number}", "image": f"{number}.png", "mask": f"mask{number}.png"}
        if number < 3:
            request |= {"task": "image_fill", "prompt": "a small red circle"}
        else:
            request |= {"task": "object_removal", "target": f"clean{number}.png"}
        requests.append(json.dumps(request))
    (root / "requests" / "requests.jsonl").write_text("\n".join(requests))


def policy() -> dict:
    """Parameters that differ from the base's."""
    return jax.tree.map(lambda x: x * np.float32(1.25), tiny_fill.transformer()[1])


def evaluate_command(root: Path, out: Path) -> list[str]:
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    models = ["--policy", str(root / "exported"), "--baseline", str(root / "base"), "--judge", str(root / "judge")]
    return ["evaluate", *models, "--data", str(root / "requests"), "--out", str(out), "--dtype=float32", *settings]


def main(root: Path) -> int:
    export = ["export", "--workdir", str(root / "run"), "--out", str(root / "exported")]
    request = ["--image", str(root / "requests" / "0.png"), "--mask", str(root / "requests" / "mask0.png")]
    request += ["--prompt", "a small red circle", "--out", str(root / "filled.png"), "--dtype", "float32"]
    how = ["--num_inference_steps=2", "--true_cfg_scale=1", f"--max_sequence_length={tiny_fill.T5_LENGTH}"]
    fill = ["fill", "--model", str(root / "exported"), *request, *how]
    for command in (export, evaluate_command(root, root / "evaluation"), fill):
        if code := _run(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(heartbeat.run_together(lambda: guarded(lambda: main(Path(sys.argv[1])))))
