"""Measures the annotation server under 50 scripted annotators: votes, next pages, memory; again with a million votes.

    python benchmarks/annotation_load.py --workdir runs/annotation_load [--items 6] [--pace 36] [--json FILE]

10,000 requests of four 1024 x 1024 candidates beside a source and a mask: hard links to a few files under many names,
each opened by its own path and written anew for its own record, so that nothing is kept from one to the next but the
page cache of the disk. The server is `onereward annotate` in a process of its own, the annotators another process on
the same machine.

An annotator does as the page does: shows an item, thinks (`--pace` seconds on average, between half and one and a half
times that; 36 are a hundred items an hour), votes, draws the next item and loads its source, mask and candidates. Timed
are the vote, from its first byte to the answer that it is on the disk, and the next page, from asking for the
assignment to the last byte of its images. An annotator's first page, which is of two items, is counted apart.
"""

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from onereward_jax.annotation.store import ANSWERED, FILE, Store
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.proving_ground.photos import bundled

SIDE, CANDIDATES, PAST = 1024, 4, 100  # PAST: annotators whose votes are there in the second run
CASES = ("empty database", "a million votes")
QUESTIONS = ("text_alignment", "consistency", "structure", "aesthetics")


def make_data(directory: Path, requests: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "images").mkdir(parents=True)
    originals = []
    for number, photo in enumerate(bundled()[:8]):
        originals.append(directory / f"{number}.png")
        image = Image.open(photo.path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(originals[-1], compress_level=1)
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((300, 300, 800, 700), fill=255)
    mask.save(directory / "mask.png")
    with (directory / "candidates-00000.jsonl").open("w") as file:
        for number in range(requests):
            paths = [f"images/{number}-{k}.png" for k in range(1 + CANDIDATES)]
            for k, path in enumerate(paths):
                os.link(originals[(number + k) % len(originals)], directory / path)
            fields: dict[str, Any] = {"id": f"{number:06d}", "task": "image_fill", "prompt": f"a boat, number {number}"}
            fields |= {"image": paths[0], "mask": "mask.png"}
            fields["candidates"] = [{"image": path, "sampling": {"model": "a"}} for path in paths[1:]]
            file.write(json.dumps(fields) + "\n")


def add_past(path: Path, requests: int) -> int:
    """Put the votes of `PAST` annotators on every request into a new database; return their number."""
    Store(path).close()
    writer = sqlite3.connect(path)
    answers = json.dumps([{"question": name, "best": 0, "worst": 3} for name in QUESTIONS], separators=(",", ":"))
    writer.executemany("INSERT INTO annotator (name) VALUES (?)", ((f"past-{number}",) for number in range(PAST)))
    writer.executemany(
        "INSERT INTO record (name, task, prompt, models, source) VALUES (?, 'image_fill', ?, ?, ?)",
        (
            (f"{number:06d}", f"a boat, number {number}", '["a","a","a","a"]', secrets.token_hex(32))
            for number in range(requests)
        ),
    )
    now = time.time()
    places = [(person, record) for record in range(1, requests + 1) for person in range(1, PAST + 1)]
    writer.executemany(
        "INSERT INTO assignment (id, code, annotator, record, job, kind, shown, state, at, due)"
        " VALUES (?, ?, ?, ?, 'best_worst', 0, '[2,0,1,3]', ?, ?, ?)",
        (
            (number, secrets.token_urlsafe(16), person, record, ANSWERED, now - 1e6 + number, now)
            for number, (person, record) in enumerate(places, 1)
        ),
    )
    writer.executemany(
        "INSERT INTO vote (id, assignment, annotator, key, answers, reason, points, seconds, at)"
        " VALUES (?, ?, ?, ?, ?, '', '[]', 9.5, ?)",
        (
            (number, number, person, secrets.token_hex(8), answers, now - 1e6 + number)
            for number, (person, _) in enumerate(places, 1)
        ),
    )
    writer.commit()
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()
    return len(places)


# --------------------------------------------------------------------------------------------------------- annotators


class Connection:
    """HTTP/1.1 over one connection, which stays open."""

    def __init__(self, port: int):
        self._port, self._cookie = port, ""
        self._reader: asyncio.StreamReader | None = None

    async def ask(self, method: str, path: str, body: Any = None, cookie: str = "") -> tuple[int, bytes, str]:
        """Return (status, body, the cookie that was set)."""
        if self._reader is None or self._reader.at_eof():  # the server closes what nothing is asked on for a minute
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**22)
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{self._port}"]
        lines += [f"cookie: {cookie}"] * bool(cookie)
        lines += ["content-type: application/json", f"content-length: {len(content)}"] if body is not None else []
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        received = await self._reader.readexactly(length)
        found = re.search(r"set-cookie: ([^;]+)", head)
        return int(head.split()[1]), received, found[1] if found else ""


