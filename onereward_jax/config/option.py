"""How a setting is declared, checked and read from text; `schema` has the list of them.

A group of settings is a frozen dataclass whose fields are made by `option`. An object of it that exists is valid: its
values are checked when it is made, however it is made.

Imports no JAX.
"""

import ast
import copy
import dataclasses
import difflib
import math
import numbers
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

from onereward_jax.errors import UserError, shown, shown_name

MAX_TEXT = 10_000  # characters of a setting or an argument
# Seeds that differ: without 64 bits, JAX reads the lower 32 of a seed.
SEEDS = {"at_least": 0, "at_most": 2**32 - 1}


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a setting beside its name, type and default.

    Attributes:
      help: what it is, for `onereward config` and the documentation.
      above, below, at_least, at_most: limits of a number, or of every one in a tuple or a mapping. Every number has
        them on both sides: beyond what any run takes, and within what arithmetic, memory and libraries bear.
      multiple_of: of which a whole number is a multiple.
      choices: the values there are; of a tuple, those of its elements.
      also: values beyond the limits that are right, too.
      regex: whether a text is a regular expression.
      paper: the paper's symbol.
      resumable: whether a run may be resumed with another value: it says how long the run takes, on what it runs and
        what it writes, not what it learns.
      content: whether it names directories whose files count: a run is of what lay there at its start.
      in_reference: whether reference images depend on it.
      any_length: of a mapping, keys whose tuples may have any number of elements.
      words: what is right, where the limits alone don't say it well.
      was: dotted name of an earlier release, which is accepted with a warning.
    """

    help: str = ""
    above: float | None = None
    below: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    multiple_of: int | None = None
    choices: tuple[Any, ...] | None = None
    also: tuple[Any, ...] = ()
    regex: bool = False
    paper: str = ""
    resumable: bool = False
    content: bool = False
    in_reference: bool = False
    any_length: tuple[str, ...] = ()
    words: str = ""
    was: str = ""


def option(default: Any, **about: Any) -> Any:
    """A field of a group of settings.

    Args:
      default: its value where no configuration and no override says otherwise.
      about: the attributes of `Option`.
    """
    metadata = {"option": Option(**about)}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(dict(default)), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of every group. `name` is the group's name in a configuration; `**group` gives its values by name."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "option" in field.metadata:
                value = checked(self._dotted(field.name), field, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
            elif not isinstance(group := getattr(self, field.name), Settings):
                raise UserError(f"{self._dotted(field.name)} is a group of settings, not {shown(group)}")
        self.check()

    def check(self) -> None:
        """What settings must satisfy together.

        Raises:
          UserError: names those that don't.
        """

    def keys(self) -> Iterator[str]:
        return (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, sorted by name."""
        found = sorted(self, key=lambda item: item[0])
        return {key: value.to_dict() if isinstance(value, Settings) else copy.deepcopy(value) for key, value in found}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, self[name]) for name in self.keys())

    def flat(self) -> dict[str, Any]:
        """{dotted name: value} of every setting, the keys of its mappings among them."""
        return flattened(self.to_dict())

    def replace(self, values: Mapping[str, Any]) -> Self:
        """With other values of some settings, by dotted name: `config.replace({"train.batch_size": 16})`.

        Raises:
          UserError: a value is wrong, or there is no such setting.
        """
        own: dict[str, Any] = {}
        for dotted, value in values.items():
            first, _, rest = dotted.partition(".")
            if first not in set(self.keys()):
                raise UserError(f"there is no setting {shown_name(self._dotted(dotted))}")
            if not rest:
                own[first] = value
                continue
            current = own.get(first, self[first])
            if isinstance(current, Settings):
                own[first] = current.replace({rest: value})
            else:
                own[first] = _with_leaf(self._dotted(first), current, rest, value)
        return dataclasses.replace(self, **own)  # type: ignore[type-var]

    def _dotted(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def _with_leaf(name: str, mapping: Any, dotted: str, value: Any) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    if not isinstance(mapping, Mapping) or (rest and first not in mapping):
        raise UserError(f"there is no setting {shown_name(f'{name}.{dotted}')}")
    return {**mapping, first: _with_leaf(f"{name}.{first}", mapping[first], rest, value) if rest else value}


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, sorted within each group; an empty group is a value."""
    leaves: dict[str, Any] = {}
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping) and value:
            leaves |= {f"{key}.{name}": leaf for name, leaf in flattened(value).items()}
        else:
            leaves[key] = value
    return leaves


def about(field: dataclasses.Field) -> Option:
    return field.metadata["option"]


def like(group: type[Settings], name: str) -> tuple[Any, Option]:
    """The type and the limits of a setting, for `conform` of what means the same elsewhere."""
    (field,) = (field for field in dataclasses.fields(group) if field.name == name)  # type: ignore[arg-type]
    return kind_of(field)[0], about(field)


# -------------------------------------------------------------------------------------------------------- checking


def checked(name: str, field: dataclasses.Field, value: Any) -> Any:
    """The value as the field's type: a whole number becomes a float, a list a tuple, where these are asked for.

    Raises:
      UserError: it is not right; says what would be.
    """
    kind, optional = kind_of(field)
    if optional and value is None:
        return None
    if typing.get_origin(kind) is not Mapping:
        return conform(name, kind, about(field), value)
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a value for each of its fields, not {shown(value)}")
    element = typing.get_args(kind)[1]
    return _conform_mapping(name, None if element is Any else element, about(field), value)


def conform(name: str, kind: Any, known: Option, value: Any) -> Any:
    """A value of a setting, or of a command's argument, as a type: bool, int, float, str or tuple[...].

    Raises:
      UserError: it is not of the type, or not within the limits; says what would be.
    """
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        value = tuple(value)
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):  # of NumPy
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not _is_right(kind, known, value):
        why = f", which {fault}" if isinstance(value, str) and (fault := text_fault(value)) else ""
        raise UserError(f"{name} must be {words_for(kind, known)}, not {shown(value)}{why}")
    return float(value) if kind is float else value


def _conform_mapping(name: str, element: Any, known: Option, values: Mapping[str, Any]) -> dict[str, Any]:
    """In order of the keys, as a file may name them in any: not which task a random number draws depends on that.

    Args:
      element: type of the values; None: what JSON has, the numbers within the limits.
    """
    if wrong := [key for key in values if not isinstance(key, str) or text_fault(key)]:
        raise UserError(f"{name} has a field {shown(wrong[0])}: name it by text")
    return {key: _conform_entry(f"{name}.{key}", element, known, value) for key, value in sorted(values.items())}


def _conform_entry(name: str, element: Any, known: Option, value: Any) -> Any:
    if element is not None:
        return conform(name, element, known, value)
    if isinstance(value, Mapping):
        return _conform_mapping(name, element, known, value)
    if isinstance(value, list | tuple):
        return type(value)(_conform_entry(name, element, known, part) for part in value)
    return value if value is None else conform(name, type(value), known, value)


def kind_of(field: dataclasses.Field) -> tuple[Any, bool]:
    """A field's type, and whether it may be None: bool, int, float, str, tuple[...] or Mapping[str, ...]."""
    parts = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    (kind,) = (part for part in parts if part is not type(None))
    return kind, len(parts) > 1


def is_mapping(field: dataclasses.Field) -> bool:
    return typing.get_origin(kind_of(field)[0]) is Mapping


def wanted(field: dataclasses.Field) -> str:
    """Words for the values of a setting that are right: "a whole number from 1 to 64"."""
    return words_for(kind_of(field)[0], about(field))


def words_for(kind: Any, known: Option) -> str:
    """Words for the values of a type that are right."""
    if known.words:
        return known.words
    if known.choices is not None:
        listed = ", ".join(map(str, known.choices))
        return f"a tuple of some of {listed}" if typing.get_origin(kind) is tuple else f"one of {listed}"
    if known.regex:
        return "a regular expression"
    if typing.get_origin(kind) is tuple:
        return "a tuple of paths, such as \"('a','b')\"" if known.content else "a tuple"
    if typing.get_origin(kind) is Mapping:
        element = typing.get_args(kind)[1]
        each = _limits(", numbers", known) if element is Any else f": {words_for(element, known)}"
        return f"a value for each of its fields{each}"
    if kind not in (int, float):
        return {bool: "true or false", str: "text"}.get(kind, "text, a number, true or false")
    whole = "a whole number" if known.multiple_of is None else f"a multiple of {known.multiple_of}"
    also = "".join(f", or {_number(other)}" for other in known.also)
    return _limits(whole if kind is int else "a number", known) + also


def _limits(number: str, known: Option) -> str:
    """ "a number from 0 to 1", "a number above 0 and at most 1", "a number, 0 or more and below 1"."""
    if known.at_least is not None and known.at_most is not None:
        return f"{number} from {_number(known.at_least)} to {_number(known.at_most)}"
    low = "" if known.above is None else f"above {_number(known.above)}"
    low = low if known.at_least is None else f", {_number(known.at_least)} or more"
    high = "" if known.below is None else f"below {_number(known.below)}"
    high = high if known.at_most is None else f"at most {_number(known.at_most)}"
    limits = " and ".join(filter(None, (low, high)))
    return f"{number} {limits}".strip().replace(" ,", ",")


def _number(value: float) -> str:
    """10,000 and 0.5; large and small ones as 1e+12 and 1e-06."""
    return f"{int(value):,}" if abs(value) < 1e10 and value == int(value) else f"{value:g}"


def text_fault(text: str) -> str:
    """Why a text can be no setting and no argument: "is no UTF-8"; "" for one that can."""
    if "\0" in text:
        return "holds a NUL"
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT:,} characters"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that are none, or half of a character
        return "is no UTF-8"
    return ""


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _is_right(kind: Any, known: Option, value: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        element, *rest = typing.get_args(kind)
        length = None if rest == [...] else 1 + len(rest)
        right_length = isinstance(value, tuple) and length in (None, len(value))
        return right_length and all(_is_right(element, known, part) and part != "" for part in value)
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        if not isinstance(value, str) or text_fault(value):
            return False
        return _is_regex(value) if known.regex else known.choices is None or value in known.choices
    if kind not in (int, float) or not _is_number(value) or (kind is int and not isinstance(value, int)):
        return False
    return value in known.also or (
        (known.above is None or value > known.above)
        and (known.below is None or value < known.below)
        and (known.at_least is None or value >= known.at_least)
        and (known.at_most is None or value <= known.at_most)
        and (known.multiple_of is None or value % known.multiple_of == 0)
    )


def _is_regex(value: str) -> bool:
    try:
        return bool(re.compile(value))
    except (re.error, OverflowError, RecursionError):  # "(", "a{99999999999}", 10,000 parentheses
        return False


# --------------------------------------------------------------------------------------------------------- reading


def read(field: dataclasses.Field, value: Any) -> Any:
    """An override, text from a command line among others, as the type of the field; what can't be read comes back as
    it is, for `checked` to refuse."""
    kind, optional = kind_of(field)
    if optional and isinstance(value, str) and value.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        elements = elements_of(value) if isinstance(value, str) else value
        if not isinstance(elements, list | tuple):
            return value
        return tuple(part if element is str else read_plain(element, part) for part in elements)
    return read_plain(kind, value)


def read_leaf(name: str, value: Any, old: Any, known: Option = Option()) -> Any:
    """An override of one value in a mapping, as the type of the value that is there.

    Raises:
      UserError: it can't be; says what can.
    """
    if isinstance(old, tuple):
        elements = elements_of(value) if isinstance(value, str) else value
        if not isinstance(elements, list | tuple):
            raise UserError(f"{name} takes values like {shown(old)}, not {shown(value)}")
        if name.rpartition(".")[2] in known.any_length:
            old = old[:1] * len(elements)
        if len(elements) != len(old):
            raise UserError(f"{name} takes {len(old)} values like {shown(old)}, not {len(elements)}: {shown(value)}")
        return tuple(
            read_leaf(f"{name}[{number}]", element, its_old, known)
            for number, (element, its_old) in enumerate(zip(elements, old, strict=True))
        )
    found = read_plain(type(old), value)
    if type(found) is not type(old):
        raise UserError(f"{name} must be {words_for(type(old), known)}, not {shown(value)}")
    return found


def read_plain(kind: Any, value: Any) -> Any:
    """Text as a bool, an int or a float; what can't be read comes back as it is."""
    if kind is bool and not isinstance(value, bool):
        return {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower(), value)
    if kind in (int, float) and (isinstance(value, str) or (kind is float and type(value) is int)):
        try:
            return kind(value)
        except (ValueError, OverflowError):  # "many", and 10**400 as a float
            return value
    return value


def elements_of(text: str) -> list[Any]:
    """ "(1, 2)", "1,2" and "('a', 'b')" as lists."""
    try:
        parsed = ast.literal_eval(text)
        return list(parsed) if isinstance(parsed, tuple | list) else [parsed]
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
        inner = text.strip().removeprefix("(").removesuffix(")")
        return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ": did you mean train.num_steps?" or nothing: the end of a sentence about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the right last word in the wrong group, or the other way round
        last = {candidate.rpartition(".")[2]: candidate for candidate in known}
        close = [last[word] for word in difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f": did you mean {close[0]}?" if close else ""
