"""How fast annotators are."""

import statistics
from collections.abc import Sequence

_HOUR = 3600.0

Votes = Sequence[tuple[float, float]]  # (at, seconds), in order


def per_hour(votes: Votes, now: float) -> float | None:
    """Return items an hour, from the first vote of the last hour until now; None if it has fewer than two."""
    times = [at for at, _ in votes if at > now - _HOUR]
    if len(times) < 2:
        return None
    spent = now - times[0]
    return round(_HOUR * (len(times) - 1) / spent, 1) if spent > 0 else None


def median_seconds(votes: Votes) -> float | None:
    """Return the median time of an item; None if there are none."""
    return round(statistics.median(seconds for _, seconds in votes), 2) if votes else None
