"""Who gets what: nobody a record twice, everyone their share of repeats and gold items, every record its votes."""

import errno
import hashlib
import random
import tempfile
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onereward_jax.annotation.assign import Conflict, Rules, Unknown
from onereward_jax.annotation.ballot import as_shown, choices_of
from onereward_jax.annotation.database import Clock, Unavailable
from onereward_jax.annotation.questions import JOBS, questions_of
from onereward_jax.data.preferences.record import BadRecord
from tests.support.annotating import PLAIN, answer, answers_to, close, items_of, open_desk, picture, record

RULES = Rules(overlap=0.5, overlap_votes=2, repeats=0.2, gold=0.2, repeat_gap=2, return_after=100.0)


class Annotating(RuleBasedStateMachine):
    """Three annotators, in any order, with breaks, restarts and second thoughts."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "votes.sqlite"
        self.items = items_of(8)
        self.offset, self.late, self.keys = 0.0, False, 0
        self.meant: dict[tuple[str, str, str], tuple[int, int]] = {}  # (annotator, code, kind) -> best and worst
        self.history: dict[str, list[str]] = defaultdict(list)
        self.skipped: set[tuple[str, str]] = set()
        self.open()
        self.people = [self.desk.store.add_person(name) for name in "abc"]

    def open(self):
        right = [{"question": name, "best": 0, "worst": 1} for name in ("text_alignment",)]
        self.desk = open_desk(self.path, self.items, RULES, gold={"r0": right}, rng=random.Random(0))
        self.desk.store._clock = Clock(self.desk.store.now() + self.offset)

    def teardown(self):
        close(self.desk)
        self.folder.cleanup()

    @rule(who=st.integers(0, 2), count=st.integers(1, 3))
    def draw(self, who, count):
        given, waiting = self.desk.draw(self.people[who], count)
        assert given == self.desk.draw(self.people[who], count)[0]  # the same after a reload
        assert len(given) <= count
        assert len(given) == count or not waiting or any(self.desk._open[p.id] for p in self.people)

    @rule(who=st.integers(0, 2), best=st.integers(0, 2), worst=st.integers(0, 2))
    def vote(self, who, best, worst):
        given, _ = self.desk.draw(self.people[who], 1)
        if given and best != worst:
            self.keys += 1
            answer(self.desk, self.people[who], given[0], key=str(self.keys), best=best, worst=worst)
            answer(self.desk, self.people[who], given[0], key=str(self.keys), best=worst, worst=best)  # sent again
            with pytest.raises(Conflict):
                answer(self.desk, self.people[who], given[0], key="another")
            with pytest.raises(Unknown):
                answer(self.desk, self.people[who - 1], given[0], key="mine")
            name = self.people[who].name
            self.meant[name, given[0].record, given[0].kind] = (given[0].shown[best], given[0].shown[worst])
            self.history[name].append(given[0].code)

    @rule(who=st.integers(0, 2), twice=st.booleans())
    def undo(self, who, twice):
        person = self.people[who]
        if not self.history[person.name]:
            with pytest.raises(Conflict):
                self.desk.undo(person)
            return
        latest = self.history[person.name].pop()
        again = self.desk.undo(person, latest)
        if twice:
            assert self.desk.undo(person, latest) == again
        best, worst = self.meant.pop((person.name, again.record, again.kind))
        shown = {(again.shown[one["best"]], again.shown[one["worst"]]) for one in self.desk.previous(again)["answers"]}
        assert shown == {(best, worst)}

    @rule(who=st.integers(0, 2))
    def skip(self, who):
        given, _ = self.desk.draw(self.people[who], 1)
        if given and given[0].kind == "plain":
            self.desk.skip(self.people[who], given[0].code)
            self.skipped.add((self.people[who].name, given[0].record))

    @rule()
    def restart(self):
        close(self.desk)
        self.open()

    @precondition(lambda self: self.offset < 1000)
    @rule()
    def wait(self):
        self.late |= any(self.desk._open.values())
        self.offset += 101.0
        self.desk.store._clock = Clock(self.desk.store.now() + 101.0)

    @invariant()
    def votes_are_those_meant(self):
        found = self.desk.store.answers()
        assert {(one.annotator, one.record, one.kind): (one.best, one.worst) for one in found} == self.meant
        assert len(found) == 4 * len(self.meant)

    @invariant()
    def nobody_has_a_record_twice_and_no_record_too_many_votes(self):
        given = list(self.desk.store.assignments("best_worst"))
        assert max(Counter((one.annotator, one.record, one.kind) for one in given).values(), default=1) == 1
        assert all((one.record == "r0") == (one.kind == "gold") for one in given)
        plain = Counter(one.record for one in self.desk.store.answers() if one.kind == "plain")
        for name, count in plain.items():
            assert self.late or count <= 4 * self.desk._pool.wanted[self.items.place(name)]

    @invariant()
    def the_counts_are_those_of_a_fresh_start(self):
        pool, votes = self.desk._pool, Counter()
        for one in self.desk.store.answers():
            votes[self.items.place(one.record)] += (one.kind == "plain") / 4
        assert all(pool.voted[place] == votes[place] for place in range(len(self.items)))
        assert (pool.taken >= pool.voted).all()


Annotating.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestAnnotating = Annotating.TestCase


def work(desk, people, rounds=10_000):
    """Everyone in turn answers what they get, until nothing is left."""
    for number in range(rounds):
        anyone = False
        for person in people:
            given, _ = desk.draw(person, 2)
            if given:
                anyone = True
                answer(desk, person, given[0], key=str(number))
        if not anyone:
            return


def test_every_record_gets_its_votes_and_shares_are_kept(tmp_path):
    rules = Rules(overlap=0.15, overlap_votes=3, repeats=0.1, gold=0.05, repeat_gap=5)
    gold = {f"r{number}": [] for number in range(12)}
    desk = open_desk(tmp_path / "votes.sqlite", 200, rules, gold=gold, rng=random.Random(1))
    desk.store._writer.execute("PRAGMA synchronous=OFF")
    people = [desk.store.add_person(name) for name in "abcd"]
    work(desk, people)
    given = list(desk.store.assignments("best_worst"))
    votes = Counter(one.record for one in given if one.kind == "plain")
    assert len(votes) == 188
    assert set(votes.values()) == {1, 3}
    assert 0.08 < sum(count == 3 for count in votes.values()) / 188 < 0.24
    kinds = Counter(one.kind for one in given)
    assert 0.06 < kinds["repeat"] / len(given) < 0.14
    assert 0.02 < kinds["gold"] / len(given) < 0.08
    for person in people:  # a repeat comes after a gap
        mine = [(one.record, one.kind) for one in given if one.annotator == person.id]
        for place, (name, kind) in enumerate(mine):
            assert kind != "repeat" or place - mine.index((name, "plain")) > 5
    assert desk.progress() == (sum(votes.values()), sum(votes.values()))
    assert abs(desk.expected(people[0]) - desk.done(people[0])) < 10
    close(desk)


def test_what_is_not_answered_goes_to_others(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", 2, PLAIN)
    ann, bob = (desk.store.add_person(name) for name in ("ann", "bob"))
    given, _ = desk.draw(ann, 2)
    assert desk.draw(bob, 2) == ([], True)
    desk.store._clock = Clock(desk.store.now() + 1801)
    [his], _ = desk.draw(bob, 1)
    [mine], _ = desk.draw(ann, 1)  # ann keeps the one that bob has not got
    assert {his.record, mine.record} == {one.record for one in given}
    passed_on = next(one for one in given if one.record == his.record)
    answer(desk, ann, passed_on, key="late")  # and her late answer counts
    answer(desk, bob, his)
    assert Counter(one.annotator for one in desk.store.answers()) == {"ann": 4, "bob": 4}
    close(desk)


def test_sides_are_shuffled_and_undone_by_the_numbers_of_the_record(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", 40, PLAIN, job="good_same_bad", rng=random.Random(3))
    ann = desk.store.add_person("ann")
    sides = Counter()
    for number in range(40):
        [given], _ = desk.draw(ann)
        sides[given.shown] += 1
        answer(desk, ann, given, key=str(number), best=given.shown.index(1))  # always the second model
    assert {one.verdict for one in desk.store.answers()} == {"bad"}
    assert set(sides) == {(0, 1), (1, 0)}
    assert min(sides.values()) > 8
    close(desk)


@pytest.mark.parametrize("job", JOBS)
def test_numbering_as_shown_is_undone_by_numbering_as_in_the_record(tmp_path, job):
    desk = open_desk(tmp_path / "votes.sqlite", 1, PLAIN, job=job)
    ann = desk.store.add_person("ann")
    [given], _ = desk.draw(ann)
    shown = answers_to(desk, given)
    questions = questions_of(job, "image_fill", "x")
    assert as_shown(choices_of(job, questions, given.shown, shown), given.shown) == shown
    close(desk)


def test_a_record_whose_source_is_gone_is_given_to_nobody(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", [record(0), record(1, image=b"")], PLAIN)
    ann = desk.store.add_person("ann")
    given, waiting = desk.draw(ann, 2)
    assert ([one.record for one in given], waiting) == (["r0"], False)
    close(desk)


def failing(items, names, error):
    """Let the source images of some records fail to be read, and return the names so that they can be mended."""
    read = items._records.image

    def image(index, name):
        if items._records.records[index].id in names:
            raise error
        return read(index, name)

    items._records.image = image
    return names


def hidden(error):
    """An error of the system as a folder tells it: in one sentence, without its cause."""
    try:
        try:
            raise error
        except OSError:
            raise BadRecord("image can't be read") from None
    except BadRecord as told:
        return told


@pytest.mark.parametrize("wrap", [lambda error: error, hidden])
def test_a_disk_that_fails_for_a_while_costs_no_record(tmp_path, wrap):
    items = items_of(30)
    names = failing(items, {f"r{n}" for n in range(30)}, wrap(OSError(errno.EIO, "Input/output error")))
    desk = open_desk(tmp_path / "votes.sqlite", items, PLAIN)
    ann = desk.store.add_person("ann")
    for _ in range(3):
        with pytest.raises(Unavailable, match="disk"):
            desk.draw(ann, 2)
    names.clear()
    assert len(desk.draw(ann, 2)[0]) == 2
    assert desk.left(ann) == 28
    close(desk)


def test_a_record_that_can_not_be_read_now_is_tried_again(tmp_path):
    items = items_of(3)
    names = failing(items, {"r1"}, OSError(errno.EIO, "Input/output error"))
    desk = open_desk(tmp_path / "votes.sqlite", items, PLAIN)
    ann = desk.store.add_person("ann")
    assert len(desk.draw(ann, 3)[0]) == 2
    names.clear()
    assert len(desk.draw(ann, 3)[0]) == 2
    desk.store._clock = Clock(desk.store.now() + 61)
    assert len(desk.draw(ann, 3)[0]) == 3
    close(desk)


def test_nobody_waits_for_an_image_that_another_waits_for(tmp_path):
    items, began, go_on = items_of(4), threading.Event(), threading.Event()
    read = items._records.image

    def slow(index, name):
        if threading.current_thread() is not threading.main_thread():
            began.set()
            assert go_on.wait(30)
        return read(index, name)

    items._records.image = slow
    desk = open_desk(tmp_path / "votes.sqlite", items, PLAIN)
    ann, bob = (desk.store.add_person(name) for name in ("ann", "bob"))
    hers = []
    thread = threading.Thread(target=lambda: hers.extend(desk.draw(ann, 2)[0]))
    thread.start()
    assert began.wait(30)
    his, _ = desk.draw(bob, 2)
    go_on.set()
    thread.join()
    assert len({one.record for one in hers + his}) == 4
    close(desk)


def test_the_source_is_what_the_notes_name(tmp_path):
    crops = [record(n, image=picture(n), notes={"source_image": "photo"} if n else {}) for n in range(3)]
    desk = open_desk(tmp_path / "votes.sqlite", crops, PLAIN)
    desk.draw(desk.store.add_person("ann"), 3)
    sources = {name: one.source for name, one in desk.store.records().items()}
    assert sources == {"r0": hashlib.sha256(picture(0)).hexdigest(), "r1": "photo", "r2": "photo"}
    close(desk)


def test_no_more_votes_are_expected_than_there_are_annotators(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", 4, Rules(overlap=1.0, overlap_votes=3, repeats=0.0, gold=0.0))
    people = [desk.store.add_person(name) for name in ("ann", "bob")]
    work(desk, people[:1])
    assert desk.progress() == (4, 4)
    desk.draw(people[1])
    assert desk.progress() == (4, 8)
    work(desk, people)
    assert desk.progress() == (8, 8)
    close(desk)
