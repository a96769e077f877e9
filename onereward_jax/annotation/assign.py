"""Who gets what next, and what becomes of an answer.

A record is wanted once, or, for a share of the records, by several annotators. Nobody gets one twice, except for hidden
repeats of what they judged some time ago; records with known right answers come in between. What isn't answered in time
goes to others, but an answer that comes late counts all the same.

    desk = Desk(store, items, Rules(overlap=0.15))
    given, waiting = desk.draw(person, count=2)
    desk.vote(person, Ballot(given[0].code, "key", answers=[...], seconds=12.5))
"""

import dataclasses
import heapq
import os
import random
import secrets
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from onereward_jax.annotation import ballot
from onereward_jax.annotation.answer import Kind
from onereward_jax.annotation.ballot import Ballot, Choice
from onereward_jax.annotation.choosing import Choosing, Rules
from onereward_jax.annotation.database import Unavailable
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.pool import RECENT, Pool, Tally
from onereward_jax.annotation.questions import questions_of
from onereward_jax.annotation.store import OPEN, PASSED_ON, SKIPPED, Assignment, Person, Store, Vote
from onereward_jax.errors import UserError, shown

MAX_OPEN = 6  # assignments that an annotator may have at once
_UNREADABLE = 20  # records in a row: then it is the disk, and not they
_REST = 60.0  # seconds until a record is tried again that the disk failed to read


class Unknown(UserError):
    """There is no such assignment, or it is somebody else's."""


class Conflict(UserError):
    """The assignment is answered already, or nothing is to be undone."""


@dataclasses.dataclass
class _Open:
    """An assignment without an answer.

    Attributes:
      place: of its record among the items.
      lapsed: its time was over, and its place may have been given to others.
    """

    given: Assignment
    place: int
    lapsed: bool = False


