"""Settings as text: the table that `onereward config` prints, and the page docs/reference/settings.md."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from onereward_jax.config.load import is_of, options
from onereward_jax.config.option import Settings, about, wanted
from onereward_jax.config.schema import RECIPES, Recipe

_HEAD = """# Settings

Written by `onereward config --docs docs/reference/settings.md` from `onereward_jax/config/schema.py`, which is the only
list of them: change it there. `--config.NAME=VALUE` after `--config` sets one; `onereward config --config quick` shows
the values of a configuration, and where each comes from.

A run may be resumed with another value of what is marked ↻. Where kinds of training have defaults of their own, these
follow, by the group of the kind: `rl` reward feedback learning, `judge`, `finetune`, `vae` the autoencoder, `base` the
fill model.
"""


def table(config: Recipe, sources: Mapping[str, str]) -> str:
    """A line for each setting: name, value, who gave it, default, and what is allowed.

    Args:
      sources: {dotted name: "default", "file" or "override"}, of `load_with_sources`.
    """
    known, defaults = options(type(config)), type(config)().flat()
    rows = [("setting", "value", "from", "default", "allowed")]
    for name, value in config.flat().items():
        option = next(other for other in known if is_of(name, [other]))
        allowed = wanted(known[option]) if option == name else ""
        rows.append((name, _text(value), sources[name], _text(defaults.get(name, "")), allowed))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    padded = ([cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def page() -> str:
    """All settings of all recipes in Markdown, a section for each group."""
    sections: dict[str, list[str]] = {}
    intros = {"": "Beside the groups."}
    for recipe in RECIPES:
        intros |= {name: str(type(group).__doc__) for name, group in recipe() if isinstance(group, Settings)} | intros
    for name, field in _all_options().items():
        group = name.rpartition(".")[0]
        sections.setdefault(group, []).append(_row(name, field))
    lines = [_HEAD]
    for group, rows in sections.items():
        title = f"`{group}`" if group else "Top level"
        intro = intros[group].partition("\n")[0]
        lines += [f"## {title}", "", intro, "", "| setting | default | allowed | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _all_options() -> dict[str, dataclasses.Field]:
    found: dict[str, dataclasses.Field] = {}
    for recipe in RECIPES:
        found = options(recipe) | found
    return dict(sorted(found.items(), key=lambda item: ("." in item[0], item[0].partition(".")[0])))


def _row(name: str, field: dataclasses.Field) -> str:
    known = about(field)
    symbol = f"{known.paper}; " if known.paper else ""
    again = " ↻" if known.resumable else ""
    cells = (f"`{name}`{again}", ", ".join(_defaults(name)), wanted(field), f"{symbol}{known.help}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _defaults(name: str) -> Iterator[str]:
    """The default, and those of the recipes that have another."""
    group, _, leaf = name.rpartition(".")
    having = [recipe for recipe in RECIPES if name in options(recipe)]
    values = {recipe.own: recipe()[group][leaf] if group else recipe()[leaf] for recipe in having}
    common = next(iter(values.values()))
    yield f"`{_text(common)}`"
    yield from (f"{own} `{_text(value)}`" for own, value in values.items() if value != common)


def _text(value: Any) -> str:
    if isinstance(value, float | str):
        return repr(value) if isinstance(value, float) else value or "''"
    return json.dumps(value) if isinstance(value, dict) else str(value)
