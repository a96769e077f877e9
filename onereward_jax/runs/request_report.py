"""What a run was given to train on: told when it begins, kept in its directory, and the same when it resumes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onereward_jax import buckets
from onereward_jax.atomic_files import make_directory, write_json
from onereward_jax.data.requests.read import fingerprint_of
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import Requests
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json

REQUESTS_FILE, TARGETS_FILE = "requests.json", "targets.json"


def report_requests(workdir: Path, source: Requests, held_out: list[Request], noun: str = "requests") -> None:
    """Write workdir/requests.json, and say what is in it.

    Raises:
      UserError: the run in `workdir` began with other requests.
    """
    report: dict[str, Any] = {
        "requests": len(source.requests),
        "held_out": [request.id for request in held_out],
        "tasks": {task: sum(task in request.tasks for request in source.requests) for task in source.tasks},
        "masks": sum(request.has_mask for request in source.requests),
        "targets": sum(request.target is not None for request in source.requests),
        "sizes": [f"{width}x{height}" for height, width in source.drawn_sizes],
        "digest": fingerprint_of((*source.requests, *held_out)),
    }
    _remember(workdir, REQUESTS_FILE, report, noun)
    tasks = ", ".join(f"{count} for {task}" for task, count in report["tasks"].items())
    print(
        f"{report['requests']} {noun} ({tasks}; {report['masks']} with masks of their own), {len(held_out)} held out,"
        f" at {', '.join(report['sizes'])} pixels",
        file=sys.stderr,
    )


def report_targets(workdir: Path, targets: Sequence[Request]) -> None:
    """Write workdir/targets.json: what flow matching learns in the place of the requests' targets.

    Raises:
      UserError: the run in `workdir` began with others.
    """
    _remember(workdir, TARGETS_FILE, {"targets": len(targets), "digest": fingerprint_of(targets)}, "targets")


def _remember(workdir: Path, name: str, report: dict[str, Any], noun: str) -> None:
    file = workdir / name
    if has_begun(workdir) and file.exists() and read_json(file)["digest"] != report["digest"]:
        raise UserError(
            f"the run in {workdir} began with other {noun}, masks or prompts: put them back, or choose another"
            " --workdir"
        )
    make_directory(workdir)
    write_json(file, report)


def has_begun(workdir: Path) -> bool:
    """Whether a checkpoint was finished there, or in the bucket that it is a local copy of."""
    return any(buckets.path(buckets.native(workdir.resolve() / "checkpoints")).glob("step_*.json"))
