"""`onereward <command> --config configs/x.py[:variant] --config.a.b=value --workdir DIR`.

Finds the commands in cli/commands/, reads the command line and the configuration, and runs one command. `exit_codes`
says how it ends.
"""

import argparse
import ast
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.config.load import load_with_sources
from onereward_jax.config.option import did_you_mean, text_fault
from onereward_jax.errors import Fault, Stopped, UserError, one_line, shown, shown_name
from onereward_jax.parallel import cluster, heartbeat, hosts

PACKAGE = Path(__file__).resolve().parents[1]
_CONFIG_PREFIX = "--config."
# Old names of commands, accepted with a warning until the release after 0.1.
RENAMED = {"ascend": "reward-ascent", "gates": "sanity-checks"}


class _Parser(argparse.ArgumentParser):
    """argparse, with one sentence for an error instead of the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)}: see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # transformers would advise installing torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.formatwarning = _format_warning
    return heartbeat.run_together(lambda: guarded(lambda: _run(argv)))


def _format_warning(message: Warning | str, category: type[Warning], *place: object, **rest: object) -> str:
    """Show our warnings as one sentence; a library's warning keeps its category."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"onereward: {kind}{message}\n"


def commands() -> dict[str, str]:
    """{command: the first line of its module's docstring}, read without importing anything."""
    found = {}
    for path in sorted((PACKAGE / "cli" / "commands").glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = docstring.partition("\n")[0]
    return found


def _run(argv: list[str]) -> int | None:
    for argument in argv:
        if fault := text_fault(argument):
            raise UserError(f"the argument {shown(argument)} {fault}: give another")
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"onereward {version('onereward-jax')}")
        return 0
    name, known = argv[0], commands()
    if name.startswith("-"):
        raise UserError(f"the command comes first, before {shown_name(name)}: one of {', '.join(known)}")
    if name in RENAMED:
        warnings.warn(f"`onereward {name}` is now `onereward {RENAMED[name]}`: use the new name", stacklevel=1)
        name = RENAMED[name]
    if name.replace("_", "-") not in known:
        hint = did_you_mean(name, known) or f": choose one of {', '.join(known)}"
        raise UserError(f"there is no command {shown_name(name)}{hint}")
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
        override = shown_name(_CONFIG_PREFIX + overrides[0][0])
        raise UserError(f"onereward {name} takes no configuration: leave {override} out")
    if getattr(args, "config", None) is not None:
        args.config_file = args.config
        of_command = module.overrides(args) if hasattr(module, "overrides") else []
        # Before the command: nothing is written or loaded for a configuration that can't be.
        given = [*overrides, *of_command]
        args.config, args.config_sources = load_with_sources(args.config_file, given, args.config_recipes)
    from onereward_jax import buckets

    try:
        code = module.run(args)
    except (Exception, Stopped):
        with contextlib.suppress(Fault):  # what ends the command is said
            buckets.push_all()
        raise
    buckets.push_all()
    return code


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separate `--config.a.b=value` and `--config.a.b value` from the other arguments.

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
                first = shown_name(_CONFIG_PREFIX + overrides[0][0])
                raise UserError(f"--config comes before its overrides: put it before {first}")
            rest.append(token)
            continue
        field, equals, value = token.removeprefix(_CONFIG_PREFIX).partition("=")
        if not equals:
            value = next(tokens, "--")
            if value.startswith("--"):
                raise UserError(f"{shown_name(token)} has no value: write --config.NAME=VALUE")
        overrides.append((field, value))
    return rest, overrides


def _help() -> str:
    known = commands()
    width = max((len(name) for name in known), default=0)
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in known.items())
    return (
        "usage: onereward <command> [--config FILE[:VARIANT]] [--config.field=value ...] [--workdir DIR]\n\n"
        "OneReward in JAX: one vision-language judge improves a mask-guided image model over many tasks.\n\n"
        f"commands:\n{lines}\n\n`onereward <command> --help` shows a command's arguments."
    )


if __name__ == "__main__":
    sys.exit(main())
