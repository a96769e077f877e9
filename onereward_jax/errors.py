"""Errors that end a command with one sentence instead of a traceback. Imports nothing of the project."""

import contextlib
import errno
import signal
from collections.abc import Iterator

# What the system says of a disk, or of a user's share of it, that has no room.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """Something the user can put right; its text is one sentence: what is wrong and what to do."""


@contextlib.contextmanager
def in_memory(what: str, advice: str) -> Iterator[None]:
    """Says in one sentence that the devices have no memory for what is done within.

    Raises:
      UserError: they have none.
    """
    try:
        yield
    except RuntimeError as error:  # JAX's own kind is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{what} takes more memory than there is: {advice}") from None


class Stopped(SystemExit):
    """A run that ended before its end by no fault of its input; the same command goes on with it.

    As a `SystemExit` it ends a plain Python script with its code and without a traceback.
    """

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(Stopped):
    """A run stopped by SIGTERM or SIGINT after saving its state; `code` is 128 + the signal's number."""

    def __init__(self, signal_number: int, step: int, workdir: str):
        name = signal.Signals(signal_number).name
        super().__init__(
            128 + signal_number,
            f"stopped by {name} at step {step}, saved in {workdir}: the same command goes on from there",
        )


class Fault(Stopped):
    """A run stopped by what it runs on: a full disk, a worker that hangs; `code` is 75, EX_TEMPFAIL of sysexits.h."""

    CODE = 75

    def __init__(self, message: str):
        super().__init__(self.CODE, message)


class Hang(Fault):
    """A `Fault` with a thread left that may never end, so that the interpreter could not either."""
