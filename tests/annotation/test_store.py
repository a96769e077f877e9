"""The database of votes: what it refuses, what it keeps, what a full disk, a lock and a clock do to it."""

import contextlib
import dataclasses
import sqlite3
import time

import pytest

from onereward_jax.annotation import database
from onereward_jax.annotation.assign import Ballot
from onereward_jax.annotation.ballot import BadBallot
from onereward_jax.annotation.database import Unavailable
from onereward_jax.annotation.questions import JOBS
from onereward_jax.annotation.store import Store
from onereward_jax.errors import UserError
from tests.support.annotating import PLAIN, answer, answers_to, close, open_desk, record


def test_what_was_answered_comes_back_numbered_as_in_the_record(tmp_path):
    for job in JOBS:
        desk = open_desk(tmp_path / job, 1, job=job)
        ann = desk.store.add_person("ann")
        [given], _ = desk.draw(ann)
        answer(desk, ann, given, best=0, worst=1)
        found = desk.store.answers()
        assert {(one.record, one.task, one.job, one.annotator, one.kind) for one in found} == {
            ("r0", "image_fill", job, "ann", "plain")
        }
        assert all(one.seconds == 2.0 and one.source and one.models[1] == "m1" for one in found)
        if job == "best_worst":
            assert {(one.best, one.worst) for one in found} == {given.shown[:2]}
            assert [one.question for one in found] == ["text_alignment", "consistency", "structure", "aesthetics"]
        elif job == "good_same_bad":
            assert [one.verdict for one in found] == ["good" if given.shown[0] == 0 else "bad"]
        else:
            best = {one.candidate for one in found if one.question == "structure" and one.mark == 5}
            assert best == {given.shown[0]}
        close(desk)


def test_all_is_there_after_a_start(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    given, _ = desk.draw(ann, 2)
    answer(desk, ann, given[0])
    close(desk)
    again = open_desk(tmp_path / "votes.sqlite")
    assert again.draw(ann, 2)[0][0].code == given[1].code
    assert again.done(ann) == 1
    assert again.recent(ann)[0][1] == 2.0
    close(again)


def test_one_process_gives_out_assignments(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    with pytest.raises(UserError, match="another process"):
        open_desk(tmp_path / "votes.sqlite")
    assert Store(tmp_path / "votes.sqlite").answers() == []  # but any may read
    close(desk)


@pytest.mark.parametrize("content", ["not a database, but long enough to look like one" * 40, "other", "newer"])
def test_databases_that_are_not_ours(tmp_path, content):
    path = tmp_path / "votes.sqlite"
    if content in ("other", "newer"):
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE t (x)")
            if content == "newer":
                other.execute(f"PRAGMA application_id={database.APPLICATION}")
                other.execute(f"PRAGMA user_version={database.VERSION + 1}")
    else:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        Store(path)
    assert path.read_bytes() == before


def test_votes_of_other_data_and_of_none(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    answer(desk, ann, desk.draw(ann)[0][0])
    close(desk)
    with pytest.raises(UserError, match="another record"):
        open_desk(tmp_path / "votes.sqlite", [record(number, prompt="a cat") for number in range(6)])
    with pytest.raises(UserError, match="does not exist"):
        Store(tmp_path / "none.sqlite", create=False)
    with pytest.raises(UserError, match="no directory"):
        Store(tmp_path / "none" / "votes.sqlite")


def test_a_full_disk(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", 40)
    ann = desk.store.add_person("ann")
    pages = desk.store._writer.execute("PRAGMA page_count").fetchone()[0]
    desk.store._writer.execute(f"PRAGMA max_page_count={pages + 1}")
    saved = 0

    def fill_it():
        nonlocal saved
        for number in range(40):
            answer(desk, ann, desk.draw(ann)[0][0], key=str(number))
            saved += 1

    with pytest.raises(Unavailable, match="disk is full"):
        fill_it()
    assert len(desk.store.answers()) == 4 * saved == 4 * desk.done(ann)
    desk.store._writer.execute("PRAGMA max_page_count=100000")  # somebody made room
    [given], _ = desk.draw(ann)
    answer(desk, ann, given, key="again")
    assert len(desk.store.answers()) == 4 * (saved + 1)
    assert len({one.record for one in desk.store.answers()}) == saved + 1
    close(desk)


def test_a_database_that_another_program_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY", 0.05)
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    [given], _ = desk.draw(ann)
    with contextlib.closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="in use"):
            answer(desk, ann, given)
        other.execute("ROLLBACK")
    assert desk.store.answers() == []
    answer(desk, ann, given)  # the same vote
    assert len(desk.store.answers()) == 4
    close(desk)


def test_a_database_that_can_only_be_read(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    [given], _ = desk.draw(ann)
    desk.store._writer.execute("PRAGMA query_only=ON")
    with pytest.raises(Unavailable, match="can't be written"):
        answer(desk, ann, given)
    assert desk.store.answers() == []
    close(desk)


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    desk = open_desk(tmp_path / "votes.sqlite", rules=dataclasses.replace(PLAIN, return_after=100.0))
    ann, bob = (desk.store.add_person(name) for name in ("ann", "bob"))
    given, _ = desk.draw(ann, 2)
    answer(desk, ann, given[0])
    monkeypatch.setattr(time, "time", lambda: 1e9)  # 2001
    answer(desk, ann, given[1])
    assert not {one.record for one in desk.draw(bob, 2)[0]} & {one.record for one in given}
    close(desk)
    again = open_desk(tmp_path / "votes.sqlite", rules=dataclasses.replace(PLAIN, return_after=100.0))
    [mine] = again.draw(ann, 1)[0]
    answer(again, ann, mine, key="later")
    times = [one.at for one in again.store.answers()]
    assert times == sorted(times)
    assert times[0] > 1.5e9
    assert len({(one.annotator, one.record, one.question) for one in again.store.answers()}) == len(times)
    close(again)


def test_a_vote_that_can_not_be_taken_changes_nothing(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite")
    ann = desk.store.add_person("ann")
    [given], _ = desk.draw(ann)
    good = answers_to(desk, given)
    for bad in (None, [], good[:3], [*good, good[0]], [{**good[0], "best": 3}, *good[1:]], [{"question": []}] * 4):
        with pytest.raises(BadBallot):
            desk.vote(ann, dataclasses.replace(Ballot(given.code, "key", []), answers=bad))
    for field, value in (("reason", "x" * 3000), ("points", [{"candidate": 0, "x": 2, "y": 0}]), ("seconds", -1)):
        with pytest.raises(BadBallot, match=field[:1]):
            desk.vote(ann, dataclasses.replace(Ballot(given.code, "key", []), answers=good, **{field: value}))
    assert desk.store.answers() == []
    close(desk)
