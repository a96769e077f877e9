"""What an attacker on the network, on another site or among the annotators sends: refused, logged, nothing changed."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onereward_jax.annotation import security
from onereward_jax.annotation.gold import read_gold
from onereward_jax.annotation.security import Guard, Site
from onereward_jax.errors import UserError
from tests.support.annotating import ADDRESS, application, client_of, close, filled, items_of, open_desk, record

JSON = {"content-type": "application/json"}
POSTS = ("sign-in", "sign-out", "assignments", "votes", "undo", "skip")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A desk, and a client with an open assignment and one that is answered."""
    desk = open_desk(tmp_path_factory.mktemp("served") / "votes.sqlite", 8)
    client = client_of(application(desk))
    first, second = client.post("/api/assignments", json={"count": 2}).json()["assignments"]
    vote = {"assignment": first["id"], "key": "k", "answers": filled(first), "seconds": 1.0}
    assert client.post("/api/votes", json=vote).status_code == 200
    yield desk, client, second
    close(desk)


@pytest.fixture
def unchanged(served):
    """Checks that a test has changed nothing in the database."""
    desk, _, _ = served
    content = lambda: (desk.store._read("SELECT * FROM vote"), desk.store._read("SELECT * FROM assignment"))
    before = content()
    yield
    assert content() == before


def refused(answer, *statuses):
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.json()["error"]
    assert "set-cookie" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


# Each is a hole of Gradio or Label Studio that was published, tried on what is nearest to it here.
TRAVERSALS = (
    "/etc/passwd",
    "//etc/passwd",
    "/../../../../etc/passwd",
    "/..%2f..%2f..%2fetc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/....//....//etc/passwd",
    "/..\\..\\etc\\passwd",
    "/C:\\Windows\\win.ini",
    "/%00",
    "/votes.sqlite",
    "/../votes.sqlite",
    "/../store.py",
    "/file:///etc/passwd",
)
HOLES = {
    "CVE-2023-51449 Gradio, traversal by /file=": [f"/file={path}" for path in TRAVERSALS],
    "CVE-2024-1561 Gradio, any file copied by /component_server": ["/component_server", "/config", "/info"],
    "CVE-2024-1728 Gradio, traversal by an upload's path": ["/upload", "/upload?upload_id=../../etc"],
    "CVE-2024-1183 Gradio, SSRF by a redirect of /file": ["/file=http://127.0.0.1:22", "/file/http://169.254.169.254/"],
    "CVE-2024-2206 Gradio, SSRF by /proxy": ["/proxy=http://169.254.169.254/", "/proxy/http://127.0.0.1:22"],
    "CVE-2024-4325 Gradio, SSRF by a saved URL": ["/queue/join", "/run/predict", "/api/predict"],
    "CVE-2023-47116 Label Studio, SSRF by import from a URL": ["/api/projects/1/import?url=http://169.254.169.254/"],
    "CVE-2023-47117 Label Studio, fields of others by filters": [
        "/api/tasks?filters=completed_by__password__startswith=a",
        "/api/dm/views",
        "/api/me?annotator__token__startswith=a",
    ],
    "CVE-2023-47115 Label Studio, script in an uploaded avatar": ["/data/avatars/x.html", "/api/users/1/avatar"],
    "CVE-2024-23633 Label Studio, script in an imported file": ["/data/upload/1/x.svg", "/data/upload/1/x.html"],
    "CVE-2024-26152 Label Studio, script in a label": ["/data/local-files/?d=../../etc/passwd"],
    "traversal by the names that are served": [f"/static{path}" for path in TRAVERSALS],
    "traversal by an image's name": [f"/images{path}" for path in TRAVERSALS] + ["/images/" + "a" * 22 + ".0"],
}


