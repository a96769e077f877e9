"""The working directory of a run: claimed by one configuration, resumed by the same."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onereward_jax import buckets
from onereward_jax.atomic_files import fingerprint, lock, write_json
from onereward_jax.buckets import is_bucket
from onereward_jax.config.find import find_model
from onereward_jax.config.load import is_of, names_with, options, recipe_of, renamed
from onereward_jax.config.schema import Recipe
from onereward_jax.errors import DISK_FULL, UserError, shown_name
from onereward_jax.given_files import read_json
from onereward_jax.parallel import hosts

_CONFIG_FILE = "config.json"
_DAMAGED = "remove it if the run there is of this configuration"
_MANIFEST = ".onereward_manifest"  # before the names of `data.manifest`
_MADE_AT_START = (
    ".processes",
    _CONFIG_FILE,
    f"{_CONFIG_FILE}.tmp",
    "tensorboard",
    "tokenizers",
    "prompts",
    "base_images",
    "programs",
    "balance.json",
    "requests.json",
    "targets.json",
    "held_out.json",
)


def claim_workdir(workdir: str | os.PathLike, config: Recipe, free: Iterable[str] = ()) -> Path:
    """Makes the working directory and writes `config.json` there; or checks that it is of the same configuration.

    A directory in which no step was done yet is free for any configuration. A configuration is the same if its fields
    and the contents of the directories that they name are; those that `schema` calls resumable may differ.

    Args:
      workdir: directory of one run.
      config: the run's configuration.
      free: groups that may differ, too, such as `RewardFeedback.only_measuring`.

    Of a directory in a bucket the local copy is returned, see `buckets`; it is as the bucket is.

    The directory is this process's until it ends, see `atomic_files.lock`; of several processes the first claims it,
    and the others find that it is the same one, and the configuration too.

    Raises:
      UserError: the directory can't be written, is another process's, or holds a run of another configuration (names
        the fields).
    """
    directory, recipe = local_workdir(workdir), type(config)
    # Through JSON, so that tuples compare with the lists that the file has.
    values = config.flat()
    contents = {f"{name}.content": _content(values[name]) for name in names_with(recipe, "content") if values[name]}
    new = json.loads(json.dumps(values | contents, default=str))
    may_differ = (*names_with(recipe, "resumable"), *free)
    of_first = hosts.on_primary(lambda: _claim(directory, new, may_differ, recipe))
    if differing := _differing(of_first, new):
        raise UserError(
            f"two processes of one run differ in {_shown(differing, of_first, new, 'in the first', 'here')}: give all"
            " of them one command, and the same files"
        )
    if is_bucket(workdir):
        if not hosts.is_primary():
            buckets.pull(directory)
    else:
        hosts.check_shared(directory / ".processes")
    return directory


def local_workdir(workdir: str | os.PathLike) -> Path:
    """The directory itself, or the place of this process's local copy of one in a bucket, which the primary pushes."""
    owner = "workdir" if hosts.is_primary() else f"workdir_{hosts.index()}"
    return buckets.local(workdir, owner, pushed=hosts.is_primary())


def open_workdir(workdir: str | os.PathLike) -> Path:
    """The working directory of a run to read, which no other process uses; nothing is made where there is none."""
    directory = local_workdir(workdir)
    if is_bucket(workdir):
        lock(directory)
        buckets.pull(directory)
    return directory


def _claim(directory: Path, new: dict[str, Any], free: Sequence[str], recipe: type[Recipe]) -> dict[str, Any]:
    """`claim_workdir` of one process, for the values of a configuration, which it returns."""
    path = directory / _CONFIG_FILE
    shown = buckets.native(directory)
    unwritable = f"the working directory {shown} can't be written ({{}}): choose another --workdir"
    try:
        lock(directory)
        buckets.pull(directory)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(unwritable.format(error.strerror)) from error
    try:
        old = upgraded(read_json(path, _DAMAGED), recipe) if path.exists() else new
        differing = [name for name in _differing(old, new) if not is_of(name, free)]
        if not differing or _nothing_made(directory):
            write_json(path, new)
            buckets.push(directory)
            return new
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(unwritable.format(error.strerror)) from error
    raise UserError(
        f"{shown} holds a run of another configuration, differing in"
        f" {_shown(differing, old, new, 'there', 'now')}: choose another --workdir, or the configuration that it began"
        " with"
    )


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(n for n in old.keys() | new.keys() if old.get(n, "nothing") != new.get(n, "nothing"))


def _shown(names: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], there: str, here: str) -> str:
    """The first of the fields that differ, with both values."""
    value = lambda of, name: shown_name(str(of.get(name, "nothing")), 60)
    listed = [f"{shown_name(name, 60)} ({value(old, name)} {there}, {value(new, name)} {here})" for name in names[:4]]
    return ", ".join(listed) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def upgraded(values: Mapping[str, Any], recipe: type[Recipe]) -> dict[str, Any]:
    """The flat values of a `config.json` that an earlier release may have written: under today's names, with defaults
    where there was no such setting yet, and without what the recipe never read.

    Those of another recipe come back as they are.
    """
    groups = {name.partition(".")[0]: None for name in values}
    if recipe.own not in groups and recipe_of(groups) is not recipe:
        return dict(values)
    was, known = renamed(), tuple(options(recipe))
    named = {was.get(name, name): value for name, value in values.items()}
    read = {name: value for name, value in named.items() if is_of(name, known)}
    defaults = json.loads(json.dumps(recipe().flat()))
    missing = [name for name in known if not any(is_of(there, [name]) for there in read)]
    return {name: value for name, value in defaults.items() if is_of(name, missing)} | read


def _content(directories: str | Sequence[str]) -> str:
    named = [directories] if isinstance(directories, str) else directories
    return " ".join(fingerprint(find_model(directory)) for directory in named)


def _nothing_made(directory: Path) -> bool:
    """Whether there is only what a run makes before its first step: a wrong value may show no earlier."""
    for entry in directory.iterdir():
        empty = not any(entry.iterdir()) if entry.is_dir() else entry.stat().st_size == 0
        if not empty and entry.name not in _MADE_AT_START and not entry.name.startswith(_MANIFEST):
            return False
    return True
