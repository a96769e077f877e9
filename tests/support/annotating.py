"""A small annotation: records in memory, a desk that gives them out, and the application with a client."""

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from starlette.testclient import TestClient

from onereward_jax.annotation.app import create_app
from onereward_jax.annotation.assign import Ballot, Desk, Rules
from onereward_jax.annotation.images import ImageCache
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, questions_of
from onereward_jax.annotation.security import Site
from onereward_jax.annotation.store import Assignment, Person, Store
from onereward_jax.data.preferences.record import BadRecord, Candidate, Record

PLAIN = Rules(overlap=0.0, repeats=0.0, gold=0.0)  # every record once, and nothing else
ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8080"


def picture(colour: int, size: tuple[int, int] = (6, 4)) -> bytes:
    """A PNG file of one colour, which tells what was shown."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (colour, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def colour_of(content: bytes) -> int:
    return int(np.asarray(PIL.Image.open(io.BytesIO(content)))[0, 0, 0])


def record(number: int, candidates: int = 3, **fields: Any) -> Record:
    """A record whose candidate k is of the colour 10 k + 1."""
    mask = io.BytesIO()
    PIL.Image.new("L", (6, 4), 255).save(mask, "PNG")
    made = tuple(Candidate(picture(10 * k + 1), {"model": f"m{k}"}) for k in range(candidates))
    common = {
        "task": "image_fill",
        "prompt": f"a beetle, number {number}",
        "image": picture(200),
        "mask": mask.getvalue(),
    }
    return Record(id=f"r{number}", candidates=made, **(common | fields))


class InMemory:
    """Records as `data.preferences.dataset.Stored`."""

    def __init__(self, records: Iterable[Record]):
        self.directory = Path("in-memory")
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        return f"record {index}"

    def outline(self, index: int) -> Record:
        return self.records[index]

    def image(self, index: int, name: str) -> bytes:
        one = self.records[index]
        images = {"image": one.image, "mask": one.mask}
        images |= {f"candidates[{k}].image": candidate.image for k, candidate in enumerate(one.candidates)}
        if not images.get(name):
            raise BadRecord(f"{self.name(index)}: {name} is missing")
        return images[name]


def items_of(records: int | Iterable[Record] = 6, job: str = BEST_WORST) -> Items:
    if isinstance(records, int):
        records = [record(number, 2 if job == GOOD_SAME_BAD else 3) for number in range(records)]
    return Items(InMemory(records), job)


def open_desk(path: Path, records: Any = 6, rules: Rules = PLAIN, job: str = BEST_WORST, **rest: Any) -> Desk:
    items = records if isinstance(records, Items) else items_of(records, job)
    return Desk(Store(path), items, rules, **rest)


def close(desk: Desk) -> None:
    desk.close()
    desk.store.close()


def answers_to(desk: Desk, given: Assignment, best: int = 0, worst: int = 1) -> list[dict[str, Any]]:
    """The same answer to each question of an assignment, as shown."""
    item = desk.items[desk.items.place(given.record)]
    questions = questions_of(given.job, item.task, item.prompt)
    if given.job == BEST_WORST:
        return [{"question": question.name, "best": best, "worst": worst} for question in questions]
    if given.job == GOOD_SAME_BAD:
        return [{"question": "overall", "verdict": ("left", "right")[best]}]
    return [{"question": q.name, "marks": [q.scale[1]] + [q.scale[0]] * (len(given.shown) - 1)} for q in questions]


def answer(desk: Desk, person: Person, given: Assignment, key: str = "k", **rest: Any) -> None:
    desk.vote(person, Ballot(given.code, key, answers_to(desk, given, **rest), seconds=2.0))


def application(desk: Desk, site: Site | None = None) -> Any:
    return create_app(desk, ImageCache(2**24, threads=1), site or Site("127.0.0.1", 8080))


def client_of(app: Any, name: str | None = "ann", address: str = ADDRESS) -> TestClient:
    """A browser; signed in, if it has a name."""
    client = TestClient(app, base_url=address, raise_server_exceptions=False, client=("127.0.0.1", 50_000))
    if name is not None:
        assert client.post("/api/sign-in", json={"name": name}).status_code == 200
    return client


def filled(given: dict[str, Any], best: int = 0, worst: int = 1) -> list[dict[str, Any]]:
    """Answers to an assignment as a page has it."""
    return [{"question": question["name"], "best": best, "worst": worst} for question in given["questions"]]


class Running:
    """`onereward annotate` in a process of its own."""

    def __init__(self, data: Path, *arguments: str):
        command = [sys.executable, "-m", "onereward_jax.cli.main", "annotate", "--data", str(data), "--port=0"]
        self.log = (data / "server.log").open("ab")
        # As in a terminal, although tests that run in the background ignore SIGINT, and hand that on.
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True, preexec_fn=heard
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        assert found, (data / "server.log").read_text()[-2000:]
        self.host, self.port = found[1], int(found[2])
        self.address = f"http://{self.host}:{self.port}"

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        self.process.stdout.close()
        self.log.close()
        return self.process.wait(30)
