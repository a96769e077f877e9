"""The values that fields of a model may have: what a user's config.json says is checked before anything is made of it.

A dataclass annotates a field with its range, `num_layers: Layers`, and has a method `check_fields` if fields must fit
each other; `from_config` reads both.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from onereward_jax.errors import UserError, shown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Length:
    """Bounds of the length of a tuple, both included."""

    least: int
    most: int


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The values of a text."""

    choices: tuple[str, ...]


# The bounds are far above those of any published model, and low enough that shapes alone take neither memory nor time.
Layers = Annotated[int, Range(1, 10_000)]
UnrolledLayers = Annotated[int, Range(1, 16)]  # of which each is traced anew
Heads = Annotated[int, Range(1, 10_000)]
HeadSize = Annotated[int, Range(1, 10_000)]
Width = Annotated[int, Range(1, 1_000_000)]
Vocabulary = Annotated[int, Range(1, 10_000_000)]
Token = Annotated[int, Range(0, 10_000_000)]
Side = Annotated[int, Range(1, 256)]  # of a patch or a window, in pixels or patches
Epsilon = Annotated[float, Range(0.0, 1.0)]


def from_config(kind: type[T], fields: Mapping[str, Any], overrides: Mapping[str, Any], what: str) -> T:
    """Make a dataclass of the fields that a configuration file gives.

    Args:
      fields: their values as JSON has them; a list stands for a tuple.
      overrides: fields that the program gives, which are not checked.
      what: "the FLUX configuration", for messages.

    Raises:
      UserError: a field is missing, of another type, out of its range, or does not fit another one.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: check_value(value, known[name].type, name) for name, value in fields.items()} | dict(overrides)
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"{what} has no field {', '.join(unknown)}: leave it out")
    required = (field.name for field in known.values() if field.default is field.default_factory is dataclasses.MISSING)
    if missing := [name for name in required if name not in given]:
        raise UserError(f"{what} is incomplete, it has no {', '.join(missing)}: use the file of the release")
    made = kind(**given)
    if hasattr(made, "check_fields"):
        made.check_fields()
    return made


def check_value(value: Any, annotation: Any, name: str) -> Any:
    """Return the value, with a list as a tuple and a whole number as a float where that is meant.

    Raises:
      UserError: the annotation does not allow it.
    """
    kind, bounds = typing.get_args(annotation) if typing.get_origin(annotation) is Annotated else (annotation, None)
    if typing.get_origin(kind) is tuple:
        return _check_items(value, typing.get_args(kind)[0], bounds, name)
    wanted = _wanted(value, kind, bounds)
    if wanted:
        raise UserError(f"{name} is {shown(value, 60)}, but it has to be {wanted}: use the file of the release")
    return float(value) if kind is float else value


def _check_items(value: Any, item: Any, length: Length, name: str) -> tuple:
    if not isinstance(value, list | tuple) or not length.least <= len(value) <= length.most:
        count = f"{length.least}" if length.least == length.most else f"{length.least} to {length.most}"
        raise UserError(
            f"{name} is {shown(value, 60)}, but it has to be a list of {count} values: use the file of the release"
        )
    return tuple(check_value(part, item, name) for part in value)


def _wanted(value: Any, kind: Any, bounds: Range | OneOf | None) -> str | None:
    """What the value should be; None if it is."""
    if isinstance(bounds, OneOf):
        return None if value in bounds.choices else f"one of {', '.join(bounds.choices)}"
    if bounds is None:
        return None if isinstance(value, kind) else {bool: "true or false", str: "a text"}.get(kind, kind.__name__)
    types = (int,) if kind is int else (int, float)
    if isinstance(value, types) and not isinstance(value, bool) and bounds.least <= value <= bounds.most:
        return None
    return f"a {'whole ' if kind is int else ''}number from {bounds.least:,} to {bounds.most:,}"


def object_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the JSON object in a configuration's field; an empty one if it is missing or null.

    Raises:
      UserError: the field holds something else.
    """
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {shown(value, 60)}, but it has to be an object: use the file of the release")
    return value


def check_multiple(name: str, value: int, of: int, part: str = "") -> None:
    """Check that a field is a multiple of a number, which is that of field `part`.

    Raises:
      UserError: it is not.
    """
    if value % of:
        number = f"{part} {of}" if part else str(of)
        raise UserError(f"{name} {value} is no multiple of {number}: use the file of the release")
