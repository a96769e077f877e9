"""The commands of `onereward`, one thin module each, found by cli/main.py.

A module `train_judge.py` is the command `train-judge`. Its docstring's first line is its line in `onereward --help`;
the whole docstring is in its own `--help`. It has

    def add_arguments(parser: argparse.ArgumentParser) -> None   its arguments
    def run(args: argparse.Namespace) -> int | None              returns the exit code, None for 0
    IN_SEVERAL_PROCESSES = True                                  if the same command on many hosts forms one run

and imports JAX and everything that imports JAX inside `run`, so that errors in the command line show at once. A
command with a configuration calls `config_arguments(parser, RewardFeedback)` and finds its settings, loaded and
checked, in `args.config`: an object of that recipe in `config.schema`.
"""

import argparse
import os
from pathlib import Path

from onereward_jax.cli.arguments import like, path
from onereward_jax.config.schema import JudgeModel, Recipe


def config_arguments(
    parser: argparse.ArgumentParser, *recipes: type[Recipe], default: str | None = None, workdir: bool = True
) -> None:
    """Add `--config FILE[:VARIANT]`, its overrides `--config.field=value`, and `--workdir DIR`.

    The command takes configurations of these recipes; one of another is refused.
    """
    parser.set_defaults(config_recipes=recipes)
    parser.add_argument(
        "--config",
        type=path,
        metavar="NAME|FILE[:VARIANT]",
        default=default,
        required=default is None,
        help="configuration; any field of it is set by --config.field=value after it"
        + (f" (default: {default})" if default else ""),
    )
    if workdir:
        parser.add_argument(
            "--workdir",
            type=path,
            metavar="DIR",
            required=True,
            help="the run's directory: checkpoints, metrics, results",
        )


def use_compilation_cache(workdir: Path | None = None) -> None:
    """Keep compiled programs: in $JAX_COMPILATION_CACHE_DIR, in a run's `workdir`, or in the user's cache directory.

    To be called before JAX compiles anything. On a slice, every process may share the directory.
    """
    import jax

    from onereward_jax import buckets
    from onereward_jax.parallel import hosts

    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if workdir is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory: str | Path = Path(caches) / "onereward_jax"
    else:
        directory = buckets.native(workdir / "programs")
        if isinstance(directory, Path):  # an object appears whole
            hosts.on_primary(lambda: _remove_torn(workdir / "programs", workdir / "checkpoints"))
    jax.config.update("jax_compilation_cache_dir", str(directory))


def _remove_torn(programs: Path, checkpoints: Path) -> None:
    """Remove programs that may have been cut short: JAX writes them in place, would fail to read such a one at every
    start, and never writes it again. What is older than a finished checkpoint is whole. On GPUs, XLA keeps its own
    measurements in a directory there."""
    finished = max((path.stat().st_mtime for path in checkpoints.glob("step_*.json")), default=0.0)
    for program in list(programs.rglob("*")) if programs.is_dir() else ():
        if program.is_file() and program.stat().st_mtime >= finished:
            program.unlink(missing_ok=True)


def bad_share_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--bad_share SHARE` of commands that read preference data."""
    from onereward_jax.data.preferences.dataset import BAD_SHARE

    parser.add_argument(
        "--bad_share",
        type=like(JudgeModel, "bad_share"),
        default=BAD_SHARE,
        metavar="SHARE",
        help=f"invalid records to tolerate (default: {BAD_SHARE})",
    )
