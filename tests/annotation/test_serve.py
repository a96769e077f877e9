"""The server as a process: killed between and during votes, a full disk, slow clients, what the command refuses."""

import asyncio
import contextlib
import random
import resource
import signal
import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest
import uvicorn

from onereward_jax.annotation import serve
from onereward_jax.annotation.store import FILE, Store
from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import write_records
from tests.support.annotating import Running, filled, record


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "candidates"
    write_records(directory, (record(number) for number in range(60)), "folder")
    return directory


class Annotator:
    """Votes as fast as it can; knows what was acknowledged, and sends again what was not."""

    def __init__(self, name: str, seed: int):
        self.name, self.rng = name, random.Random(seed)
        self.pending: dict | None = None
        self.meant: dict[str, dict] = {}  # key -> body
        self.saved: set[str] = set()

    def run(self, address: str, stop: threading.Event) -> None:
        with contextlib.suppress(httpx2.TransportError), httpx2.Client(base_url=address, timeout=60) as client:
            client.post("/api/sign-in", json={"name": self.name})
            while not stop.is_set():
                if self.pending is None:
                    given = client.post("/api/assignments", json={"count": 2}).json()["assignments"]
                    if not given:
                        return
                    key = str(self.rng.getrandbits(64))
                    answers = filled(given[0], *self.rng.sample(range(3), 2))
                    self.pending = {"assignment": given[0]["id"], "key": key, "answers": answers, "seconds": 1.0}
                    self.meant[key] = self.pending
                answer = client.post("/api/votes", json=self.pending)
                assert answer.status_code == 200, answer.text
                self.saved.add(self.pending["key"])
                self.pending = None


def test_kill_9_between_and_during_votes(data):
    """After each kill every vote that was acknowledged is there, once; at the end all that were meant are."""
    people = [Annotator(name, seed) for seed, name in enumerate(("ann", "bob"))]
    for turn in range(4):
        running, stop = Running(data, "--overlap=0", "--repeats=0"), threading.Event()
        threads = [threading.Thread(target=person.run, args=(running.address, stop)) for person in people]
        for thread in threads:
            thread.start()
        if turn < 3:
            seen = sum(len(person.saved) for person in people)
            while sum(len(person.saved) for person in people) < seen + 8:
                assert any(thread.is_alive() for thread in threads)
                time.sleep(0.001)
            time.sleep(random.Random(turn).random() * 0.02)
            running.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
        store = Store(data / FILE)
        kept = store._read("SELECT v.key, a.code FROM vote v JOIN assignment a ON a.id = v.assignment")
        keys = [key for key, _ in kept]
        assert len(keys) == len(set(keys))
        assert {key for person in people for key in person.saved} <= set(keys)
        assert set(keys) <= {key for person in people for key in person.meant}
        store.close()
    meant = {(key, body["assignment"]) for person in people for key, body in person.meant.items()}
    assert set(kept) == meant
    assert len({name for (name,) in Store(data / FILE)._read("SELECT name FROM record")}) == len(meant) == 60
    assert running.end(signal.SIGINT) == 130


