"""Measures the annotator's page: a person's hour by keys, how soon the next item is seen, and when a vote is saved.

    python benchmarks/annotation_page.py --workdir runs/annotation [--items 100] [--pace 0.5] [--json FILE]

A script presses keys in headless Chromium, `--pace` seconds before each: it answers items of four candidates of 1024²
pixels, and slips on purpose, undoes and corrects as the tests do. At the end the database must hold exactly the votes
that were meant. Times are those of the browser's clock: from the key that asks for the next item to the frame after the
paint that shows it, images included, and to the words that say the vote is saved.
"""

import argparse
import dataclasses
import io
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Record
from onereward_jax.proving_ground.photos import bundled
from tests.support.annotation_browser import Annotator, Server, open_browser, work
from tests.support.annotation_data import records

SIDE = 1024
WATCH = """() => {
  window.times = { next: [], saved: [] };
  let pressed = null;
  let sent = null;
  addEventListener("keydown", (event) => {
    if (event.key === "Enter") pressed = sent = event.timeStamp;
  }, true);
  addEventListener("DOMContentLoaded", () => {
    const item = document.getElementById("item");
    new MutationObserver(() => {
      if (pressed === null || item.hidden) return;
      const from = pressed;
      pressed = null;
      requestAnimationFrame(() => requestAnimationFrame(() => times.next.push(performance.now() - from)));
    }).observe(item, { attributes: true, attributeFilter: ["data-item", "hidden"] });
    const status = document.getElementById("status");
    new MutationObserver(() => {
      if (sent === null || !status.classList.contains("good")) return;
      times.saved.push(performance.now() - sent);
      sent = null;
    }).observe(status, { attributes: true });
  });
}"""


def photographs(count: int) -> list[Record]:
    """Records of photographs whose corner pixel says which record and candidate they are, as the tests' images do."""
    photos = [Image.open(photo.path).convert("RGB").resize((SIDE, SIDE)) for photo in bundled()[:5]]

    def drawn(small: bytes, turn: int) -> bytes:
        image = photos[turn % len(photos)].copy()
        image.putpixel((0, 0), Image.open(io.BytesIO(small)).getpixel((0, 0)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def enlarged(number: int, record: Record) -> Record:
        mask = Image.open(io.BytesIO(record.mask)).resize((SIDE, SIDE))
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        made = [dataclasses.replace(one, image=drawn(one.image, number + k)) for k, one in enumerate(record.candidates)]
        source = drawn(record.image, number)
        return dataclasses.replace(record, image=source, mask=buffer.getvalue(), candidates=tuple(made))

    return [enlarged(number, record) for number, record in enumerate(records(count))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--pace", type=float, default=0.5, help="seconds before a key")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    shutil.rmtree(args.workdir / "data", ignore_errors=True)
    write_folder(args.workdir / "data", photographs(args.items + 5))
    server = Server(args.workdir / "data")
    try:
        with open_browser() as browser:
            person = Annotator(browser, server, "Ann")
            person.context.add_init_script(f"({WATCH})()")
            person.sign_in()
            person.next_is_loaded()
            person.page.evaluate("() => (times.next = [])")  # signing in was none
            person.pace = args.pace
            work(person, args.items, random.Random(0))
            person.check()
            times = person.page.evaluate("() => times")
    finally:
        server.stop()
    found: dict = {"items": args.items, "pace": args.pace, "votes_as_meant": True}
    for name, values in times.items():
        middle, late = np.percentile(values, [50, 95])
        found[name] = {"median": round(middle, 1), "p95": round(late, 1), "most": round(max(values), 1)}
        print(f"{name}: median {middle:.0f} ms, 95 % under {late:.0f} ms, most {max(values):.0f} ms ({len(values)})")
    print(f"{args.items} items: the votes are those that were meant")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
