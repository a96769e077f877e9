"""The annotation server as its users start it, and people who work on its page by real input events of a browser."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.questions import BEST_WORST, Question, questions_of
from onereward_jax.annotation.store import Store
from tests.support import annotation_data

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT = 20_000  # milliseconds: machines under load

# The colour in the upper left corner of every image that is shown, in the order of the page.
COLOURS = """() => [...document.querySelectorAll(".view > img:not(.flipped)")].map((image) => {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, 1, 1).data];
})"""


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--headless=new", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        yield browser
        browser.close()


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds that no locator can wait for."""
    last = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < last, "it did not come to hold"
        page.wait_for_timeout(20)


class Server:
    """`onereward annotate` in a process of its own, at one port also after a restart."""

    def __init__(self, data: Path, job: str = BEST_WORST, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.data, self.url = data, f"http://127.0.0.1:{self.port}"
        checks = ("--overlap", "0", "--repeats", "0", "--gold_share", "0")  # so that every item is a new one
        self.command = [
            sys.executable, "-m", "onereward_jax.cli.main", "annotate", "--data", str(data), "--job", job,
            "--port", str(self.port), *(options or checks),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert re.search(r"open http", line), line

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self._gone()

    def stop(self) -> None:
        self.process.terminate()
        self._gone()

    def _gone(self) -> None:
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def answers(self, annotator: str | None = None) -> list[Answer]:
        """What the database holds now."""
        store = Store(self.data / "votes.sqlite")
        try:
            return [answer for answer in store.answers() if annotator in (None, answer.annotator)]
        finally:
            store.close()


def meaning(answer: Answer) -> tuple:
    """What an answer says, of what: comparable with `Annotator.meant`."""
    said = (answer.best, answer.worst, answer.verdict, answer.mark)
    return answer.annotator, answer.record, answer.question, answer.candidate, *said


class Annotator:
    """Somebody at the page, who sees the images and notes what he means by his answers.

    `place` is where a candidate is shown, from 0. The record and its candidates are known by their colours.
    """

    def __init__(self, browser: Any, server: Server, name: str, **context: Any):
        self.server, self.name = server, name
        options = {"viewport": {"width": 1280, "height": 720}} | context
        self.context = browser.new_context(**options)
        self.errors: list[str] = []
        self.meant: list[tuple] = []
        self.pace = 0.0  # seconds before a key
        self.open_page()

    def open_page(self) -> Any:
        """Open another tab, and go on in it."""
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        return self.page

    def sign_in(self) -> "Annotator":
        self.page.goto(self.server.url)
        self.page.locator("#sign-in-value").wait_for()
        self.page.keyboard.type(self.name)
        self.page.keyboard.press("Enter")
        self.look()
        return self

    def look(self) -> None:
        """Wait for an item, and see which it is."""
        self.page.locator("#item[data-item]").wait_for()
        self.item = self.page.locator("#item").get_attribute("data-item")
        seen = [annotation_data.who(colour) for colour in self.page.evaluate(COLOURS)]
        self.record = seen[0][0]
        assert {record for record, _ in seen} == {self.record}
        self.order = [candidate for _, candidate in seen if candidate is not None]

    def press(self, *keys: str) -> None:
        for key in keys:
            if self.pace:
                self.page.wait_for_timeout(1000 * self.pace)
            self.page.keyboard.press(key)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def next(self, key: bool = True) -> None:
        """Go on to the next item; this one is saved then."""
        self.press("Enter") if key else self.page.locator("#next").click()
        self.saved()

    def saved(self) -> None:
        self.page.locator("#status.good").wait_for()

    def other_item(self) -> None:
        """Wait until another item than the one last looked at is there, and look at it."""
        self.page.locator(f'#item[data-item]:not([data-item="{self.item}"])').wait_for()
        self.look()

    def next_is_loaded(self) -> None:
        self.page.locator('#item[data-ahead="ready"]').wait_for()

    # ------------------------------------------------------------------------------------------------- what is meant

    def questions(self, job: str) -> Sequence[Question]:
        record = annotation_data.request(self.record)
        return questions_of(job, record["task"], record["prompt"])

    def mean_best_worst(self, question: Question, best: int | None, worst: int | None) -> None:
        said = [None if place is None else self.order[place] for place in (best, worst)]
        self._mean(question, None, *said, None, None)

    def mean_verdict(self, question: Question, verdict: str) -> None:
        first = {"left": 0, "right": 1}.get(verdict)
        said = "same" if first is None else "good" if self.order[first] == 0 else "bad"
        self._mean(question, None, None, None, said, None)

    def mean_mark(self, question: Question, place: int, mark: int) -> None:
        self._mean(question, self.order[place], None, None, None, mark)

    def _mean(self, question: Question, *said: Any) -> None:
        self.meant.append((self.name, f"record-{self.record}", question.name, *said))

    def check(self) -> None:
        """The database holds what was meant, all of it, and each once; the page met no error."""
        kept, meant = Counter(map(meaning, self.server.answers(self.name))), Counter(self.meant)
        assert (sorted(kept - meant, key=str), sorted(meant - kept, key=str)) == ([], [])
        assert self.errors == []

    def close(self) -> None:
        self.context.close()


def answer_best_worst(person: Annotator, rng: random.Random) -> None:
    """Answer all questions of the item by keys."""
    for question in person.questions(BEST_WORST):
        best, worst = rng.sample(range(4), 2)
        if rng.random() < 0.25:
            person.press("0")
            person.mean_best_worst(question, None, None)
        else:
            person.press(f"{best + 1}", f"Shift+{worst + 1}")
            person.mean_best_worst(question, best, worst)


def work(person: Annotator, items: int, rng: random.Random) -> None:
    """Answer `items` items by keys alone, with slips that are undone, and answers that are taken back when sent."""
    for number in range(items):
        if number % 5 == 1:  # a slip, undone at once
            person.press("3", "z")
        if number % 5 == 2:  # the second question half answered, before the first turns out to be wrong
            person.press("Shift+2", "1", "4", "z", "z", "z")
        if number % 6 == 3:
            _answer_wrongly_first(person, rng)
        else:
            answer_best_worst(person, rng)
        person.next()
        person.other_item()


def _answer_wrongly_first(person: Annotator, rng: random.Random) -> None:
    """Send a wrong answer, take it back, and correct it."""
    wrong, meant = person.item, len(person.meant)
    answer_best_worst(person, rng)
    del person.meant[meant:]
    person.next()
    person.other_item()
    person.press("z")
    person.other_item()
    assert person.item == wrong
    for question in person.questions(BEST_WORST):  # answered questions are not left by themselves
        best, worst = rng.sample(range(4), 2)
        person.press(f"{best + 1}", f"Shift+{worst + 1}", "PageDown")
        person.mean_best_worst(question, best, worst)