class Annotator:
    """One scripted annotator."""

    def __init__(self, port: int, number: int, pace: float):
        self._lines = [Connection(port) for _ in range(6)]  # as many as a browser opens
        self._name, self._pace, self._cookie = f"annotator-{number}", pace, ""
        self._rng = random.Random(number)
        self.votes: list[float] = []
        self.pages: list[float] = []
        self.first_pages: list[float] = []
        self._loaded: set[str] = set()

    async def _ask(self, path: str, body: Any) -> dict[str, Any]:
        status, content, cookie = await self._lines[0].ask("POST", path, body, self._cookie)
        assert status == 200, (path, status, content[:300])
        self._cookie = cookie or self._cookie
        return json.loads(content)

    async def _page(self) -> list[dict[str, Any]]:
        """Draw, and load the images of what is new."""
        given = (await self._ask("/api/assignments", {"count": 2}))["assignments"]
        for one in given:
            if one["id"] not in self._loaded:
                self._loaded.add(one["id"])
                urls = [one["source"], one["mask"], *one["candidates"]]
                await asyncio.gather(*(self._image(line, url) for line, url in zip(self._lines, urls, strict=True)))
        return given

    async def _image(self, line: Connection, url: str) -> None:
        status, content, _ = await line.ask("GET", url, cookie=self._cookie)
        assert status == 200, (url, status)
        assert content.startswith(b"\x89PNG")

    async def work(self, items: int) -> None:
        await asyncio.sleep(self._rng.random() * self._pace)  # they don't come all at once
        await self._ask("/api/sign-in", {"name": self._name})
        started = time.perf_counter()
        given = await self._page()
        self.first_pages.append(time.perf_counter() - started)
        for _ in range(items):
            await asyncio.sleep(self._pace * (0.5 + self._rng.random()))
            answers = [{"question": question["name"], "best": 0, "worst": 1} for question in given[0]["questions"]]
            vote = {"assignment": given[0]["id"], "key": secrets.token_hex(8), "answers": answers, "seconds": 9.0}
            started = time.perf_counter()
            await self._ask("/api/votes", vote)
            voted = time.perf_counter()
            given = await self._page()
            self.votes.append(voted - started)
            self.pages.append(time.perf_counter() - voted)


# ------------------------------------------------------------------------------------------------------------ running


def measure(data: Path, votes: Path, options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Start the server, let the annotators work, and return what was seen."""
    command = [sys.executable, "-m", "onereward_jax.cli.main", "annotate", "--data", str(data), "--votes", str(votes)]
    started = time.perf_counter()
    server = subprocess.Popen([*command, "--port=0", *options], stdout=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)", server.stdout.readline())[1])
    found: dict[str, Any] = {
        "start_seconds": round(time.perf_counter() - started, 1),
        "load_before": os.getloadavg()[0],
    }
    people = [Annotator(port, number, args.pace) for number in range(args.annotators)]

    async def together() -> None:
        await asyncio.gather(*(person.work(args.items) for person in people))

    cpu, wall = cpu_seconds(server.pid), time.perf_counter()
    try:
        asyncio.run(together())
        spent = time.perf_counter() - wall
        found |= {"seconds": round(spent, 1), "load_after": os.getloadavg()[0]}
        found["server_cores"] = round((cpu_seconds(server.pid) - cpu) / spent, 2)
        found["server_peak_mib"] = peak_mib(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    for name in ("votes", "pages", "first_pages"):
        times = sorted(second for person in people for second in getattr(person, name))
        percentile = lambda share, times=times: round(1000 * times[min(len(times) - 1, int(share * len(times)))], 1)
        found[name] = {"count": len(times), "median_ms": round(1000 * statistics.median(times), 1)}
        found[name] |= {"p95_ms": percentile(0.95), "p99_ms": percentile(0.99), "longest_ms": percentile(1)}
    kept = Store(votes)
    found["votes_in_database"] = kept._read("SELECT count(*) FROM vote")[0][0]
    kept.close()
    found["database_mib"] = round(votes.stat().st_size / 2**20, 1)
    return found


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(process: int) -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--items", type=int, default=6, help="votes of each annotator")
    parser.add_argument("--pace", type=float, default=36.0, help="seconds that an annotator thinks about an item")
    parser.add_argument("--case", choices=CASES, nargs="+", default=CASES)
    parser.add_argument("--json", type=Path, help="file for the figures; those of other cases in it stay")
    args = parser.parse_args()
    data = args.workdir / "data"
    make_data(data, args.requests)
    found: dict[str, Any] = {"cores": os.cpu_count(), "requests": args.requests, "annotators": args.annotators}
    found |= {"pace_seconds": args.pace, "candidates": CANDIDATES, "side": SIDE}
    for name in args.case:
        votes = args.workdir / FILE
        for path in args.workdir.glob(f"{FILE}*"):
            path.unlink()
        options: list[str] = []
        if name == CASES[1]:
            add_past(votes, args.requests)
            options = ["--overlap=1", f"--overlap_votes={PAST + 1}"]  # every request wants one more
        found[name] = measure(data, votes, options, args)
        print(name, json.dumps(found[name], indent=1), flush=True)
    if args.json:
        before = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(before | found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