@pytest.mark.parametrize("hole", HOLES)
def test_published_holes_that_read(served, unchanged, caplog, hole):
    _, client, _ = served
    for path in HOLES[hole]:
        caplog.clear()
        answer = client.get(path)
        if path.startswith("/api/me?"):
            assert set(answer.json()) == set(client.get("/api/me").json())
            continue
        refused(answer, 404, 405)
        assert b"root:" not in answer.content
        assert len(caplog.records) == 1
        assert "\n" not in caplog.records[0].getMessage()
        refused(client.post(path, json={"url": "http://169.254.169.254/", "path": "/etc/passwd"}), 404, 405)
        refused(client.request("POST", path, content=b"x", headers={"content-type": "multipart/form-data"}), 415)


CROSS_SITE = (
    {"origin": "http://evil.example"},  # CVE-2024-1727: any site could post to a Gradio on localhost
    {"origin": "http://evil.example", "cookie": "a=b"},  # CVE-2024-47084: and could again, with a cookie
    {"origin": "null"},  # CVE-2024-47165: a page in a sandbox
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "http://localhost.evil.example:8080"},
    {"origin": "https://127.0.0.1:8080"},
    {"origin": "http://127.0.0.1:8080@evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
def test_another_site_reaches_nothing_through_an_annotators_browser(served, unchanged, headers):
    _, client, assignment = served
    for name in POSTS:
        refused(client.post(f"/api/{name}", json={}, headers=headers), 403)
        refused(client.request("OPTIONS", f"/api/{name}", headers=headers), 405)
    for path in ("/api/me", "/api/organiser", "/api/export", assignment["source"], "/static/x.js"):
        refused(client.get(path, headers=headers), 403)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_what_a_form_on_another_site_can_send(served, unchanged, kind):
    _, client, _ = served
    for name in POSTS:
        headers = {} if kind is None else {"content-type": kind}
        refused(client.request("POST", f"/api/{name}", content=b"{}", headers=headers), 415)


HOSTS = (
    "evil.example:8080",
    "127.0.0.1:9999",
    "127.0.0.1",
    "localhost.evil.example:8080",
    "127.0.0.1:8080.evil.example",
)


@pytest.mark.parametrize(
    "host", [*HOSTS, "", "a" * 5000, "127.0.0.1:8080@evil.example", "127.0.0.1:x", "[::1", "10.0.0.1:8080"]
)
def test_a_name_that_was_turned_to_this_address(served, unchanged, host):
    """DNS rebinding; and a Host that is none of ours must not open what an Origin closes, as in Gradio 6.15."""
    _, client, _ = served
    refused(client.get("/api/me", headers={"host": host}), 421)
    refused(client.get("/api/me", headers={"host": host, "origin": f"http://{host}"}), 421)
    refused(client.post("/api/undo", json={}, headers={"host": host}), 421)


@pytest.mark.parametrize("header", ["x-forwarded-for", "x-forwarded-host", "forwarded"])
def test_a_proxy_that_nobody_told_the_server_of(served, unchanged, header):
    """It would let everybody in: on loopback a name is enough."""
    _, client, _ = served
    answer = client.get("/api/me", headers={header: "203.0.113.7"})
    refused(answer, 403)
    assert "--public" in answer.json()["error"]


def test_names_of_the_server():
    loopback, network = Site("127.0.0.1", 8080), Site("0.0.0.0", 8080)
    proxied = Site("127.0.0.1", 8080, "https://annotate.example")
    assert all(loopback.knows(host) for host in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080"))
    assert network.knows("192.168.0.7:8080")
    assert not network.knows("evil.example:8080")
    assert proxied.knows("annotate.example")
    assert proxied.is_own_origin("https://annotate.example", "annotate.example")
    assert not proxied.is_own_origin("http://annotate.example", "annotate.example")
    assert (loopback.is_loopback, network.is_loopback, proxied.is_loopback) == (True, False, False)
    assert Site("localhost", 80).knows("localhost")
    assert not Site("192.168.0.7", 80).is_loopback


BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b'{"a": "\\ud800"}',
    b'{"a": ' + b"[" * 30_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"__proto__": {"organiser": true}}',
    b'{"name": "ann", "organiser": true}',
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:20]))
def test_malformed_json(served, unchanged, body):
    _, client, _ = served
    for name in POSTS:
        if name != "sign-out":
            refused(client.request("POST", f"/api/{name}", content=body, headers=JSON), 400)


