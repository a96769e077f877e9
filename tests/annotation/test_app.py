"""The server as the page sees it: assignments, images, votes, undo, and what it says when the disk fails."""

import errno
import json
import sqlite3
import time

import pytest

from onereward_jax.annotation.app import create_app
from onereward_jax.annotation.assign import Rules
from onereward_jax.annotation.images import ImageCache
from onereward_jax.annotation.security import Site, digest, new_token
from onereward_jax.annotation.store import ANSWERED
from tests.support.annotating import (
    ADDRESS,
    application,
    client_of,
    close,
    colour_of,
    filled,
    items_of,
    open_desk,
    picture,
    record,
)


@pytest.fixture
def desk(tmp_path):
    desk = open_desk(tmp_path / "votes.sqlite", 8)
    yield desk
    close(desk)


def drawn(client, count=1):
    answer = client.post("/api/assignments", json={"count": count})
    assert answer.status_code == 200, answer.text
    return answer.json()["assignments"]


def vote(client, given, key="k", **fields):
    body = {"assignment": given["id"], "key": key, "answers": filled(given), "seconds": 3.5}
    return client.post("/api/votes", json=body | fields)


def test_an_annotators_day(desk):
    app = application(desk)
    client = client_of(app, name=None)
    unknown = client.get("/api/me")
    assert (unknown.status_code, unknown.json()["needs_token"]) == (401, False)
    assert client.post("/api/assignments", json={"count": 2}).status_code == 401
    signed = client.post("/api/sign-in", json={"name": " Ann "})
    assert signed.json() == {"annotator": "Ann", "job": "best_worst", "organiser": False}
    cookie = signed.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie

    first, second = drawn(client, 2)
    assert [one["id"] for one in drawn(client, 2)] == [first["id"], second["id"]]
    assert set(first) == {"id", "job", "task", "prompt", "source", "mask", "candidates", "questions", "previous"}
    assert first["questions"][0]["name"] == "text_alignment"
    shown = [colour_of(client.get(url).content) for url in first["candidates"]]
    assert sorted(shown) == [1, 11, 21]
    assert colour_of(client.get(first["source"]).content) == 200
    image = client.get(first["mask"])
    assert image.headers["content-type"] == "image/png"
    assert "immutable" in image.headers["cache-control"]

    points = [{"candidate": 1, "x": 0.25, "y": 1}]
    saved = vote(client, first, reason="  blurred ", points=points)
    assert saved.json()["saved"] is True
    assert vote(client, first).json()["done"] == 1  # the same vote, sent again
    assert vote(client, first, key="other").status_code == 409
    [answer, *_] = desk.store.answers()
    assert [1 + 10 * answer.best, 1 + 10 * answer.worst] == shown[:2]
    assert (answer.reason, answer.points, answer.seconds) == ("blurred", ((answer.worst, 0.25, 1.0),), 3.5)

    me = client.get("/api/me").json()
    assert (me["annotator"], me["done"], me["total"], me["today"], me["seconds_per_item"]) == ("Ann", 1, 8, 1, 3.5)
    again = client.post("/api/undo", json={"assignment": first["id"]}).json()["assignment"]
    assert again["id"] == first["id"]
    previous = drawn(client)[0]["previous"]  # as after a reload
    assert previous == again["previous"]
    assert previous["answers"][0] == {"question": "text_alignment", "best": 0, "worst": 1}
    assert (previous["reason"], previous["points"]) == ("blurred", points)
    assert desk.store.answers() == []
    assert vote(client, first).status_code == 409  # an old request that comes late
    assert vote(client, first, key="new").json()["done"] == 1

    assert client.post("/api/skip", json={"assignment": second["id"]}).status_code == 200
    assert vote(client, second).status_code == 409
    assert second["id"] not in [one["id"] for one in drawn(client, 5)]
    assert client.post("/api/sign-out", json={}).status_code == 200
    assert client.get("/api/me").status_code == 401


def test_two_annotators_get_other_records_and_no_end_but_by_the_other(desk):
    app = application(desk)
    ann, bob = client_of(app, "ann"), client_of(app, "bob")
    mine, his = drawn(ann, 5), drawn(bob, 5)
    assert len({one["prompt"] for one in mine + his}) == 8
    for number, given in enumerate(his):
        assert vote(bob, given, key=str(number)).status_code == 200
        assert client_of(app, "ann").get(given["source"]).status_code == 404
        assert vote(ann, given).status_code == 404
    end = bob.post("/api/assignments", json={"count": 1}).json()
    assert (end["assignments"], end["waiting"]) == ([], True)
    for number, given in enumerate(mine):
        vote(ann, given, key=str(number))
    assert bob.post("/api/assignments", json={"count": 1}).json()["waiting"] is False


