"""Configurations: Python files with `get_config(variant)`, overrides by dotted path, and the working directory's copy.

Imports no JAX, so that a wrong command line is answered at once.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from onereward_jax.atomic_files import fingerprint, lock, write_json
from onereward_jax.errors import DISK_FULL, UserError
from onereward_jax.parallel import hosts

# A run may be resumed with other values of these: they say how long it runs, on what, and what it writes, not what it
# learns.
FREE_FIELDS = (
    "train.num_steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_skipped",
    "train.max_unsharded_mib",
    "train.offload",
    "data.loader_threads",
    "data.loader_timeout",
    "rl.reference_pool",
    "mesh.",
)
# Reward feedback learning reads none of these: a policy may be evaluated otherwise than was planned.
EVALUATION_FIELDS = ("evaluation.", "preferences.", "ascent.")
# Fields that name directories of weights or preferences. A run is of what lies there at its start.
CONTENT_FIELDS = (
    "model.base",
    "model.judge",
    "model.judge_adapters",
    "base.start",
    "base.vae",
    "preferences.base",
    "judge.start",
    "judge.data",
    "preferences.policies",
)
# Tuples that may have any number of elements; the others have as many as the configuration gives them.
LIST_FIELDS = (
    "judge.data",
    "judge.vision_config.fullatt_block_indexes",
    "model.judge_adapters",
    "preferences.policies",
    "train.offload",
    "vae.model.block_out_channels",
)
# Parts of a train state that may wait in the hosts' memory (`train.offload`).
OFFLOADABLE = ("opt_state", "ema", "reference")
_CONFIG_FILE = "config.json"
_MADE_AT_START = (
    ".processes",
    _CONFIG_FILE,
    f"{_CONFIG_FILE}.tmp",
    "tensorboard",
    "tokenizers",
    "balance.json",
    "pictures.json",
    "held_out.json",
)


def load_config(spec: str | os.PathLike, overrides: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> ConfigDict:
    """Loads `configs/x.py` or `configs/x.py:variant` and applies overrides.

    Args:
      spec: path of a Python file that defines `get_config()` or `get_config(variant)`, and the variant.
      overrides: {"train.num_steps": value}, or such pairs; a value given as text is read as the field's type.

    Returns:
      The configuration, locked.

    Raises:
      FileNotFoundError: no such file.
      UserError: no such variant or field, or a value of another type or length; says which is meant.
    """
    path, _, variant = os.fspath(spec).partition(":")
    config = _get_config(path, variant)
    for name, value in overrides.items() if isinstance(overrides, Mapping) else overrides:
        override(config, name, value, source=path)
    return config.lock()


def override(config: ConfigDict, name: str, value: Any, source: str = "the configuration") -> None:
    """Sets one existing field, `name` its dotted path; text is read as the type that the field has.

    Raises:
      UserError: see `load_config`.
    """
    *groups, leaf = name.split(".")
    node: Any = config
    for group in groups:
        node = node[group] if isinstance(node, ConfigDict) and group in node else None
    if not isinstance(node, ConfigDict) or leaf not in node:
        raise UserError(f"{source} has no field {name}{did_you_mean(name, fields(config))}")
    if isinstance(node[leaf], ConfigDict):
        raise UserError(f"{name} is a group of fields: set one of {', '.join(f'{name}.{key}' for key in node[leaf])}")
    node[leaf] = _read(name, value, node[leaf], node.get_type(leaf))


def fields(config: ConfigDict) -> dict[str, Any]:
    """{dotted path: value} of every field that is not a group, sorted within its group."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            leaves.update({f"{key}.{name}": leaf for name, leaf in fields(value).items()})
        else:
            leaves[key] = value
    return leaves


def claim_workdir(workdir: str | os.PathLike, config: ConfigDict, free: Iterable[str] = FREE_FIELDS) -> Path:
    """Makes the working directory and writes `config.json` there; or checks that it is of the same configuration.

    A directory in which no step was done yet is free for any configuration. A configuration is
    the same if its fields and the contents of the directories that they name are.

    Args:
      workdir: directory of one run.
      config: the run's configuration.
      free: fields that may differ when a run goes on; "evaluation." stands for all fields of that group.

    The directory is this process's until it ends, see `atomic_files.hold`; of several processes the first claims it,
    and the others find that it is the same one, and the configuration too.

    Raises:
      UserError: the directory can't be written, is another process's, or holds a run of another configuration (names
        the fields).
    """
    directory = Path(workdir)
    # Through JSON, so that tuples compare with the lists that the file has.
    values = fields(config)
    contents = {f"{name}.content": _content(values[name]) for name in CONTENT_FIELDS if values.get(name)}
    new = json.loads(json.dumps(values | contents, default=str))
    of_first = hosts.on_primary(lambda: _claim(directory, new, tuple(free)))
    if differing := _differing(of_first, new):
        raise UserError(
            f"two processes of one run differ in {_shown(differing, of_first, new, 'in the first', 'here')}: give all"
            " of them one command, and the same files"
        )
    hosts.check_shared(directory / ".processes")
    return directory