def test_names_that_are_too_long_or_none(served, unchanged):
    desk, client, _ = served
    people = desk.store.people()
    refused(client.post("/api/sign-in", json={"name": "x" * 2**20}), 413)
    for name in ("x" * 65, "", " ", "a\nb", "a\0b", "\u202eann", 7, None, [], {"$ne": ""}):
        refused(client.post("/api/sign-in", json={"name": name}), 400)
    refused(client.get("/" + "x" * 60_000), 404)
    refused(client.get("/images/" + "x" * 60_000), 404)
    assert desk.store.people() == people


def test_script_in_prompts_and_names_stays_text(tmp_path):
    script = "<img src=x onerror=alert(1)>\u2028</script><script>alert(1)</script>"
    desk = open_desk(tmp_path / "votes.sqlite", [record(0, prompt=script)])
    client = client_of(application(desk), "<script>alert(1)</script>")
    answer = client.post("/api/assignments", json={"count": 1})
    assert answer.json()["assignments"][0]["prompt"] == script
    for path in ("/api/me", "/api/organiser", "/api/export"):
        found = client.get(path)
        assert found.headers["content-type"].startswith("application/")
        assert found.headers["x-content-type-options"] == "nosniff"
    close(desk)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_known = st.sampled_from(
    ["text_alignment", "structure", "left", "question", "k", "best", "marks", 0, 1, 2, -1, 1.0, True]
)
_answers = st.lists(
    st.dictionaries(
        st.sampled_from(["question", "best", "worst", "verdict", "marks", "x"]), _known | _values, max_size=4
    ),
    max_size=5,
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    name=st.sampled_from([name for name in POSTS if name not in ("sign-in", "sign-out", "undo")]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "assignment": _values,
            "key": _known | _values,
            "count": st.integers(6) | _values.filter(lambda value: type(value) is not int),
            "answers": _answers | _values,
            "reason": _values,
            "points": _values,
            "seconds": _values,
        },
    ),
    right=st.booleans(),
)
def test_any_json(served, unchanged, name, fields, right):
    _, client, assignment = served
    if name == "assignments":
        fields = {"count": 0} | fields
    if name == "votes" and right:
        fields = fields | {"assignment": assignment["id"]}
    refused(client.post(f"/api/{name}", json=fields), 400, 404, 409, 413)


def test_a_body_that_comes_slowly_or_never(served, unchanged, caplog):
    """A client that sends a byte now and then, and one that promises more than it may send."""
    sent = []

    async def app(scope, receive, send):
        raise AssertionError("the request came through")

    async def slow():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8080"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/votes", "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(Guard(app, Site("127.0.0.1", 8080), body_seconds=0.1)(scope, slow, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]
    assert "408" in caplog.text
    sent.clear()
    long = {**scope, "headers": [*headers, (b"content-length", b"99999999")]}
    asyncio.run(Guard(app, Site("127.0.0.1", 8080))(long, slow, send))
    assert sent[0]["status"] == 413
    assert security.MAX_BODY < 10**6


def test_right_answers_that_are_none(tmp_path):
    items = items_of(2)
    good = {
        "record": "r0",
        "answers": [{"question": q.name, "best": 0, "worst": 1} for q in items[0].questions("best_worst")],
    }
    (tmp_path / "gold.jsonl").write_text(json.dumps(good) + "\n")
    assert list(read_gold(tmp_path / "gold.jsonl", items)) == ["r0"]
    for line in ('{"record": "none"}', '{"record": []}', "[", '{"record": "r0"}', '{"record": "r0", "answers": [{}]}'):
        (tmp_path / "gold.jsonl").write_text(line)
        with pytest.raises(UserError, match=r"gold\.jsonl, line 1"):
            read_gold(tmp_path / "gold.jsonl", items)
    assert ADDRESS
