"""How fast annotators are."""

import statistics
from collections.abc import Sequence

_HOUR = 3600.0

Votes = Sequence[tuple[float, float]]  # (at, seconds), in order


def per_hour(votes: Votes) -> float | None:
    """Return items an hour, over the last hour of votes; None if there are fewer than two."""
    if len(votes) < 2:
        return None
    last = votes[-1][0]
    times = [at for at, _ in votes if at > last - _HOUR]
    spent = last - times[0]
    return round(_HOUR * (len(times) - 1) / spent, 1) if spent > 0 else None


def median_seconds(votes: Votes) -> float | None:
    """Return the median time of an item; None if there are none."""
    return round(statistics.median(seconds for _, seconds in votes), 2) if votes else None
