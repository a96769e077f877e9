"""From a configuration file and its overrides to settings: Python files with `get_config(variant)`, dotted paths.

Imports no JAX, so that a wrong command line is answered at once.
"""

import contextlib
import dataclasses
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from onereward_jax.config.find import find_config
from onereward_jax.config.option import Settings, about, did_you_mean, flattened, is_mapping, read, read_leaf
from onereward_jax.config.schema import RECIPES, Recipe
from onereward_jax.errors import UserError, one_line, shown, shown_name

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]


def load_config(spec: str | os.PathLike, overrides: Overrides = (), recipes: Sequence[type[Recipe]] = RECIPES) -> Any:
    """The settings of a configuration file with overrides, all checked.

    Args:
      spec: as `find_config` takes it: a Python file that defines `get_config()` or `get_config(variant)`, which returns
        a ConfigDict: of a recipe (`schema.RewardFeedback.config_dict()`), or one that was made from nothing. What it
        leaves out has the schema's default.
      overrides: {"train.num_steps": value}, or such pairs; a value given as text is read as the field's type.
      recipes: that will do.

    Returns:
      One of `recipes`.

    Raises:
      FileNotFoundError: no such file.
      UserError: no such variant or field, a value that can't be, or a configuration of another recipe.
    """
    return load_with_sources(spec, overrides, recipes)[0]


def load_with_sources(
    spec: str | os.PathLike, overrides: Overrides = (), recipes: Sequence[type[Recipe]] = RECIPES
) -> tuple[Recipe, dict[str, str]]:
    """As `load_config`; and {dotted name: "default", "file" or "override"}: who gave each value."""
    name = os.fspath(spec)
    path, variant = find_config(name)
    overrides = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    with _program(path):
        given, overrides = _resolved(_get_config(path, variant), overrides)
    recipe = next((kind for kind in recipes if kind.own in given), None) or recipe_of(given, default=recipes[0])
    if recipe not in recipes:
        takes = " or ".join(kind.title for kind in recipes)
        raise UserError(f"{name} is a configuration of {recipe.title}: choose one of {takes} for this command")
    defaults = recipe()
    values = defaults.to_dict()
    for field, value in _fields_of(recipe, given, str(path)).items():
        _set(values, field, value)
    overridden = []
    for field, value in overrides:
        overridden.append(_override(recipe, values, field, value, str(path)))
    config = make(recipe, values)
    before, flat = defaults.flat(), config.flat()
    sources = {field: "default" if before.get(field) == value else "file" for field, value in flat.items()}
    return config, sources | dict.fromkeys(overridden, "override")


def recipe_of(given: Mapping[str, Any], default: type[Recipe] = RECIPES[0]) -> type[Recipe]:
    """The recipe that has a configuration's groups, known by the group that is its own."""
    return next((recipe for recipe in RECIPES if recipe.own in given), default)


def make(recipe: type[Recipe], values: Mapping[str, Any]) -> Recipe:
    """The settings with nested plain values of all fields.

    Raises:
      UserError: a value is wrong; names the first.
    """
    defaults = recipe()
    groups = {name: value for name, value in defaults if isinstance(value, Settings)}
    of_recipe: dict[str, Any] = {
        name: dataclasses.replace(groups[name], **value) if name in groups else value  # type: ignore[type-var]
        for name, value in values.items()
    }
    return recipe(**of_recipe)


