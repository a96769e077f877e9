"""Hostile trials by seed: how many there are, what may come of one, and the account of what was tried.

    trials = Trials("mutated images", short=300, long=30_000)
    for trial in trials:
        with trial:  # may end well, or in one sentence
            read_image(mutated(trial.rng))
    trials.check()

A trial fails by any other error, by a sentence that is none, or by taking too long. `ONEREWARD_HOSTILE=long`, which
`launch/test.sh --hostile` sets, runs the long form and writes its account to docs/results/hostile/.
"""

import json
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from onereward_jax.cli.exit_codes import is_users_error, sentence

LONG = os.environ.get("ONEREWARD_HOSTILE") == "long"
ALONE = os.environ.get("ONEREWARD_TRIAL", "")  # the number of the only trial
ACCOUNTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "hostile"
_LONGEST = 1000  # characters of a sentence


class Trial:
    """One trial. Attributes: number, to run it again alone; rng, which depends on nothing but seed and number."""

    def __init__(self, trials: "Trials", number: int):
        self._trials, self.number = trials, number
        self.rng = np.random.default_rng([trials.seed, number])

    def __enter__(self) -> "Trial":
        signal.signal(signal.SIGALRM, self._too_long)
        signal.setitimer(signal.ITIMER_REAL, self._trials.limit)
        return self

    def _too_long(self, *_: object) -> None:
        raise TimeoutError(f"takes more than {self._trials.limit} seconds")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if error is None:
            self._trials.accepted += self._trials.each
        elif not isinstance(error, Exception):
            return False
        elif is_users_error(error) and is_one_sentence(sentence(error)):
            self._trials.refused += self._trials.each
        else:
            last = traceback.extract_tb(place)[-1]
            self.fail(f"{type(error).__name__}: {str(error)[:300]} ({last.filename}:{last.lineno})")
        return True

    def fail(self, why: str) -> None:
        """Note that a promise was broken, beyond what the exception says."""
        self._trials.failures.append(f"trial {self.number}: {why}")


class Trials:
    """Trials of one kind, with the outcomes counted.

    Args:
      kind: for the account: "mutated images".
      short, long: how many, in every run of the tests and in the long form.
      limit: seconds that one may take.
      each: what a trial tries, such as kills one after the other.

    ONEREWARD_TRIAL=123 runs trial 123 alone, and writes no account.
    """

    def __init__(self, kind: str, short: int, long: int, seed: int = 0, limit: float = 20.0, each: int = 1):
        self.kind, self.seed, self.limit, self.each = kind, seed, limit, each
        self.count = long if LONG else short
        self.accepted = self.refused = 0
        self.failures: list[str] = []
        self._start = time.perf_counter()

    def __iter__(self) -> Iterator[Trial]:
        return (Trial(self, number) for number in ([int(ALONE)] if ALONE else range(self.count)))

    def check(self) -> None:
        """Assert that no trial failed; in the long form, write the account first."""
        if LONG and not ALONE:
            ACCOUNTS.mkdir(parents=True, exist_ok=True)
            account = {
                "kind": self.kind,
                "tried": self.count * self.each,
                "accepted": self.accepted,
                "refused": self.refused,
                "failed": len(self.failures),
                "seed": self.seed,
                "seconds": round(time.perf_counter() - self._start),
            }
            name = re.sub(r"\W+", "_", self.kind)
            (ACCOUNTS / f"{name}.json").write_text(json.dumps(account, indent=2) + "\n")
        shown = "\n".join(self.failures[:20])
        assert not self.failures, f"{len(self.failures)} of {self.count} trials of {self.kind} failed:\n{shown}"


def is_one_sentence(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and len(text) <= _LONGEST and "Traceback" not in text
