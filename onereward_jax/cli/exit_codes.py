"""How a command ends: its exit code, and the one sentence on stderr that says why.

    0    done
    1    a defect of the program, with its traceback; or some of many requests failed, each named
    2    something the user can put right: a `UserError`, or a wrong path
    3    `plan`: it does not fit; `check`: something is no-go; `train`: an alarm has ended it (`errors.Alarmed`)
    75   a fault of what the run stands on, such as a full disk; the same command resumes (`errors.Fault`)
    130  stopped by SIGINT, 143 by SIGTERM; the same command resumes (`errors.Interrupted`)

ONEREWARD_TRACEBACK=1 shows the traceback instead of the sentence of 2.
"""

import os
import signal
import sys
from collections.abc import Callable

from onereward_jax.errors import DISK_FULL, Fault, Hang, Stopped, UserError, shown_name
from onereward_jax.given_files import BAD_PATHS
from onereward_jax.parallel import heartbeat, hosts

# What the operating system says of a path that the user gave: checking the path puts it right.
_WRONG_PATHS: dict[type[OSError], str] = {
    FileNotFoundError: "does not exist: check the path",
    PermissionError: "can't be opened (permission denied): change its permissions, or give another path",
    NotADirectoryError: "is no path, since a part of it is a file and not a directory: check the path",
    FileExistsError: "exists already: give another path",
    IsADirectoryError: "is a directory and not a file: check the path",
}
# The beginnings of what Python itself says of a path that it doesn't hand to the operating system.
_NO_PATHS = {
    "embedded null": "a path holds a NUL character: check it",
    "Symlink loop": "a symbolic link leads back to itself: give the file itself",
}


def guarded(run: Callable[[], int | None]) -> int:
    """Runs a program and returns its exit code; prints the sentence that goes with it.

    Raises:
      Exception: a defect of the program, such as a ValueError that NumPy or JAX raised.
    """
    try:
        return run() or 0
    except Stopped as stop:
        code = int(stop.code or 0)
        _say(stop.message, code)
        if isinstance(stop, Hang) and hosts.count() == 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(Fault.CODE)  # the interpreter would wait for the thread that hangs
        return code
    except KeyboardInterrupt:
        return _say("stopped by SIGINT: the same command starts again from what was saved", 128 + signal.SIGINT)
    except BrokenPipeError:  # `onereward ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            where = f" at {error.filename}" if error.filename else ""
            return _say(f"{error.strerror}{where}: make room, then give the same command again", Fault.CODE)
        if not is_users_error(error) or os.environ.get("ONEREWARD_TRACEBACK") == "1":
            raise
        return _say(sentence(error), 2)


def is_users_error(error: BaseException) -> bool:
    """Whether the user can put it right. A lost connection, say, is an OSError that is neither."""
    if isinstance(error, OSError):
        return isinstance(error, tuple(_WRONG_PATHS)) or error.errno in BAD_PATHS
    return isinstance(error, UserError) or _no_path(error) is not None


def _no_path(error: BaseException) -> str | None:
    """What is wrong with a path of which Python itself says so."""
    found = (words for beginning, words in _NO_PATHS.items() if str(error).startswith(beginning))
    return next(found, None) if isinstance(error, (ValueError, RuntimeError)) else None


def sentence(error: BaseException) -> str:
    """The error's text; of an operating system's error, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        of_kind = next((words for kind, words in _WRONG_PATHS.items() if isinstance(error, kind)), error.strerror)
        return f"{shown_name(os.fsdecode(error.filename))} {BAD_PATHS.get(error.errno or 0, of_kind)}"
    return _no_path(error) or str(error)


def _say(text: str, code: int) -> int:
    """Says why the program ends with a code, unless another process of the same run has; returns the code."""
    if heartbeat.announce_end(code):
        print(f"onereward: {text}", file=sys.stderr)
    return code