def test_kinds_can_not_be_told_apart(tmp_path):
    rules = Rules(overlap=0.0, repeats=0.3, gold=0.3, repeat_gap=3)
    desk = open_desk(tmp_path / "votes.sqlite", 30, rules, gold={f"r{number}": [] for number in range(5)})
    client = client_of(application(desk))
    seen, totals = set(), set()
    for number in range(25):
        [given] = drawn(client)
        urls = [given["source"], given["mask"], *given["candidates"]]
        assert all(url.startswith(f"/images/{given['id']}.") for url in urls)
        assert not seen & set(urls)
        seen |= set(urls)
        answer = vote(client, given, key=str(number)).json()
        assert answer["done"] == number + 1
        totals.add(answer["total"])
    assert {one.kind for one in desk.store.answers()} == {"plain", "repeat", "gold"}
    assert len(totals) == 1
    close(desk)


def test_the_organiser(tmp_path):
    right = [{"question": name, "best": 0, "worst": 2} for name in ("text_alignment", "structure")]
    rules = Rules(overlap=0.0, repeats=0.4, gold=0.4, repeat_gap=1)
    desk = open_desk(tmp_path / "votes.sqlite", 12, rules, gold={"r1": right, "r2": right})
    client = client_of(application(desk))
    for number in range(12):
        for given in drawn(client):
            shown = [colour_of(client.get(url).content) for url in given["candidates"]]
            vote(client, given, key=str(number), answers=filled(given, shown.index(1), shown.index(11)))
    overview = client_of(application(desk), None).get("/api/organiser").json()
    kinds = {given.kind for given in desk.store.assignments(desk.job)}
    plain = sum(given.kind == "plain" for given in desk.store.assignments(desk.job) if given.state == ANSWERED)
    assert kinds == {"plain", "repeat", "gold"}
    assert (overview["done"], overview["besides"]) == (plain, 12 - plain)
    [ann] = overview["annotators"]
    assert (ann["name"], ann["done"], ann["self_agreement"]) == ("ann", 12, 1.0)
    assert 0 < ann["gold_right"] < 1  # the best is right, the worst is not
    assert set(overview["agreement"]) == {"text_alignment", "consistency", "structure", "aesthetics"}
    assert overview["total"] == 10
    lines = client.get("/api/export")
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    exported = [json.loads(line) for line in lines.text.splitlines()]
    assert len(exported) == len(desk.store.answers())
    assert {one["kind"] for one in exported} == {"plain", "repeat", "gold"}
    close(desk)


def test_tokens_are_needed_off_loopback(tmp_path, caplog):
    desk = open_desk(tmp_path / "votes.sqlite")
    app = application(desk, Site("0.0.0.0", 8080))
    tokens = {name: new_token() for name in ("ann", "bob", "organiser")}
    for name, token in tokens.items():
        desk.store.add_person(name, digest(token), name == "organiser")
    address = "http://192.168.1.5:8080"
    client = client_of(app, None, address)
    assert client.get("/api/me").json()["needs_token"] is True
    for body in ({"name": "ann"}, {"token": ""}, {"token": tokens["ann"][:-1]}, {"token": 7}, {"token": None}, {}):
        assert client.post("/api/sign-in", json=body).status_code == 401
    caplog.clear()
    assert client.post("/api/sign-in", json={"token": tokens["ann"] + "x"}).status_code == 401
    assert client.get(f"/{tokens['ann']}?token={tokens['ann']}").status_code == 404
    assert len(caplog.records) == 2
    assert tokens["ann"] not in caplog.text
    assert client.post("/api/sign-in", json={"token": tokens["ann"]}).json()["annotator"] == "ann"
    assert drawn(client)
    assert client.get("/api/organiser").status_code == 403
    assert client.get("/api/export").status_code == 403
    assert client_of(app, None, address).get("/api/organiser").status_code == 401

    organiser = client_of(app, None, address)
    assert organiser.post("/api/sign-in", json={"token": tokens["organiser"]}).json()["organiser"] is True
    assert organiser.get("/api/organiser").status_code == 200
    assert organiser.post("/api/assignments", json={}).status_code == 403

    stolen = dict(client.cookies)
    desk.store.add_person("ann", digest(new_token()))  # a new token: the old one and its sessions end
    assert client.get("/api/me").status_code == 401
    assert client.post("/api/sign-in", json={"token": tokens["ann"]}).status_code == 401
    bob = client_of(app, None, address)
    bob.post("/api/sign-in", json={"token": tokens["bob"]})
    stolen |= dict(bob.cookies)
    bob.post("/api/sign-out", json={})
    replayed = client_of(app, None, address)
    replayed.cookies.update(stolen)
    assert replayed.get("/api/me").status_code == 401
    assert not any(token.encode() in (tmp_path / "votes.sqlite").read_bytes() for token in tokens.values())
    close(desk)


