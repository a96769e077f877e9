"""Measures what `onereward select` takes after the embeddings: seconds of each stage, and memory.

    python benchmarks/select_million.py --workdir runs/select_million [--images 1000000] [--json FILE]

Vectors are drawn: points around 2,000 centres, of which one in twenty nearly repeats another, float16 in a file of
1.4 GiB as embeddings are kept. Memory is given twice: the peak of all pages, those of the file among them, which the
system takes back when it needs them; and the peak of the pages that are the process's own, seen ten times a second.
"""

import argparse
import json
import os
import resource
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np

from onereward_jax.candidates.clusters import Rows, duplicates, even_order, fit_centres, nearest_centres
from onereward_jax.cli.exit_codes import guarded

_CENTRES, _BLOCK, _REPEATED = 2000, 10_000, 20
_NOISE, _REPEAT_NOISE = 0.9, 0.1  # lengths, where a centre has length 1


def make_vectors(file: Path, count: int, dimension: int) -> np.ndarray:
    """Write unit vectors, of which every twentieth repeats the one before with a little noise."""
    draw = np.random.default_rng(0)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    normal = lambda rows: draw.standard_normal((rows, dimension), np.float32) / np.float32(np.sqrt(dimension))
    centres = unit(normal(_CENTRES))
    vectors = np.lib.format.open_memmap(file, "w+", np.float16, (count, dimension))
    for start in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - start)
        block = unit(centres[draw.integers(_CENTRES, size=rows)] + _NOISE * normal(rows))
        repeats = block[1::_REPEATED]
        block[1::_REPEATED] = unit(block[::_REPEATED][: len(repeats)] + _REPEAT_NOISE * normal(len(repeats)))
        vectors[start : start + rows] = block
    vectors.flush()
    return np.load(file, mmap_mode="r")


class OwnMemory(threading.Thread):
    """Watches the process's own pages.

    Attributes:
      peak: MiB.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, kilobytes / 1024)
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    vectors = make_vectors(args.workdir / "vectors.npy", args.images, args.dimension)
    found: dict = {name: getattr(args, name) for name in ("images", "dimension", "clusters", "count")}
    found["cpus"] = os.cpu_count()
    memory = OwnMemory()
    memory.start()

    def timed(name: str, function):
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        found[name] = {
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "seconds": round(time.perf_counter() - wall, 1),
        }
        print(name, found[name], f"own memory {memory.peak:.0f} MiB", flush=True)
        return result

    repeated = timed("near-duplicates", lambda: duplicates(vectors, 0.95, 0))
    planted = np.arange(args.images) % _BLOCK % _REPEATED == 1
    found["share_of_planted_found"] = round(float(repeated[planted].mean()), 4)
    found["others_taken_for_one"] = int((repeated & ~planted).sum())
    left = Rows(vectors, np.flatnonzero(~repeated))
    centres = timed("centres", lambda: fit_centres(left, args.clusters, 0))
    labels = timed("labels", lambda: nearest_centres(left, centres))
    names = [str(row) for row in range(len(left))]
    timed("draw", lambda: list(islice(even_order(labels, names, 0), args.count)))
    found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    found["own_peak_mib"] = round(memory.peak)
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
