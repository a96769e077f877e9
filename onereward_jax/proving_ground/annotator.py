"""A simulated annotator: names the best and worst candidate by ground-truth scores with noise.

As in the paper, each dimension is annotated by itself: the best and the worst of (usually four) candidates, or
"no difference", which is dropped. An image can therefore win against another in one dimension and lose in the next.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onereward_jax.data.preferences.record import Preference
from onereward_jax.errors import UserError
from onereward_jax.proving_ground.scene_spec import Scene
from onereward_jax.proving_ground.scorer import score

# Standard deviation of the annotator's error on a score in [0, 1], and the smallest gap the annotator notices.
NOISE = 0.08
MARGIN = 0.08


def annotate(
    scene: Scene,
    candidates: Sequence[np.ndarray],
    generator: np.random.Generator,
    noise: float | Mapping[str, float] = NOISE,
    margin: float = MARGIN,
) -> list[Preference]:
    """Choose the best and worst candidate in each dimension of the scene.

    Args:
      candidates: at least two images as `score` takes them.
      noise: standard deviation of the error on every score, or one per dimension.
      margin: a pair whose noisy scores lie closer than this is "no difference" and dropped.

    Raises:
      UserError: fewer than two candidates.
    """
    return annotate_scores([score(scene, image) for image in candidates], generator, noise, margin)


def annotate_scores(
    scores: Sequence[Mapping[str, float]],
    generator: np.random.Generator,
    noise: float | Mapping[str, float] = NOISE,
    margin: float = MARGIN,
) -> list[Preference]:
    """Annotate candidates whose scores are already known; see `annotate`."""
    if len(scores) < 2:
        raise UserError(f"{len(scores)} candidates cannot be compared: give at least two")
    preferences = []
    for dimension in scores[0]:
        true = np.array([candidate[dimension] for candidate in scores])
        scale = noise[dimension] if isinstance(noise, Mapping) else noise
        seen = true + generator.normal(0, 1, len(true)) * scale
        winner, loser = int(seen.argmax()), int(seen.argmin())
        if seen[winner] - seen[loser] >= margin and winner != loser:
            preferences.append(Preference(dimension, winner, loser))
    return preferences


def ceiling(
    scores: Sequence[Sequence[Mapping[str, float]]],
    generator: np.random.Generator,
    noise: float | Mapping[str, float] = NOISE,
    margin: float = MARGIN,
    repeats: int = 20,
) -> dict[str, float]:
    """Estimate the accuracy that the ground truth itself reaches on this annotator's pairs.

    Args:
      scores: for every scene, the scores of its candidates (scenes of one task).
      repeats: how often each scene is annotated.

    Returns:
      For each dimension, the share of pairs whose winner has the higher ground-truth score (a tie counts half);
      a dimension in which no pair was kept is missing.
    """
    right: dict[str, float] = {}
    total: dict[str, int] = {}
    for candidates in scores:
        for _ in range(repeats):
            for preference in annotate_scores(candidates, generator, noise, margin):
                dimension = preference.dimension
                lead = candidates[preference.winner][dimension] - candidates[preference.loser][dimension]
                right[dimension] = right.get(dimension, 0.0) + (1.0 if lead > 0 else 0.5 if lead == 0 else 0.0)
                total[dimension] = total.get(dimension, 0) + 1
    return {dimension: right[dimension] / total[dimension] for dimension in total}
