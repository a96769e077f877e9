"""Before JAX starts: eight simulated devices, a compiler that spends less on code that runs once, and one cache of
compiled programs for all processes of a session: runs that are killed and started again compile once."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

from tests.support.compiler import xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}".strip()
# A device's collectives may start in another order than its neighbour's, each keeping a thread until its partners come
# (jaxlib 0.10.2): with no more threads than devices all wait for ever, and XLA ends the process after 40 seconds.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's workers find their controller's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="onereward-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Torch beside JAX on the same cores: one thread keeps them from waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Folders and files that are marked `slow`, which `launch/test.sh --fast` leaves out. A worker takes whole files
# (--dist=loadfile), and these take longest: they come first, or one worker would end alone.
SLOW = (
    "tests/hostile/test_kills.py",
    "tests/test_wheel.py",
    "tests/runs/",
    "tests/hostile/",
    "tests/rl/",
    "tests/kill_and_resume/",
    "tests/multiprocess/",
    "tests/judge/",
    "tests/fill/",
    "tests/parity/",
    "tests/planning/",
    "tests/models/",
    "tests/data/test_source.py",
    "tests/flow/test_lora.py",
    "tests/flow/test_losses.py",
    "tests/parallel/",
    "tests/proving_ground/test_scorer.py",
    "tests/candidates/",
    "tests/cli/test_fill.py",
    "tests/cli/test_evaluate_judge.py",
    "tests/weights/test_load_export.py",
)


def pytest_collection_modifyitems(items: list) -> None:
    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(SLOW) if item.nodeid.startswith(name)), len(SLOW))

    for item in items:
        if place(item) < len(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection of garbage has to go through them."""
    gc.collect()
    gc.freeze()
