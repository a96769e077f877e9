"""Confidence intervals. Shares are in [0, 1], differences of shares in [−1, 1]."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import special

from onereward_jax.errors import UserError

CONFIDENCE = 0.95
_BLOCK = 1 << 22  # numbers of a bootstrap's weights


def wilson_interval(successes: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the score interval of a share of `n` independent trials (Wilson 1927).

    `successes` may be fractional, for trials that count half: the interval is then conservative, since a quantity in
    [0, 1] with mean m varies at most as much as a yes/no trial with that mean.

    Raises:
      UserError: `successes` is not in [0, n].
    """
    if n < 0 or not 0 <= successes <= n:
        raise UserError(f"{successes} successes of {n} trials are impossible: successes must be between 0 and n")
    if n == 0:
        return 0.0, 1.0
    z = _normal_quantile(confidence)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not push a limit past the share itself when that is 0 or 1.
    return max(0.0, min(centre - half_width, share)), min(1.0, max(centre + half_width, share))


def good_minus_bad_interval(good: int, bad: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of the share of good minus the share of bad over `n` scenes answered by two models.

    Each scene is one multinomial draw, so Var(g − b) = (g + b − (g − b)²) / n. By itself that gives a width of zero
    when all scenes agree; adding one scene to the good and one to the bad repairs it (adjusted Wald interval for paired
    shares, Bonett & Price 2012, J. Educ. Behav. Stat. 37:479–488).

    Raises:
      UserError: the counts do not fit into `n`.
    """
    if min(good, bad) < 0 or good + bad > n:
        raise UserError(f"{good} good and {bad} bad of {n} scenes are impossible: counts must add up to at most n")
    g, b = (good + 1) / (n + 2), (bad + 1) / (n + 2)
    half_width = _normal_quantile(confidence) * math.sqrt((g + b - (g - b) ** 2) / (n + 2))
    return max(-1.0, g - b - half_width), min(1.0, g - b + half_width)


def paired_difference_interval(
    differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of the mean difference, in [−1, 1], between two models' answers to the same questions.

    Generalises `good_minus_bad_interval` to answers that may be half right and to correlated questions: a group of
    questions, such as all about one scene, counts as one draw (the sandwich estimate of a mean over clusters).

    Args:
      groups: the group of each difference; by default each difference is a group of its own.

    Raises:
      UserError: a difference is not in [−1, 1], or there are not as many groups as differences.
    """
    groups = range(len(differences)) if groups is None else groups
    mean, error = _mean_of_clusters(differences, groups)
    half_width = _normal_quantile(confidence) * error
    return max(-1.0, mean - half_width), min(1.0, mean + half_width)


def _mean_of_clusters(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> tuple[float, float]:
    """Return mean and standard error of differences in [−1, 1], to which one of 1 and one of −1 are added."""
    values = np.asarray(differences, np.float64)
    if not np.all(np.abs(values) <= 1):
        raise UserError("a difference of shares is not in [-1, 1]")
    if len(groups) != len(values):
        raise UserError(f"{len(values)} differences, but {len(groups)} groups: give each difference its group")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    n = len(values) + 2
    mean = float(values.sum()) / n
    sums = np.bincount(np.asarray(index, np.int64), values - mean)
    return mean, math.sqrt(float((sums**2).sum()) + (1 - mean) ** 2 + (1 + mean) ** 2) / n


def mean_interval(
    values: Sequence[float] | np.ndarray, bounds: tuple[float, float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Student's interval of the mean of independent values, clipped to `bounds`, which they cannot leave.

    With fewer than two values nothing is known, and the interval is `bounds`.
    """
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return bounds
    half_width = float(special.stdtrit(values.size - 1, (1 + confidence) / 2)) * float(
        values.std(ddof=1) / math.sqrt(values.size)
    )
    mean = float(values.mean())
    return max(bounds[0], mean - half_width), min(bounds[1], mean + half_width)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UserError(f"a confidence of {confidence} is impossible: give a number between 0 and 1, such as 0.95")
    return float(special.ndtri((1 + confidence) / 2))


def share_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of the mean of values in [0, 1] that are correlated within a group.

    As `paired_difference_interval`, but with Student's quantile for the number of groups: of few groups nobody knows
    how they vary, and of a single one, nothing is known.

    Raises:
      UserError: a value is not in [0, 1], or there are not as many groups as values.
    """
    values = np.asarray(values, np.float64)
    mean, error = ((x + shift) / 2 for x, shift in zip(_mean_of_clusters(2 * values - 1, groups), (1, 0), strict=True))
    count = len(set(groups))
    if count < 2:
        return 0.0, 1.0
    half_width, share = float(special.stdtrit(count - 1, (1 + confidence) / 2)) * error, float(values.mean())
    return max(0.0, min(mean - half_width, share)), min(1.0, max(mean + half_width, share))


def bootstrap_sums(values: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Sum per-group values over resamples of the groups, each with as many groups as there are, with replacement.

    Statistics of sums, such as ratios of two of them, are then bootstrapped over groups that are correlated within.

    Args:
      values: (groups, K), what each group adds to each of K sums.

    Returns:
      (draws, K), float64; the same for the same values, draws and seed.
    """
    values = np.asarray(values, np.float64)
    groups, generator = len(values), np.random.default_rng(seed)
    sums = np.zeros((draws, values.shape[1]))
    block = max(1, _BLOCK // max(groups, 1))  # resamples whose weights are in memory at once
    for start in range(0, draws if groups else 0, block):
        weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=min(block, draws - start))
        sums[start : start + block] = weights @ values
    return sums


def percentile_interval(draws: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> list[float] | None:
    """Return the interval between the percentiles of a bootstrap's draws; NaNs, of resamples without data, don't count.

    None where fewer than half of the draws are numbers: then nothing is known.
    """
    values = np.asarray(draws, np.float64)
    known = values[np.isfinite(values)]
    if not known.size or 2 * known.size < values.size:
        return None
    return [float(x) for x in np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])]