def _claim(directory: Path, new: dict[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """`claim_workdir` of one process, for the values of a configuration, which it returns."""
    path = directory / _CONFIG_FILE
    unwritable = f"the working directory {directory} can't be written ({{}}): choose another --workdir"
    try:
        lock(directory)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(unwritable.format(error.strerror)) from error
    try:
        old = json.loads(path.read_text()) if path.exists() else new
        differing = [name for name in _differing(old, new) if not _is_free(name, free)]
        if not differing or _nothing_made(directory):
            write_json(path, new)
            return new
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(unwritable.format(error.strerror)) from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: remove it if the run there is of this configuration") from error
    raise UserError(
        f"{directory} holds a run of another configuration, differing in"
        f" {_shown(differing, old, new, 'there', 'now')}: choose another --workdir, or the configuration that it began"
        " with"
    )


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(n for n in old.keys() | new.keys() if old.get(n, "nothing") != new.get(n, "nothing"))


def _shown(names: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], there: str, here: str) -> str:
    """The first of the fields that differ, with both values."""
    shown = [f"{name} ({old.get(name, 'nothing')} {there}, {new.get(name, 'nothing')} {here})" for name in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _content(directories: str | Sequence[str]) -> str:
    named = [directories] if isinstance(directories, str) else directories
    return " ".join(fingerprint(Path(directory)) for directory in named)


def _is_free(name: str, free: Iterable[str]) -> bool:
    return any(name == field or (field.endswith(".") and name.startswith(field)) for field in free)


def _nothing_made(directory: Path) -> bool:
    """Whether there is only what a run makes before its first step: a wrong value may show no earlier."""
    for entry in directory.iterdir():
        empty = not any(entry.iterdir()) if entry.is_dir() else entry.stat().st_size == 0
        if not empty and entry.name not in _MADE_AT_START:
            return False
    return True


# ------------------------------------------------------------------------------------------------------- reading


def _get_config(path: str, variant: str) -> ConfigDict:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"configuration {path} does not exist{did_you_mean(path, _files_beside(path))}")
    if not path.endswith(".py"):
        raise UserError(f"configuration {path} is not a Python file: give one that defines get_config()")
    get_config = getattr(_import_file(path), "get_config", None)
    if get_config is None:
        raise UserError(f"{path} defines no get_config(): give a file that does")
    parameters = inspect.signature(get_config).parameters.values()
    if variant and not parameters:
        raise UserError(f"{path} has no variants: give it without :{variant}")
    if not variant and any(parameter.default is parameter.empty for parameter in parameters):
        raise UserError(f"{path} needs a variant: give it as {path}:VARIANT")
    try:
        config = get_config(variant) if variant else get_config()
    except KeyError:
        if not variant:
            raise
        raise UserError(f"{path} has no variant {variant!r}") from None
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns no ConfigDict: let it return one")
    return config


def _import_file(path: str) -> Any:
    name = f"onereward_config_{Path(path).stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # A configuration may import another one beside it.
    beside = str(Path(path).resolve().parent)
    sys.path.insert(0, beside)
    try:
        specification.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    finally:
        sys.path.remove(beside)
    return module


def _files_beside(path: str) -> list[str]:
    directory = Path(path).parent
    return [str(file) for file in directory.glob("*.py")] if directory.is_dir() else []


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ": did you mean train.num_steps?" or nothing: the end of a sentence about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the right last word in the wrong group, or the other way round
        last = {candidate.rpartition(".")[2]: candidate for candidate in known}
        close = [last[word] for word in difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f": did you mean {close[0]}?" if close else ""


# -------------------------------------------------------------------------------------------------------- values


def _read(name: str, value: Any, default: Any, kind: type) -> Any:
    """`value` as the type of the field; text is parsed."""
    if isinstance(value, FieldReference):
        value = value.get()
    if default is None and kind is not type(None) and str(value).lower() == "none":
        return None
    if kind in _READERS:
        return _READERS[kind](name, value, default)
    if kind in (list, set, dict):
        raise UserError(f"{name} is a {kind.__name__} and can't be overridden: make it a tuple in the configuration")
    raise UserError(
        f"{name} has no type that can be read ({kind.__name__}): give it one in the configuration, "
        "such as config_dict.placeholder(int)"
    )


def _wrong(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{name} must be {wanted}, not {value!r}")


def _read_bool(name: str, value: Any, default: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in words:
        raise _wrong(name, value, "true or false")
    return words[str(value).lower()]


def _read_int(name: str, value: Any, default: Any) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        raise _wrong(name, value, "a whole number") from None


def _read_float(name: str, value: Any, default: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (ValueError, TypeError):
        raise _wrong(name, value, "a number") from None


def _read_str(name: str, value: Any, default: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def _read_tuple(name: str, value: Any, default: tuple | None) -> tuple:
    """ "(1, 2)", "1,2" or a sequence; as many elements, each of the type, as the tuple there (None or (): any), or any
    number of its first element's type (`LIST_FIELDS`)."""
    if isinstance(value, str):
        try:
            parsed = ast.literal_eval(value)
            elements = list(parsed) if isinstance(parsed, tuple | list) else [parsed]
        except (ValueError, SyntaxError):
            inner = value.strip().removeprefix("(").removesuffix(")")
            elements = [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]
    elif isinstance(value, list | tuple):
        elements = list(value)
    else:
        elements = [value]
    if not default:
        return tuple(elements)
    if name in LIST_FIELDS:
        default = default[:1] * len(elements)
    if len(elements) != len(default):
        raise UserError(f"{name} takes {len(default)} values like {default}, not {len(elements)}: {value}")
    return tuple(
        element if old is None else _read(f"{name}[{number}]", element, old, type(old))
        for number, (element, old) in enumerate(zip(elements, default, strict=True))
    )


_READERS: dict[type, Callable[[str, Any, Any], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    tuple: _read_tuple,
}