def test_a_database_that_can_not_be_written_is_503(desk, caplog):
    client = client_of(application(desk))
    [given] = drawn(client)
    desk.store._writer.execute("PRAGMA query_only=ON")
    refused = vote(client, given)
    assert refused.status_code == 503
    assert "can't be written" in refused.json()["error"]
    assert client.post("/api/undo", json={}).status_code == 409
    assert client.get("/api/me").json()["done"] == 0
    assert "503" in caplog.text
    desk.store._writer.execute("PRAGMA query_only=OFF")
    assert vote(client, given).json()["done"] == 1
    with sqlite3.connect(desk.store.path) as other:
        assert other.execute("SELECT count(*) FROM vote").fetchone() == (1,)
    other.close()


def test_files_that_are_no_images(tmp_path):
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    bad = record(0, image=script)
    hidden = picture(7) + b"<script>alert(2)</script>"
    good = record(1, image=hidden)
    desk = open_desk(tmp_path / "votes.sqlite", [bad, good])
    client = client_of(application(desk))
    given = {one["prompt"]: one for one in drawn(client, 2)}
    refused = client.get(given["a beetle, number 0"]["source"])
    assert (refused.status_code, refused.headers["content-type"]) == (404, "application/json")
    content = client.get(given["a beetle, number 1"]["source"]).content
    assert b"script" not in content
    assert colour_of(content) == 7
    assert drawn(client_of(application(desk), "bob"), 2) == []  # the bad one is left out
    close(desk)


def test_a_disk_that_fails_for_a_while(desk):
    client, stored = client_of(application(desk)), desk.items._records
    [given], read = drawn(client), stored.image

    def broken(index, name):
        raise OSError(errno.EIO, "Input/output error")

    stored.image = broken
    assert client.get(given["candidates"][0]).status_code in (200, 503)  # it may have been made ahead
    app = application(desk)
    again = client_of(app)
    assert again.get(given["candidates"][0]).status_code == 503
    stored.image = read
    assert again.get(given["candidates"][0]).status_code == 200
    assert drawn(client_of(app, "bob"), 5)


def test_a_newcomers_first_images_are_ready(tmp_path):
    broken = record(3, image=b"no image")
    items = items_of([broken if number == 3 else record(number) for number in range(60)])
    desk = open_desk(tmp_path / "votes.sqlite", items)
    first = desk.upcoming(3)
    cache = ImageCache(2**24, threads=1)
    app = create_app(desk, cache, Site("127.0.0.1", 8080))
    ann = client_of(app)
    given = drawn(ann, 2)  # and one ahead
    assert [items.place(one.record) for one in desk.store.assignments(desk.job)] == first
    wanted = (set(desk.upcoming(5)) | set(first)) - {items.place("r3")}
    last = time.monotonic() + 20
    while not wanted <= (there := {place for place, _ in list(cache._kept)}):
        assert time.monotonic() < last
        time.sleep(0.01)
    assert len(there) < 60
    stored, read = desk.items._records, desk.items._records.image
    stored.image = lambda index, name: read(index, name)[:0]
    for url in (given[0]["mask"], *given[0]["candidates"], given[1]["mask"], *given[1]["candidates"]):
        assert ann.get(url).status_code == 200
    cache.close()
    close(desk)


def test_pages_and_methods(desk):
    client = client_of(application(desk), None)
    assert client.get("/static/none.js").status_code == 404
    assert client.get("/none").json() == {"error": "there is no such page"}
    assert client.get("/api/votes").status_code == 405
    for path in ("/api/me", "/static/none.js", "/"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert ADDRESS.startswith("http://127.")
