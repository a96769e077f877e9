"""Procedural scenes with ground truth, on which the method is tested.

`ProvingGround` makes scenes, `score` rates an image by a scene's hidden ground truth, `compare` decides between two
images, and `annotate` stands in for the human annotator. See docs/reference/proving_ground.md.
"""

from onereward_jax.proving_ground.annotator import Preference, annotate, annotate_scores, ceiling
from onereward_jax.proving_ground.scene_spec import Scene, Spec, all_prompts
from onereward_jax.proving_ground.scenes import ProvingGround
from onereward_jax.proving_ground.scorer import compare, overall, score, verdict

__all__ = [
    "Preference",
    "ProvingGround",
    "Scene",
    "Spec",
    "all_prompts",
    "annotate",
    "annotate_scores",
    "ceiling",
    "compare",
    "overall",
    "score",
    "verdict",
]
