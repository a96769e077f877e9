"""A small run that does nothing but save, in a process of its own, and says on stdout what is finished.

python -m tests.support.saving_program WORKDIR SAVES [PARTS]
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from onereward_jax.atomic_files import atomic_directory, lock, write_json
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Candidate, Record
from onereward_jax.rl.reference_cache import ReferenceCache
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.metrics import MetricsWriter
from onereward_jax.training.saving import Saving
from tests.support.preference_examples import picture

KEEP, EVERY = 2, 2


def state(step: int) -> dict:
    return {"params": {"w": jnp.arange(3000.0) * step, "b": jnp.full(7, step)}, "step": jnp.int32(step)}


def record(part: int) -> Record:
    return Record(str(part), "image_fill", "a circle", tuple(Candidate(picture(10 * part + seed)) for seed in range(4)))


def image(condition: int) -> jax.Array:
    return jnp.full((4, 4, 3), condition / 8)


def cache(workdir: Path) -> ReferenceCache:
    return ReferenceCache(workdir / "cache", {"of": "a test"})


def say(what: str) -> None:
    os.write(1, f"{what}\n".encode())


def save(workdir: Path, saves: int) -> None:
    lock(workdir)
    write_json(workdir / "config.json", {"saves": saves})
    with MetricsWriter(workdir, tensorboard=False) as writer:
        saving = Saving(Checkpointer(workdir / "checkpoints", KEEP), writer, 0)
        for step in range(1, EVERY * saves + 1):
            writer.write(step, {"learning/loss": 1 / step})
            if step % EVERY == 0:
                saving.save(step, state(step), {"next": step}, last=True)
                saving.finish()
                say(f"saved {step}")


def make_parts(workdir: Path, parts: int) -> None:
    """As `make-preferences`, the reference cache and exports do."""
    for part in range(1, parts + 1):
        write_folder(workdir / "data", [record(part)], file=f"preferences-planted-{part:05d}.jsonl")
        say(f"part {part}")
        cache(workdir).write(part, image(part))
        say(f"reference {part}")
        with atomic_directory(workdir / "export") as partial:
            (partial / "weights").write_bytes(bytes([part]) * 5000)
            (partial / "sub").mkdir()
            (partial / "sub" / "config").write_text(str(part))
        say(f"export {part}")


if __name__ == "__main__":
    save(Path(sys.argv[1]), int(sys.argv[2]))
    make_parts(Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
