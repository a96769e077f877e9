"""What votes say about pairs of candidates, beyond the pairs that they name."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from onereward_jax.data.preferences.record import OTHER_VOTES, Record, Vote

Ordered = tuple[int, int]  # winner, loser


def implied_pairs(best: int | None, worst: int | None, candidates: int) -> list[Ordered]:
    """Return (winner, loser) of all pairs that a vote orders, that of best and worst first.

    The best wins over every other candidate, and every other over the worst. Of those in between the vote says nothing,
    and "no difference" orders none.

    Args:
      candidates: how many the record has.
    """
    if best is None or worst is None:
        return []
    others = [number for number in range(candidates) if number not in (best, worst)]
    return [(best, worst), *((best, other) for other in others), *((other, worst) for other in others)]


class Ballots(NamedTuple):
    """What annotators say about a pair of candidates in one dimension.

    Attributes:
      first, second: votes that name the pair as best and worst, won by its first or its second candidate: they make the
        pair's label.
      implied_first, implied_second: votes that don't name the pair, but order it.
      neither: votes for no difference, and annotators whose votes don't order the pair.
    """

    first: int
    second: int
    implied_first: int = 0
    implied_second: int = 0
    neither: int = 0


def count_ballots(record: Record) -> dict[tuple[str, int, int], Ballots]:
    """Count what annotators say about every pair that some vote of the record names: {(dimension, lower, higher)}.

    An annotator's only vote in a dimension says all that `implied_pairs` gives; several say what each names, as those
    of a ranking do. Votes of the note `OTHER_VOTES` make no label, and so count as implied.
    """
    counts: dict[tuple[str, int, int], list[int]] = {}
    for vote in record.votes:
        if vote.best is not None and vote.worst is not None:
            counts.setdefault((vote.dimension, *_sorted((vote.best, vote.worst))), [0, 0, 0, 0, 0])
    voted: Counter[str] = Counter()
    for (dimension, own), votes in _by_annotator(record):
        named = [(vote.best, vote.worst) for vote in votes if vote.best is not None and vote.worst is not None]
        implied = implied_pairs(*named[0], len(record.candidates)) if len(votes) == len(named) == 1 else named
        labelled = {_sorted(pair) for pair in named} if own else set()
        undecided = len(votes) - len(named)
        silent = max(undecided, 1)  # on a pair that none of these votes orders
        voted[dimension] += silent
        for pair in [*(named if own else ()), *(pair for pair in implied if _sorted(pair) not in labelled)]:
            if count := counts.get((dimension, *_sorted(pair))):
                count[(0 if _sorted(pair) in labelled else 2) + (pair[0] > pair[1])] += 1
        for two in {_sorted(pair) for pair in implied}:
            if count := counts.get((dimension, *two)):
                count[4] += undecided - silent
    for (dimension, *_), count in counts.items():
        count[4] += voted[dimension]
    return {pair: Ballots(*count) for pair, count in counts.items()}


def _by_annotator(record: Record) -> list[tuple[tuple[str, bool], Sequence[Vote]]]:
    """Return ((dimension, whether the votes are the record's own), votes) of every annotator."""
    found: dict[tuple[str, str, bool], list[Vote]] = {}
    others = [Vote(**fields) for fields in record.notes.get(OTHER_VOTES) or ()]
    for own, votes in ((True, record.votes), (False, others)):
        for vote in votes:
            found.setdefault((vote.dimension, vote.annotator, own), []).append(vote)
    return [((dimension, own), votes) for (dimension, _, own), votes in found.items()]


def _sorted(pair: Ordered) -> tuple[int, int]:
    return min(pair), max(pair)
