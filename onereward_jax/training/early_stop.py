"""How a run ends before its last update: at the state of an earlier step, which it exports.

Nothing is removed: the newest checkpoint stays, and the run resumes from it once what ended it is switched off. Whether
a run ends is decided anew at every start; the file stopped.json says where it has, for what reads its checkpoints.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from onereward_jax.atomic_files import remove, write_json
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.parallel import hosts

FILE = "stopped.json"


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why a run ends, and with what.

    Attributes:
      step: whose state is the run's result; 0 is the state before the first update.
      at: the step after which it ends.
      reason: half a sentence.
      is_alarm: whether something is wrong, or it is just done.
    """

    step: int
    at: int
    reason: str
    is_alarm: bool

    def __str__(self) -> str:
        result = f"step {self.step}" if self.step else "the base model, since no evaluation was without an alarm"
        return f"stopped at step {self.at}: {self.reason}; the result is that of {result}"


class Watch(Protocol):
    """Follows the evaluations of a run, alike in every process.

    Attributes:
      kept: steps whose checkpoints are kept however old they are; one is made for each.
      stop: set when the run is to end.
    """

    kept: frozenset[int]
    stop: Stop | None

    def begin(self, step: int) -> Stop | None:
        """Take up what was measured up to the step from which a run resumes."""

    def add(self, step: int, found: Mapping[str, float]) -> Mapping[str, float]:
        """Join an evaluation; returns metrics for its line."""


def record(workdir: Path, stop: Stop | None) -> None:
    """Write where a run ended; None: it is going on."""

    def write() -> None:
        if stop is not None:
            write_json(workdir / FILE, dataclasses.asdict(stop))
        elif (workdir / FILE).exists():
            remove(workdir / FILE)

    hosts.on_primary(write)


def recorded(workdir: Path) -> Stop | None:
    """Where a run ended before its last update; None if it did not.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / FILE
    if not file.exists():
        return None
    found = read_json(file)
    try:
        stop = Stop(**found)
        if isinstance(stop.step, int) and isinstance(stop.at, int) and 0 <= stop.step <= stop.at:
            return stop
    except TypeError:
        pass
    raise UserError(f"{file} does not say where the run ended: give the command of the training again")
