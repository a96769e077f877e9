"""Draws docs/images/annotate_*.png: the pages of `onereward annotate` on held-out scenes of the proving ground.

    python docs/images/annotate.py [--out docs/images] [--size 1280x720]

Candidates are right answers with synthetic defects. Needs Chromium and `pip install 'onereward-jax[annotate,test]'`.
The organiser's page shows three simulated annotators.
"""

import argparse
import contextlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from onereward_jax.annotation.assign import Ballot, Desk, Rules
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.store import Store
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Candidate, Record
from onereward_jax.proving_ground import ProvingGround, defects

PIXELS = 512
OVERLAP = 0.4  # of the organiser's three annotators
COLOURS = 224  # of the files: photographs would be five times as large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--size", default="1280x720", help="of the window")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data = Path(folder)
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--headless=new"])
        for name, draw in {
            "best_worst": best_worst, "good_same_bad": good_same_bad, "rating": rating, "organiser": organiser,
        }.items():  # fmt: skip
            page = browser.new_page(viewport={"width": width, "height": height})
            draw(data / name, page)
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            short = {"good_same_bad": "gsb"}.get(name, name)
            image.quantize(COLOURS, dither=Image.Dither.NONE).save(args.out / f"annotate_{short}.png", optimize=True)
            page.close()
        browser.close()


def best_worst(data: Path, page: Page) -> None:
    write_folder(data, [record("image_fill", 6, ("", "seam", "wrong_colour", "smear"))])
    with served(data, "best_worst") as address:
        sign_in(page, address)
        store = Store(data / "votes.sqlite")
        order = next(one.shown for one in store.assignments("best_worst"))
        store.close()
        right, seam, colour, _ = (order.index(candidate) + 1 for candidate in range(4))
        for key in (
            f"{right}",
            f"Shift+{colour}",
            f"{right}",
            "d",
            f"{seam}",
            *("ArrowRight",) * 11,
            "Enter",
            "Escape",
        ):
            page.keyboard.press(key)


def good_same_bad(data: Path, page: Page) -> None:
    write_folder(data, [record("image_extend", 15, ("", "grain"), ("base", "policy"))])
    with served(data, "good_same_bad") as address:
        sign_in(page, address)
        page.keyboard.press("2")


def rating(data: Path, page: Page) -> None:
    write_folder(data, [record("text_rendering", 13, ("", "misspelt", "harsh", "exposure"))])
    with served(data, "rating") as address:
        sign_in(page, address)
        for key in "ynyyynyy5434":
            page.keyboard.press(key)


def organiser(data: Path, page: Page) -> None:
    write_folder(data, [record("image_fill", index, ("", "seam", "smear", "cast"), pixels=64) for index in range(300)])
    simulate(data, {"Ann": (14, 0.1), "חנה": (22, 0.15), "Ben": (31, 0.35)})
    with served(data, "best_worst", "--overlap", f"{OVERLAP}") as address:  # as many answers are wanted as were drawn
        page.goto(f"{address}/organiser")
        page.locator("#annotators tr").first.wait_for()


def record(task: str, index: int, kinds: tuple[str, ...], models: tuple[str, ...] = (), pixels: int = PIXELS) -> Record:
    """A held-out scene; "" is a right answer, another kind one with that defect."""
    scene = ProvingGround("test", pixels).scene(index, task)
    images = [
        defects.apply(scene, scene.target, kind, 0.8, np.random.default_rng(index)) if kind else scene.target
        for kind in kinds
    ]
    made = [Candidate(png(image), {"model": models[k]} if models else {}) for k, image in enumerate(images)]
    mask = png((np.asarray(scene.sample.mask) > 0) * np.uint8(255))
    source = png(np.asarray(scene.sample.image))
    return Record(f"{task}-{index}", task, scene.sample.prompt, tuple(made), image=source, mask=mask)


def png(image: np.ndarray) -> bytes:
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(image * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def simulate(data: Path, people: dict[str, tuple[float, float]], hours: float = 0.5) -> None:
    """Let annotators answer; {name: (seconds an item, share of answers that are chance)}. Candidates get worse in
    order.
    """
    store, rng = Store(data / "votes.sqlite"), random.Random(0)
    desk = Desk(store, Items(open_records(data), "best_worst"), Rules(overlap=OVERLAP, repeats=0.1, repeat_gap=5))
    start = time.time() - 3600 * hours
    clock = dict.fromkeys(people, start)
    while (name := min(clock, key=clock.__getitem__)) and clock[name] < time.time():
        seconds, chance = people[name]
        person = store.person(name) or store.add_person(name)
        drawn, _ = desk.draw(person, 1)
        if not drawn:
            break
        spent = seconds * rng.uniform(0.6, 1.6)
        clock[name] += spent
        store._clock = _At(clock[name])  # the time of these answers is made up
        order, answers = drawn[0].shown, []
        for question in ("text_alignment", "consistency", "structure", "aesthetics"):
            best, worst = rng.sample(range(4), 2) if rng.random() < chance else (order.index(0), order.index(3))
            answers.append({"question": question, "best": best, "worst": worst})
        desk.vote(person, Ballot(drawn[0].code, "1", answers, "", [], spent))
    desk.close()
    store.close()


class _At:
    def __init__(self, time: float):
        self._time = time

    def now(self) -> float:
        return self._time


@contextlib.contextmanager
def served(data: Path, job: str, *options: str) -> Iterator[str]:
    """Run the server, and give its address."""
    command = [sys.executable, "-m", "onereward_jax.cli.main", "annotate", "--data", str(data), "--job", job]
    process = subprocess.Popen([*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().split("open ")[1].split()[0]
    process.terminate()
    process.wait()


def sign_in(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#sign-in-value").wait_for()
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    page.locator(".pane").first.wait_for()


if __name__ == "__main__":
    main()
