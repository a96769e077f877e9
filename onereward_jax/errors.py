"""Errors that end a command with one sentence instead of a traceback. Imports nothing from the project."""

import contextlib
import errno
import signal
from collections.abc import Iterator

# The disk, or the user's quota on it, is full.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def printable(text: str, longest: int = 900) -> str:
    """Make any text fit for a message: control characters, half characters and line breaks escaped, the middle cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= longest else f"{text[: longest // 2]} … {text[3 - longest // 2 :]}"


class UserError(ValueError):
    """A problem that the user can fix; the message is one sentence: what is wrong and what to do.

    It may hold names and values from a user's files: see `printable`.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def shown(value: object, longest: int = 100) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # an integer of 5,000 digits, or an object of a class that a user wrote
        text = f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shown_name(name: str, longest: int = 200) -> str:
    """A name or a path as a message shows it: as it is, unless it is long or has what does not print."""
    return name if name.strip() and name.isprintable() and len(name) <= longest else shown(name, longest)


def one_line(text: str, longest: int = 300) -> str:
    """The words of another program on one line, cut where they are many."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@contextlib.contextmanager
def in_memory(what: str, advice: str) -> Iterator[None]:
    """Turn running out of device memory inside the block into one sentence.

    Raises:
      UserError: a device ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:  # JAX's error is a subclass
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{what} takes more memory than there is: {advice}") from None


class Stopped(SystemExit):
    """A run ended early through no fault of its input; the same command resumes it.

    Being a `SystemExit`, it ends a plain Python script with its code and without a traceback.
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
            f"stopped by {name} at step {step}, saved in {workdir}: run the same command to resume",
        )


class Alarmed(Stopped):
    """A training that an alarm ended, as `train.stop_on_alarm` asks; its last good state is its result."""

    CODE = 3

    def __init__(self, message: str):
        super().__init__(self.CODE, message)


class Fault(Stopped):
    """A run stopped by its environment (a full disk, a hung worker); `code` is 75, EX_TEMPFAIL in sysexits.h."""

    CODE = 75

    def __init__(self, message: str):
        super().__init__(self.CODE, message)


class Hang(Fault):
    """A `Fault` that leaves a thread which may never end and would keep the interpreter from exiting."""
