"""Measures how fast samples are made of a source of requests, in samples a CPU second.

    python benchmarks/loader.py --workdir runs/loader [--requests 10000] [--samples 64] [--json FILE]

Requests of photographs of 1344 x 896 pixels, upright and lying, in JPEG, half with a mask of their own: hard links to a
few files under many names, so that nothing is kept from one to the next but the page cache of the disk. Samples are cut
to the buckets of `flux_fill:dynamic_1024` in one thread: what a CPU core does, whatever the number of threads.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.config.load import load_config
from onereward_jax.data.requests.source import Requests, read_split
from onereward_jax.proving_ground.photos import bundled

SIZES = ((1344, 896), (896, 1344))


def make_requests(directory: Path, count: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "images").mkdir(parents=True)
    originals = []
    for number, photo in enumerate(bundled()[:6]):
        originals.append(directory / f"{number}.jpg")
        image = Image.open(photo.path).convert("RGB").resize(SIZES[number % 2], Image.Resampling.LANCZOS)
        image.save(originals[-1], quality=90)
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).ellipse((300, 300, 800, 700), fill=255)
        mask.save(directory / f"{number}-mask.png")
    with (directory / "requests.jsonl").open("w") as file:
        for number in range(count):
            original = originals[number % len(originals)]
            fields = {"id": str(number), "task": "image_fill", "prompt": f"a red boat, number {number}"}
            links = {"image": original}
            if number % 12 > 5:
                links["mask"] = original.with_name(f"{original.stem}-mask.png")
            for name, path in links.items():
                link = directory / "images" / f"{number}-{name}{path.suffix}"
                os.link(path, link)
                fields[name] = f"images/{link.name}"
            file.write(json.dumps(fields) + "\n")


def timed(function) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    data = args.workdir / "data"
    make_requests(data, args.requests)
    config = load_config("flux_fill:dynamic_1024", {"data.source": str(data), "data.held_out_share": 0.01})
    found: dict = {"requests": args.requests, "samples": args.samples}
    splits = []
    for name in ("first start", "second start"):
        cpu, wall = timed(lambda: splits.append(read_split(config, args.workdir)))
        found[name] = {"cpu_seconds": round(cpu, 1), "seconds": round(wall, 1)}
        print(name, found[name], flush=True)
    source = Requests(config, splits[-1].trained_on)
    cpu, wall = timed(lambda: [source.sample(index, source.tasks[0]) for index in range(args.samples)])
    found |= {"sizes": source.sizes, "samples_per_cpu_second": round(args.samples / cpu, 2)}
    found["samples_per_second"] = round(args.samples / wall, 2)
    print(f"{found['samples_per_cpu_second']} samples a CPU second at {source.sizes}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
