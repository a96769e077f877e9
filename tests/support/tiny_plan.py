"""The update of the packaged miniature, with few steps, as `onereward plan` is given it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = {
    "model.base": str(ROOT / "miniature" / "base"),
    "model.judge": str(ROOT / "miniature" / "judge"),
    "rl.num_steps": 3,
    "rl.first_index": 0,
    "rl.last_index": 1,
    "rl.flow_matching_weight": 0.0,
    "evaluation.every": 0,
    "mesh.tensor": 2,
}
