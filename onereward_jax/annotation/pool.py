"""What is left to be judged: how many votes every record wants, has, and is about to get.

Records are known by their places among the items. Nothing here is stored: it is counted anew at every start.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np

RECENT = 200  # votes by which an annotator's pace is measured
_PART = 4096  # records that are searched at once


class Tally:
    """What one annotator has had of the records.

    Attributes:
      seen: whether each was given as a plain item.
      cursor: no record before it is left for this annotator, except returned ones.
      answered: places of plain items, in the order of their votes.
      had: places of repeats and of gold items that were given.
      drawn, done: number of items given, and of votes.
      recent: (at, seconds) of the latest votes.
    """

    def __init__(self, records: int):
        self.seen = np.zeros(records, bool)
        self.cursor = 0
        self.answered: list[int] = []
        self.had: dict[str, set[int]] = {"repeat": set(), "gold": set()}
        self.drawn = self.done = 0
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def note(self, place: int, kind: str) -> None:
        """Note that a record was given."""
        if kind == "plain":
            self.seen[place] = True
        else:
            self.had[kind].add(place)

    def forget_answer(self, place: int) -> None:
        """Forget the vote on a plain item, which is near the end."""
        for index in range(len(self.answered) - 1, -1, -1):
            if self.answered[index] == place:
                del self.answered[index]
                return


class Pool:
    """Counts, for every record, the votes that it wants and those that it has or that somebody is about to give."""

    def __init__(self, names: Sequence[str], overlap: float, votes: int, gold: Collection[int]):
        """
        Args:
          names: ids of the records.
          overlap, votes: share of the records that so many annotators judge; the others are judged by one.
          gold: places of records that are asked as gold items only.
        """
        self.wanted = np.array([_votes_wanted(name, overlap, votes) for name in names], np.uint16)
        self.wanted[list(gold)] = 0
        self.taken = np.zeros(len(names), np.uint16)
        self.voted = np.zeros(len(names), np.uint16)
        self.broken: set[int] = set()  # can't be shown, or not now
        self._resting: deque[tuple[float, int]] = deque()  # of those: (until, place), in this order
        self._returned: dict[int, None] = {}  # in this order: places that came free behind the cursors
        self._full_to = 0  # no record before it is left for anybody, except returned ones

    def take(self, place: int) -> None:
        self.taken[place] += 1

    def free(self, place: int) -> None:
        """Give a place that was taken to others."""
        self.taken[place] -= 1
        self._returned[place] = None

    def rest(self, place: int, until: float) -> None:
        """Give a place to nobody before a time, which is later than those given before."""
        self.broken.add(place)
        self._resting.append((until, place))

    def wake(self, now: float) -> None:
        """Give what rested long enough to anybody again."""
        while self._resting and self._resting[0][0] <= now:
            self.mend(self._resting.popleft()[1])

    def mend(self, place: int) -> None:
        """Give a place that was broken to anybody again."""
        self.broken.discard(place)
        self._returned[place] = None

    def is_wanted(self, place: int) -> bool:
        return place not in self.broken and bool(self.taken[place] < self.wanted[place])

    def may_have(self, tally: Tally, place: int, kind: str) -> bool:
        """Whether an annotator may be given a record now as an item of a kind."""
        if kind == "plain":
            return self.is_wanted(place) and not tally.seen[place]
        return place not in self.broken and place not in tally.had[kind]

    def next(self, tally: Tally) -> int | None:
        """Return the record that an annotator gets next, or None: what came back first, then in order."""
        for place in list(self._returned):
            if not self.is_wanted(place):
                del self._returned[place]
            elif not tally.seen[place]:
                return place
        count = len(self.wanted)
        while self._full_to < count and not self.is_wanted(self._full_to):
            self._full_to += 1
        tally.cursor = max(tally.cursor, self._full_to)
        while tally.cursor < count and (tally.seen[tally.cursor] or not self.is_wanted(tally.cursor)):
            tally.cursor += 1
        return tally.cursor if tally.cursor < count else None

    def upcoming(self, count: int) -> list[int]:
        """Return what a newcomer gets next, in order, at most `count` records."""
        found = [place for place in self._returned if self.is_wanted(place)]
        for start in range(self._full_to, len(self.wanted), _PART):
            if len(found) >= count:
                break
            part = slice(start, start + _PART)
            wanted = (start + np.flatnonzero(self.taken[part] < self.wanted[part])).tolist()
            found += [place for place in wanted if place not in self.broken and place not in self._returned]
        return found[:count]

    def progress(self, annotators: int) -> tuple[int, int]:
        """Count the votes that are there, of those that so many annotators, each once a record, are wanted to give."""
        wanted = self.wanted.clip(max=max(1, annotators))
        wanted[[place for place in self.broken if not self.voted[place]]] = 0
        return int(self.voted.clip(max=wanted).sum()), int(wanted.sum())

    def left(self, tally: Tally) -> int:
        """Count the records that an annotator can still get now."""
        return self._unseen(self.taken, tally)

    def may_come_back(self, tally: Tally) -> bool:
        """Whether others have what this annotator could judge, if they give it back."""
        return self._unseen(self.voted, tally) > 0

    def _unseen(self, counts: np.ndarray, tally: Tally) -> int:
        there = (counts < self.wanted) & ~tally.seen
        there[list(self.broken)] = False
        return int(np.count_nonzero(there))


def _votes_wanted(name: str, overlap: float, votes: int) -> int:
    """How many annotators judge a record: the same at every start."""
    digest = hashlib.sha256(b"overlap" + name.encode()).digest()
    return votes if int.from_bytes(digest[:8]) < overlap * 2**64 else 1