def test_a_disk_that_fills_up(data, tmp_path):
    """Votes go on until the file may not grow; what was acknowledged is there, and what was refused is not."""
    votes = tmp_path / "votes.sqlite"
    Store(votes).close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as in the server, by Python itself
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        running = Running(data, f"--votes={votes}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    saved, refused = [], None
    with httpx2.Client(base_url=running.address) as client:
        client.post("/api/sign-in", json={"name": "ann"})
        for number in range(60):
            drawn = client.post("/api/assignments", json={"count": 1})
            if drawn.status_code != 200:
                refused = drawn
                break
            [given] = drawn.json()["assignments"]
            body = {"assignment": given["id"], "key": str(number), "answers": filled(given), "reason": "x" * 1900}
            answer = client.post("/api/votes", json=body)
            if answer.status_code != 200:
                refused = answer
                break
            saved.append(str(number))
        assert refused is not None
        assert refused.status_code == 503
        assert str(votes) in refused.json()["error"]
        assert client.get("/api/me").json()["done"] == len(saved)
    running.end(signal.SIGKILL)
    kept = Store(votes)
    assert [key for (key,) in kept._read("SELECT key FROM vote ORDER BY id")] == saved
    kept.close()


def test_slow_clients_are_cut(data, tmp_path, monkeypatch):
    """One that says nothing, one that sends its headers byte by byte, one that sends half a body."""
    monkeypatch.setattr(serve, "REQUEST_SECONDS", 0.3)

    async def app(scope, receive, send):
        piece, count = b"x" * 2_000_000, 30  # more than the system's buffers hold
        length = str(count * len(piece)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for number in range(count):
            await send({"type": "http.response.body", "body": piece, "more_body": number < count - 1})

    monkeypatch.setattr(serve, "LISTEN_SECONDS", 0.3)
    opened = serve.bind("127.0.0.1", 0)
    config = uvicorn.Config(app, http=serve.TimeoutProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
    thread.start()
    ask = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    try:
        for words in (b"", ask, ask + b"content-length: 9\r\n\r\nx", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"):
            started = time.monotonic()
            with socket.create_connection(opened.getsockname(), timeout=20) as client:
                client.sendall(words)
                if words.endswith(b"\r\n\r\n"):
                    time.sleep(0.8)  # does not listen
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(2**20):
                        pass
                assert time.monotonic() - started > 0.2
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_on_a_slow_line_gets_all_of_it(monkeypatch):
    """The whole answer takes several times as long as a client may take nothing."""
    monkeypatch.setattr(serve, "LISTEN_SECONDS", 1.0)  # a busy machine may let the client wait for part of it
    content = b"x" * 3_000_000

    async def app(scope, receive, send):
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    opened = serve.bind("127.0.0.1", 0)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**17)  # so that it is the server that waits
    config = uvicorn.Config(app, http=serve.TimeoutProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
    thread.start()
    try:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
            client.settimeout(20)
            client.connect(opened.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            started, had = time.monotonic(), 0
            while piece := client.recv(2**17):
                had += len(piece)
                time.sleep(0.1)
        assert had > len(content)
        assert time.monotonic() - started > 2.0
    finally:
        server.should_exit = True
        thread.join()


def test_what_the_command_refuses(data, tmp_path, capsys):
    def error(*argv):
        assert cli.main(["annotate", *argv]) == 2
        said = capsys.readouterr().err
        assert said.count("onereward: ") == 1
        assert "Traceback" not in said
        return said

    empty = tmp_path / "empty"
    empty.mkdir()
    given = ("--data", str(data), "--votes", str(tmp_path / "votes.sqlite"))
    assert "empty" in error("--data", str(empty), "--votes", str(tmp_path / "votes.sqlite"))
    assert "none" in error("--data", str(tmp_path / "none"))
    assert "good_same_bad" in error(*given, "--job", "good_same_bad")
    assert "name" in error(*given, "--add_annotator", " ")
    assert not any(tmp_path.glob("*.sqlite*"))
    assert "--host" in error(*given, "--host", "no.such.host.invalid")
    with contextlib.closing(serve.bind("127.0.0.1", 0)) as taken:
        assert "--port" in error(*given, f"--port={taken.getsockname()[1]}")
    assert "--public" in error(*given, "--public", "annotate.example/path")
    assert "gold.jsonl" in error(*given, "--gold", str(tmp_path / "gold.jsonl"))
    assert not any(tmp_path.glob("*.sqlite*"))


def test_a_token_is_printed_once(data, tmp_path, capsys):
    votes = tmp_path / "votes.sqlite"
    assert cli.main(["annotate", "--data", str(data), "--votes", str(votes), "--add_annotator", "ann"]) == 0
    name, token = capsys.readouterr().out.strip().split(": ")
    assert (name, len(token)) == ("ann", 32)
    files = [path for path in Path(tmp_path).iterdir() if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in files)
    assert cli.main(["annotate", "--data", str(data), "--votes", str(votes), "--add_organiser"]) == 0
    assert capsys.readouterr().out.startswith("organiser: ")
    assert cli.main(["annotate", "--data", str(data), "--votes", str(votes), "--add_annotator", "organiser"]) == 2
