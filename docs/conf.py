"""The site: Sphinx and MyST, built by `bash launch/docs.sh`.

Two parts are made from the code at every build, in docs/_generated: a page of the API for every room of
docs/reference/architecture.md, and what `onereward COMMAND --help` prints.
"""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # modules are imported, nothing is computed

project = "onereward-jax"
author = "the authors of onereward-jax"
copyright = author
release = version = version_of("onereward-jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "images/*.py"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": False}
autodoc_inherit_docstrings = False  # Flax's own, of setup
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_display_short_literal_types = True
suppress_warnings = ["ref.python"]  # fields of one name in several classes, which Napoleon refers to by name alone
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

html_theme = "furo"
html_title = "onereward-jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp"


# -------------------------------------------------------------------------------------------------- made from the code


def write_api(folder: Path) -> None:
    """A page for each row of the table of rooms, with the row's modules."""
    table = (DOCS / "reference" / "architecture.md").read_text(encoding="utf-8").partition("| room |")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    for names, what in rows:
        rooms = re.findall(r"`(\w+)`", names)
        if rooms == ["cli"]:  # the commands have a page of their own
            continue
        title = rooms[0] if len(rooms) == 1 else "modules at the top"
        lines = [f"# {title}", "", what.strip()[0].upper() + what.strip()[1:] + "."]
        for module in sorted(module for room in rooms for module in modules(room)):
            lines += ["", f"## {module.removeprefix('onereward_jax.')}", ""]
            lines += [f"```{{eval-rst}}\n.. automodule:: {module}\n```"]
        write(folder / f"{title.replace(' ', '_')}.md", "\n".join(lines) + "\n")


def modules(room: str) -> list[str]:
    """The modules of a room that hold more than a docstring."""
    package = ROOT / "onereward_jax"
    files = [package / f"{room}.py"] if (package / f"{room}.py").exists() else (package / room).rglob("*.py")
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if path.name != "__main__.py" and ast.parse(path.read_text(encoding="utf-8")).body[1:]
    ]


def write_help(path: Path) -> None:
    """What `--help` of every command prints."""
    commands = sorted((ROOT / "onereward_jax" / "cli" / "commands").glob("[!_]*.py"))
    lines = ["# Help of every command", ""]
    for command in (file.stem.replace("_", "-") for file in commands):
        words = [sys.executable, "-m", "onereward_jax.cli", command, "--help"]
        variables = os.environ | {"COLUMNS": "110", "PYTHONPATH": str(ROOT)}
        printed = subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout
        lines += [f"## {command}", "", f"```text\n{printed.rstrip()}\n```", ""]
    write(path, "\n".join(lines))


def write(path: Path, text: str) -> None:
    """Leaves a file that would not change alone, so that a second build has less to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- docstrings

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.MULTILINE)
CODE_BLOCK = re.compile(r"(?<=\n)\n((?: {4}.*\n?|\n(?= {4}))+)")  # indented lines after a blank one


def as_restructured_text(app: object, what: str, name: str, object: object, options: object, lines: list[str]) -> None:
    """Docstrings are prose with Markdown's backticks and indented code: write both as reStructuredText has them."""
    text = "\n".join(lines)
    first_section = SECTION.search(text)
    end = first_section.start() if first_section else len(text)
    parts = CODE_BLOCK.split(text[:end])  # prose, code, prose, ...
    parts[::2] = map(escaped, parts[::2])
    parts[1::2] = [f"\n::\n\n{code}" for code in parts[1::2]]
    lines[:] = ("".join(parts) + escaped(text[end:])).split("\n")


def escaped(prose: str) -> str:
    """Code between backticks as a literal; what reStructuredText would take for markup as plain characters."""
    parts = prose.split("`")  # prose, code, prose, ...
    parts[::2] = [re.sub(r"(?<=\w)_(?=\W|$)|[*|]", r"\\\g<0>", part) for part in parts[::2]]
    for number in range(1, len(parts) - 1, 2):
        before = "\\ " if parts[number - 1][-1:].isalnum() else ""
        after = "\\ " if parts[number + 1][:1].isalnum() else ""
        parts[number] = f"{before}``{parts[number]}``{after}"
    return "".join(parts)


def setup(app: object) -> None:
    write_api(DOCS / "_generated" / "api")
    write_help(DOCS / "_generated" / "help.md")
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before Napoleon's own markup
