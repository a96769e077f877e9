"""Measures what a start of `train-judge` reads of its preference data: a first start, and a second one.

    python benchmarks/judge_start.py --workdir runs/judge_start [--records 20000] [--side 64] [--json FILE]

Makes records of four candidates with source image and mask: six image files each, hard links to a few random ones of
--side pixels, which only the first start decodes. Each start is a process of its own, which opens the judge
(`miniature/judge`), reads the pairs and checks every question.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.data.manifest import FILE
from onereward_jax.tasks import TASKS, dimensions_of

DISTINCT = 16  # images


def make_records(directory: Path, count: int, side: int) -> None:
    generator, sources = np.random.default_rng(0), []
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "images").mkdir(parents=True)
    for number in range(DISTINCT):
        sources.append(directory / f"{number}.png")
        Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).save(sources[-1])

    def link(name: str, number: int) -> str:
        path = directory / "images" / name
        os.link(sources[number % DISTINCT], path)
        return f"images/{name}"

    with (directory / "preferences.jsonl").open("w") as file:
        for number in range(count):
            task, candidates = TASKS[number % len(TASKS)], range(4)
            fields = {
                "id": f"{number}",
                "task": task,
                "prompt": f"a small red circle number {number} beside a wooden table",
                "image": link(f"{number}-image.png", number),
                "mask": link(f"{number}-mask.png", number),
                "candidates": [{"image": link(f"{number}-{c}.png", number + c), "sampling": {}} for c in candidates],
            }
            votes = [{"dimension": d, "annotator": "a", "best": 0, "worst": 3} for d in dimensions_of(task)]
            file.write(json.dumps(fields | {"votes": votes}) + "\n")


def start(directory: Path) -> None:
    """What `train-judge` does with its data before it trains."""
    import functools

    from onereward_jax.judge.judge import Judge
    from onereward_jax.judge.pairs import check_record, read_pairs

    judge = Judge.from_pretrained("miniature/judge", "float32", read=False)
    began, used = time.perf_counter(), time.process_time()
    pairs = read_pairs(directory, check=functools.partial(check_record, judge, 1024))
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"pairs": len(pairs), "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--start", action="store_true", help="one start on what is there")
    args = parser.parse_args()
    data = args.workdir / "data"
    if args.start:
        start(data)
        return
    make_records(data, args.records, args.side)
    found: dict = {"records": args.records, "files": 6 * args.records, "side": args.side}
    for name in ("first", "second"):
        command = [sys.executable, __file__, "--workdir", str(args.workdir), "--start"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(said.splitlines()[-1])
        print(name, found[name], flush=True)
    found["manifest_mib"] = round((data / FILE).stat().st_size / 2**20, 1)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
