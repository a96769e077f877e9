"""Procedural scenes with known truth: the ground on which the method is put to the proof.

`ProvingGround` makes scenes, `score` measures an image against a scene's hidden truth, `compare` decides between
two images, `annotate` plays the human annotator. See docs/reference/proving_ground.md.
"""

from onereward_jax.proving_ground.annotator import Preference, annotate, annotate_scores, ceiling
from onereward_jax.proving_ground.scenes import ProvingGround
from onereward_jax.proving_ground.scorer import compare, overall, score, verdict
from onereward_jax.proving_ground.spec import Scene, Spec, all_prompts

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
