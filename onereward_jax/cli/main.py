"""`onereward <command> --config configs/x.py[:variant] --config.a.b=value --workdir DIR`.

Finds the commands in cli/commands/. What the user can put right is one sentence on stderr and exit code 2;
what is a defect of the program keeps its traceback and exit code 1. Which is which is decided by who raised it, see
`is_users_error`; what stopped a run from outside is one sentence and a code of its own, see `errors.Stopped`.
ONEREWARD_TRACEBACK=1 shows the traceback of the first two.
"""

import argparse
import ast
import dis
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from onereward_jax.config.load import did_you_mean, load_config
from onereward_jax.config.validation import validate
from onereward_jax.errors import DISK_FULL, Fault, Hang, Stopped, UserError
from onereward_jax.parallel import cluster, heartbeat, hosts

PACKAGE = Path(__file__).resolve().parents[1]
_CONFIG_PREFIX = "--config."
# Of the operating system, what is wrong with a path that the user gave: checking the path puts it right.
_WRONG_PATHS: dict[type[OSError], str] = {
    FileNotFoundError: "does not exist: check the path",
    PermissionError: "can't be opened (permission denied): change its permissions, or give another path",
    NotADirectoryError: "is no path, since a part of it is a file and not a directory: check the path",
    FileExistsError: "exists already: give another path",
    IsADirectoryError: "is a directory and not a file: check the path",
}


class _Parser(argparse.ArgumentParser):
    """argparse, with one sentence for an error instead of the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # transformers would advise to install torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.formatwarning = _format_warning
    return heartbeat.run_together(lambda: guarded(lambda: _run(argv)))


def _format_warning(message: Warning | str, category: type[Warning], *place: object, **rest: object) -> str:
    """What the user is told is one sentence; a library's warning keeps its kind."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"onereward: {kind}{message}\n"


def guarded(run: Callable[[], int | None]) -> int:
    """Runs a program and returns its exit code: what its user can put right is one sentence and 2."""
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
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            where = f" at {error.filename}" if error.filename else ""
            return _say(f"{error.strerror}{where}: make room, then give the same command again", Fault.CODE)
        if not is_users_error(error) or os.environ.get("ONEREWARD_TRACEBACK") == "1":
            raise
        return _say(sentence(error), 2)


def _say(text: str, code: int) -> int:
    """Says why the program ends with a code, unless another process of the same run has; returns the code."""
    if heartbeat.announce_end(code):
        print(f"onereward: {text}", file=sys.stderr)
    return code


def commands() -> dict[str, str]:
    """{command: the first line of its module's docstring}, read without importing anything."""
    found = {}
    for path in sorted((PACKAGE / "cli" / "commands").glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = docstring.partition("\n")[0]
    return found


def is_users_error(error: BaseException) -> bool:
    """Whether the user is told in one sentence: a `UserError`, a wrong path, a tokenizer that transformers can't open,
    or a ValueError of our own `raise`.

    A ValueError that a library raised below us (a shape in JAX, a number in NumPy) is a defect of the program.
    """
    if isinstance(error, (UserError, *_WRONG_PATHS)) or _tokenizer_of(error) is not None:
        return True
    if isinstance(error, OSError):  # a lost connection: nothing that the command line says
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    # JAX cuts its own frames off the traceback, so that our frame can be the last though JAX raised: look at what
    # the frame was doing.
    raising = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raising and PACKAGE in Path(code.co_filename).resolve().parents


def sentence(error: BaseException) -> str:
    """The error's text; of an operating system's error, the file and what is wrong with it."""
    if (tokenizer := _tokenizer_of(error)) is not None:
        return f"the tokenizer in {tokenizer} can't be read: put all files of its release there"
    if isinstance(error, OSError) and error.filename is not None:
        words = next((words for kind, words in _WRONG_PATHS.items() if isinstance(error, kind)), error.strerror)
        return f"{error.filename} {words}"
    return str(error)


def _tokenizer_of(error: BaseException) -> str | None:
    """What transformers was opening when it raised a plain OSError or ValueError: for files that are missing it has no
    kind of its own."""
    if type(error) not in (OSError, ValueError):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("transformers.") and frame.f_code.co_name == "from_pretrained":
            return str(frame.f_locals.get("pretrained_model_name_or_path"))
    return None


def _run(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"onereward {version('onereward-jax')}")
        return 0
    name, known = argv[0], commands()
    if name.startswith("-"):
        raise UserError(f"the command comes first, before {name}: one of {', '.join(known)}")
    if name.replace("_", "-") not in known:
        hint = did_you_mean(name, known) or f": choose one of {', '.join(known)}"
        raise UserError(f"there is no command {name}{hint}")
    name = name.replace("_", "-")
    module = importlib.import_module(f"onereward_jax.cli.commands.{name.replace('-', '_')}")

    parser = _Parser(
        prog=f"onereward {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    rest, overrides = split_overrides(argv[1:])
    if getattr(module, "IN_SEVERAL_PROCESSES", False) and not {"-h", "--help"} & {*rest}:
        cluster.initialise()  # first: what is wrong is then said once
    args = parser.parse_args(rest)
    if hosts.count() == 1 and (reason := cluster.several()):
        raise UserError(
            f"onereward {name} is one process, but this is one of several ({reason}): start it once, by itself"
        )
    if overrides and not hasattr(args, "config"):
        raise UserError(f"onereward {name} takes no configuration: leave {_CONFIG_PREFIX}{overrides[0][0]} out")
    if getattr(args, "config", None) is not None:
        args.config_file = args.config
        of_command = module.overrides(args) if hasattr(module, "overrides") else []
        args.config = load_config(args.config, [*overrides, *of_command])
        # Before the command: nothing is written or loaded for a configuration that can't be.
        validate(args.config, getattr(args, "config_needs", ()), source=args.config_file)
    return module.run(args)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Parts `--config.a.b=value` and `--config.a.b value` from the other arguments.

    Returns:
      (other arguments, [(dotted path, text)])

    Raises:
      UserError: an override has no value, or comes before `--config`.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    tokens = iter(argv)
    for token in tokens:
        if not token.startswith(_CONFIG_PREFIX):
            if overrides and (token == "--config" or token.startswith("--config=")):
                raise UserError(f"--config comes before its overrides: put it before {_CONFIG_PREFIX}{overrides[0][0]}")
            rest.append(token)
            continue
        field, equals, value = token.removeprefix(_CONFIG_PREFIX).partition("=")
        if not equals:
            value = next(tokens, "--")
            if value.startswith("--"):
                raise UserError(f"{token} has no value: write {token}=value")
        overrides.append((field, value))
    return rest, overrides


def _help() -> str:
    known = commands()
    width = max((len(name) for name in known), default=0)
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in known.items())
    return (
        "usage: onereward <command> [--config FILE[:VARIANT]] [--config.field=value ...] [--workdir DIR]\n\n"
        "OneReward in JAX: one vision-language judge improves a mask-guided image model over many tasks.\n\n"
        f"commands:\n{lines}\n\n`onereward <command> --help` says what a command takes."
    )


if __name__ == "__main__":
    sys.exit(main())