def _resolved(config: ConfigDict, overrides: list[tuple[str, Any]]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """A file's nested values, with overrides of fields that others refer to (`get_ref`) carried to those; and the
    overrides of settings. A field at the top that is no setting and that others refer to is the file's own variable."""
    settings = {name.partition(".")[0] for recipe in RECIPES for name in (*options(recipe), *renamed())}
    variables = {
        name
        for name, value in config.items(preserve_field_references=True)
        if isinstance(value, FieldReference) and name not in settings
    }
    for name, value in overrides:
        *groups, leaf = name.split(".")
        node: Any = config
        for group in groups:
            node = node.get(group) if isinstance(node, ConfigDict) else None
        if not isinstance(node, ConfigDict):
            continue
        if isinstance(dict(node.items(preserve_field_references=True)).get(leaf), FieldReference):
            node[leaf] = read_leaf(name, value, node[leaf])
    values = config.copy_and_resolve_references().to_dict()
    return (
        {name: value for name, value in values.items() if name not in variables},
        [(name, value) for name, value in overrides if name not in variables],
    )


# -------------------------------------------------------------------------------------------------------- fields


def renamed() -> dict[str, str]:
    """{dotted name of an earlier release: today's}."""
    names: dict[str, str] = {}
    for recipe in RECIPES:
        for name, field in options(recipe).items():
            if about(field).was:
                names[about(field).was] = name
    return names


def options(recipe: type[Recipe]) -> dict[str, dataclasses.Field]:
    """{dotted name: field} of every setting of a recipe, in the order of the schema."""
    found: dict[str, dataclasses.Field] = {}
    own = {field.name: field for field in dataclasses.fields(recipe)}
    for name, value in recipe():
        if isinstance(value, Settings):
            found |= {f"{name}.{field.name}": field for field in dataclasses.fields(value)}  # type: ignore[arg-type]
        else:
            found[name] = own[name]
    return found


def names_with(recipe: type[Recipe], attribute: str) -> list[str]:
    """Dotted names of the settings whose `Option` has an attribute, such as "resumable"."""
    return [name for name, field in options(recipe).items() if getattr(about(field), attribute)]


def is_of(name: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of these, or a key of a mapping among them."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def today(name: str, source: str) -> str:
    """The name of a field, which an earlier release may have called otherwise: that is warned of."""
    names = renamed()
    old = next((old for old in names if name == old or name.startswith(f"{old}.")), None)
    if old is None:
        return name
    warnings.warn(f"{source}: {old} is now called {names[old]}", stacklevel=2)
    return names[old] + name.removeprefix(old)


def _fields_of(recipe: type[Recipe], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """{dotted name of a field: value} of a file's nested values; fields under their old names come last, since a file
    that starts from the schema has them under the new ones, too. What another recipe reads is left out with a warning:
    files of an earlier release may have it."""
    known = options(recipe)
    groups = {name.partition(".")[0] for name in known if "." in name}
    others = {name.partition(".")[0] for kind in RECIPES for name in options(kind) if "." in name} - groups
    found: dict[str, Any] = {}
    old: dict[str, Any] = {}
    for key, value in given.items():
        if key in others:
            warnings.warn(f"{source}: {key} is no group of {recipe.title}: it is left out", stacklevel=2)
            continue
        if key in groups and not isinstance(value, Mapping):
            raise UserError(f"{source}: {key} is a group of fields, not {shown(value)}")
        leaves = {f"{key}.{name}": leaf for name, leaf in value.items()} if key in groups else {key: value}
        for name, leaf in leaves.items():
            if name in known:
                found[name] = leaf
                continue
            named = today(name, source)
            if named not in known and any(named in options(other) for other in RECIPES):
                warnings.warn(f"{source}: {name} is no setting of {recipe.title}: it is left out", stacklevel=2)
                continue
            if named not in known:
                raise UserError(
                    f"{source} has no field {shown_name(name)}{did_you_mean(name, flattened(recipe().to_dict()))}"
                )
            old[named] = leaf
    return found | old


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, leaf = dotted.split(".")
    for group in groups:
        values = values[group]
    values[leaf] = value


def _override(recipe: type[Recipe], values: dict[str, Any], name: str, value: Any, source: str) -> str:
    """Sets one field, or one key of a mapping, in nested values; returns its name of today."""
    name = today(name, "the command line")
    known = options(recipe)
    field_name = next((other for other in known if is_of(name, [other])), None)
    node: Any = values
    for part in name.split("."):
        node = node.get(part, _Missing) if isinstance(node, Mapping) else _Missing
    if node is _Missing:
        raise UserError(f"{source} has no field {shown_name(name)}{did_you_mean(name, flattened(values))}")
    if isinstance(node, Mapping) and not (isinstance(value, Mapping) and field_name == name):
        inner = ", ".join(f"{name}.{key}" for key in sorted(node)) or "its fields in a file"
        raise UserError(f"{name} is a group of fields: set one of {inner}")
    assert field_name is not None
    field = known[field_name]
    if field_name == name:
        _set(values, name, value if is_mapping(field) else read(field, value))
    else:
        _set(values, name, read_leaf(name, value, node, about(field)))
    return name


class _Missing:
    pass


# ----------------------------------------------------------------------------------------------------------- files


def _get_config(path: Path, variant: str) -> ConfigDict:
    if path.suffix != ".py":
        raise UserError(f"configuration {path} is not a Python file: give one that defines get_config()")
    get_config = getattr(_import_file(path), "get_config", None)
    if not callable(get_config):
        raise UserError(f"{path} defines no get_config(): give a file that does")
    parameters = inspect.signature(get_config).parameters.values()
    if variant and not parameters:
        raise UserError(f"{path} has no variants: give it without :{shown_name(variant)}")
    if not variant and any(parameter.default is parameter.empty for parameter in parameters):
        raise UserError(f"{path} needs a variant: give it as {path}:VARIANT")
    try:
        config = get_config(variant) if variant else get_config()
    except KeyError:
        if not variant:
            raise
        raise UserError(f"{path} has no variant {shown(variant)}") from None
    except ValueError as error:
        raise UserError(one_line(str(error))) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns no ConfigDict: let it return one")
    return config


@contextlib.contextmanager
def _program(path: Path) -> Iterator[None]:
    """Turn what a configuration file raises into one sentence, with the line at which it did.

    Raises:
      UserError: it raised anything.
    """
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:  # of the file, or of one that it imports
        raise UserError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # the file is a program, not ours: anything may come of it
        lines = [
            line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {one_line(str(error))}") from error


def _import_file(path: Path) -> Any:
    name = f"onereward_config_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # A configuration may import another one beside it.
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module