class Desk:
    """Gives out assignments and takes votes; one per database at a time. Calls may come from any thread."""

    def __init__(
        self,
        store: Store,
        items: Items,
        rules: Rules,
        gold: Mapping[str, Sequence[Choice]] | None = None,
        rng: random.Random | None = None,
    ):
        """
        Args:
          gold: right answers, {name of the record: answers numbered as in the record}.
          rng: draws; by default nobody can tell what comes next.

        Raises:
          UserError: another process gives out assignments, or the votes are of other data.
        """
        self.store, self.items, self.rules, self.job = store, items, rules, items.job
        self._rng = rng or random.SystemRandom()
        self._lock = threading.RLock()
        self._check_records()
        places = {items.place(name): list(right) for name, right in (gold or {}).items()}
        self.gold = {place: right for place, right in places.items() if place is not None}
        names = [items[place].name for place in range(len(items))]
        self._pool = Pool(names, rules.overlap, rules.overlap_votes, self.gold)
        self._choosing = Choosing(rules, self._pool, self.gold, self._rng)
        self._tallies: dict[int, Tally] = defaultdict(lambda: Tally(len(items)))
        self._open: dict[int, list[_Open]] = defaultdict(list)  # annotator -> in the order in which they were given
        self._due: list[tuple[float, int, int]] = []  # (due, annotator, assignment), a heap
        self._held = store.lock()
        self._records = store.records()
        self._load()

    def close(self) -> None:
        """Let other processes give out assignments."""
        os.close(self._held)

    # -------------------------------------------------------------------------------------------------- assignments

    def draw(self, person: Person, count: int = 1) -> tuple[list[Assignment], bool]:
        """Return an annotator's open assignments in order, and new ones up to `count`.

        Returns:
          (assignments, waiting): waiting if there are fewer, but what others have may come back.

        Raises:
          Unavailable: the database can't be written, or the data can't be read.
        """
        count = max(1, min(count, MAX_OPEN))
        chosen: tuple[int, Kind] | None = None
        unreadable: list[int] = []  # in a row
        while True:
            with self._lock:
                self._expire()
                self._renew(person)
                chosen = self._fill(person, count, chosen)
                if chosen is None:
                    given = [one.given for one in self._open[person.id][:count]]
                    return given, len(given) < count and self._pool.may_come_back(self._tallies[person.id])
            if self._learn(chosen[0]):  # without the lock: others need not wait for the disk
                unreadable = []
                continue
            unreadable.append(chosen[0])
            if len(unreadable) == _UNREADABLE:
                with self._lock:
                    for place in unreadable:
                        self._pool.mend(place)
                raise Unavailable(f"{self.items.directory} can't be read: check its disk, then try again")

    def upcoming(self, count: int) -> list[int]:
        """Return the places of what an annotator gets who comes now, in order, at most `count`."""
        with self._lock:
            return self._pool.upcoming(count)

    def skip(self, person: Person, code: Any) -> None:
        """Close an assignment that the annotator can't judge; they are not asked again.

        Raises:
          Unknown, Conflict, Unavailable.
        """
        with self._lock:
            given = self._own(person, code)
            if given.state == SKIPPED:
                return
            if given.state not in (OPEN, PASSED_ON):
                raise Conflict("this item is answered already: go on with the next")
            self.store.change_assignment(given.id, SKIPPED, given.due)
            if (one := self._close(person, given)) is not None and not one.lapsed and given.kind == "plain":
                self._pool.free(one.place)

    def leave_out(self, record: str) -> None:
        """Give a record whose images can't be shown to nobody any more, until the next start."""
        place = self.items.place(record)
        with self._lock:
            if place is not None:
                self._pool.broken.add(place)

    # -------------------------------------------------------------------------------------------------------- votes

    def vote(self, person: Person, given: Ballot) -> None:
        """Store an annotator's vote; it is on the disk at the end. The same vote sent again changes nothing.

        Raises:
          BadBallot: the answers can't be taken.
          Unknown, Conflict, Unavailable.
        """
        key = ballot.key_of(given.key)
        with self._lock:
            assignment = self._own(person, given.code)
            undone = self.store.vote_of_key(assignment.id, key)
            if undone is False:
                return
            if undone:
                raise Conflict("this answer was taken back: answer the item again")
            if assignment.state not in (OPEN, PASSED_ON):
                raise Conflict("this item is answered or skipped already: go on with the next")
            record, shown_order = self._records[assignment.record], assignment.shown
            questions = questions_of(self.job, record.task, record.prompt)
            choices = ballot.choices_of(self.job, questions, shown_order, given.answers)
            reason, points = ballot.reason_of(given.reason), ballot.points_of(given.points, shown_order)
            seconds = ballot.seconds_of(given.seconds)
            at = self.store.add_vote(Vote(assignment.id, person.id, key, choices, reason, points, seconds))
            self._count(person, assignment, at, seconds)

    def undo(self, person: Person, code: Any = None) -> Assignment:
        """Take back an annotator's latest answer and open its assignment again.

        Args:
          code: the assignment that is meant, so that a request that is sent twice takes back one answer.

        Raises:
          Conflict: there is no answer to take back, or it is another.
          Unavailable.
        """
        with self._lock:
            if code is not None:
                for one in self._open[person.id]:
                    if one.given.code == code and self.store.undone_vote(one.given.id) is not None:
                        return one.given
            latest = self.store.latest_vote(person.id, self.job)
            if latest is None:
                raise Conflict("there is no answer to take back")
            if code is not None and code != latest:
                raise Conflict("that is not your latest answer: take back the later ones first")
            given = self._own(person, latest)
            if self.items.place(given.record) is None:
                raise Conflict("the record that you answered last is no longer among the data")
            due = self.store.now() + self.rules.return_after
            self.store.undo(given.id, due)
            given = given._replace(state=OPEN, due=due)
            self._reopen(person, given)
            return given

    def previous(self, given: Assignment) -> dict[str, Any] | None:
        """Return what was answered to an open assignment and taken back, as shown: {answers, reason, points}."""
        vote = self.store.undone_vote(given.id) if given.state == OPEN else None
        if vote is None:
            return None
        points = [{"candidate": given.shown.index(candidate), "x": x, "y": y} for candidate, x, y in vote.points]
        return {"answers": ballot.as_shown(vote.choices, given.shown), "reason": vote.reason, "points": points}

    # ----------------------------------------------------------------------------------------------------- progress

    def done(self, person: Person) -> int:
        """Count an annotator's answered items, whatever their kind."""
        with self._lock:
            return self._tallies[person.id].done

    def left(self, person: Person) -> int:
        """Count the records that an annotator can still get now."""
        with self._lock:
            return self._pool.left(self._tallies[person.id])

    def expected(self, person: Person) -> int:
        """Estimate how many items an annotator will have answered when nothing is left: it tells no item's kind."""
        with self._lock:
            tally = self._tallies[person.id]
            open_ones = sum(one.given.kind == "plain" for one in self._open[person.id])
            plain = len(tally.answered) + open_ones + self._pool.left(tally)
            gold = self.rules.gold if self.gold else 0.0
            return max(tally.done, round(plain / max(1 - self.rules.repeats - gold, 0.5)))

    def recent(self, person: Person) -> list[tuple[float, float]]:
        """(at, seconds) of an annotator's latest votes since the start."""
        with self._lock:
            return list(self._tallies[person.id].recent)

    def progress(self) -> tuple[int, int]:
        """Count the votes that are there, of those that are wanted and can be had of the annotators so far."""
        with self._lock:
            return self._pool.progress(sum(tally.drawn > 0 for tally in self._tallies.values()))

    # -------------------------------------------------------------------------------------------------------- inside

    def _check_records(self) -> None:
        for name, known in self.store.records().items():
            place = self.items.place(name)
            if place is not None:
                item = self.items[place]
                if (item.task, item.prompt, len(item.models)) != (known.task, known.prompt, len(known.models)):
                    raise UserError(
                        f"{self.store.path} has votes on another record {shown(name)} than {self.items.directory}:"
                        " give other votes by --votes"
                    )

    def _load(self) -> None:
        """Count what the database holds."""
        now = self.store.now()
        for given in self.store.assignments(self.job):
            tally, place = self._tallies[given.annotator], self.items.place(given.record)
            answered = given.state not in (OPEN, SKIPPED, PASSED_ON)
            tally.drawn += 1
            tally.done += answered
            if place is None:  # of data that are no longer there
                continue
            tally.note(place, given.kind)
            if given.state == OPEN:
                self._add_open(_Open(given, place, lapsed=given.due <= now))
            if given.kind == "plain" and (answered or (given.state == OPEN and given.due > now)):
                self._pool.take(place)
            if given.kind == "plain" and answered:
                self._pool.voted[place] += 1
                tally.answered.append(place)
        for annotator, tally in self._tallies.items():
            tally.recent.extend(self.store.recent_votes(annotator, self.job, RECENT))

    def _own(self, person: Person, code: Any) -> Assignment:
        given = self.store.assignment(code) if isinstance(code, str) else None
        if given is None or given.annotator != person.id or given.job != self.job:
            raise Unknown("there is no such item of yours: load the page again")
        return given

    def _add_open(self, one: _Open) -> None:
        mine = self._open[one.given.annotator]
        mine.append(one)
        mine.sort(key=lambda other: other.given.id)
        if not one.lapsed:
            heapq.heappush(self._due, (one.given.due, one.given.annotator, one.given.id))

    def _expire(self) -> None:
        """Free the places of assignments whose time is over, and of records that the disk failed to read."""
        now = self.store.now()
        self._pool.wake(now)
        while self._due and self._due[0][0] <= now:
            _, annotator, number = heapq.heappop(self._due)
            for one in self._open[annotator]:
                if one.given.id == number and not one.lapsed and one.given.due <= now:
                    one.lapsed = True
                    if one.given.kind == "plain":
                        self._pool.free(one.place)

    def _renew(self, person: Person) -> None:
        """Give an annotator who is back more time for what nobody else has taken."""
        due = self.store.now() + self.rules.return_after
        for one in [one for one in self._open[person.id] if one.lapsed]:
            plain = one.given.kind == "plain"
            if plain and not self._pool.is_wanted(one.place):
                self.store.change_assignment(one.given.id, PASSED_ON, one.given.due)
                self._open[person.id].remove(one)
                continue
            self.store.change_assignment(one.given.id, OPEN, due)
            one.given, one.lapsed = one.given._replace(due=due), False
            heapq.heappush(self._due, (due, person.id, one.given.id))
            if plain:
                self._pool.take(one.place)

    def _fill(self, person: Person, count: int, chosen: tuple[int, Kind] | None) -> tuple[int, Kind] | None:
        """Give an annotator what is missing from `count` assignments, if there is so much.

        Args:
          chosen: what this returned before, and was read since; it is given if nobody was quicker.

        Returns:
          what was chosen next but has to be read first, by `_learn`; None when all is given.
        """
        tally = self._tallies[person.id]
        while len(self._open[person.id]) < count:
            if chosen is None or not self._pool.may_have(tally, *chosen):
                chosen = self._choosing.next(tally, len(self._open[person.id]))
            if chosen is None or self.items[chosen[0]].name not in self._records:
                return chosen
            self._give(person, *chosen)
            chosen = None
        return None

    def _learn(self, place: int) -> bool:
        """Read what answers say about a record; one that can't be read is left out instead, and False returned."""
        try:
            known = self.items.stored(place)
        except Unavailable:
            with self._lock:
                self._pool.rest(place, self.store.now() + _REST)
            return False
        except (OSError, UserError):
            with self._lock:
                self._pool.broken.add(place)
            return False
        with self._lock:
            self._records[self.items[place].name] = known
        return True

    def _give(self, person: Person, place: int, kind: Kind) -> None:
        """Store a new assignment."""
        item = self.items[place]
        order = list(range(len(item.models)))
        self._rng.shuffle(order)
        now, code = self.store.now(), secrets.token_urlsafe(16)
        due = now + self.rules.return_after
        new = Assignment(0, code, person.id, item.name, self.job, kind, tuple(order), OPEN, now, due)
        given = self.store.add_assignment(new, self._records[item.name])
        tally = self._tallies[person.id]
        tally.drawn += 1
        tally.note(place, kind)
        self._add_open(_Open(given, place))
        if kind == "plain":
            self._pool.take(place)

    def _close(self, person: Person, given: Assignment) -> _Open | None:
        """Forget an open assignment, and return it."""
        for one in self._open[person.id]:
            if one.given.id == given.id:
                self._open[person.id].remove(one)
                return one
        return None

    def _count(self, person: Person, given: Assignment, at: float, seconds: float) -> None:
        """Count a vote that is on the disk."""
        one, tally, place = self._close(person, given), self._tallies[person.id], self.items.place(given.record)
        tally.done += 1
        tally.recent.append((at, seconds))
        if given.kind == "plain" and place is not None:
            if one is None or one.lapsed:  # it comes late
                self._pool.take(place)
            self._pool.voted[place] += 1
            tally.answered.append(place)

    def _reopen(self, person: Person, given: Assignment) -> None:
        """Count an answer that was taken back as an open assignment."""
        tally, place = self._tallies[person.id], self.items.place(given.record)
        tally.done -= 1
        if tally.recent:
            tally.recent.pop()
        if place is None:
            return
        self._add_open(_Open(given, place))
        if given.kind == "plain":
            self._pool.voted[place] -= 1
            tally.forget_answer(place)
