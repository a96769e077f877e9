"""What an annotator gets next: at times a repeat or a gold item, else a record that wants votes."""

import dataclasses
import random
from collections.abc import Collection

from onereward_jax.annotation.answer import Kind
from onereward_jax.annotation.pool import Pool, Tally

_EAGER = 0.1  # how fast repeats and gold items make up for what was due earlier and could not be given


@dataclasses.dataclass(frozen=True)
class Rules:
    """Who gets what.

    Attributes:
      overlap: share of the records that `overlap_votes` annotators judge; the others are judged by one.
      repeats: share of hidden repeats among what an annotator gets.
      gold: share of gold items, where there are any.
      repeat_gap: items that lie between an item and its repeat, at least.
      return_after: seconds after which an assignment without an answer goes to others.
    """

    overlap: float = 0.15
    overlap_votes: int = 3
    repeats: float = 0.03
    gold: float = 0.02
    repeat_gap: int = 20
    return_after: float = 1800.0


class Choosing:
    """Draws what comes next; a desk's own, and used under its lock."""

    def __init__(self, rules: Rules, pool: Pool, gold: Collection[int], rng: random.Random):
        """
        Args:
          gold: places of the records with known right answers.
        """
        self._rules, self._pool, self._gold, self._rng = rules, pool, frozenset(gold), rng

    def next(self, tally: Tally, open_ones: int) -> tuple[int, Kind] | None:
        """Choose what an annotator gets next: (place among the items, kind), or None when nothing is left.

        Args:
          open_ones: number of the annotator's assignments without an answer.
        """
        if self._is_due(self._rules.gold, tally.drawn, len(tally.had["gold"])):
            gold = self._gold - tally.had["gold"] - self._pool.broken
            if gold:
                return self._rng.choice(sorted(gold)), "gold"
        if self._is_due(self._rules.repeats, tally.drawn, len(tally.had["repeat"])):
            old = len(tally.answered) + open_ones - self._rules.repeat_gap
            never = tally.had["repeat"] | self._pool.broken
            again = [place for place in tally.answered[: max(0, old)] if place not in never]
            if again:
                return self._rng.choice(again), "repeat"
        place = self._pool.next(tally)
        return None if place is None else (place, "plain")

    def _is_due(self, share: float, drawn: int, given: int) -> bool:
        """Draw whether a repeat or a gold item comes now: in the long run a share, at moments nobody can foresee."""
        return share > 0 and self._rng.random() < share + _EAGER * (share * drawn - given)
