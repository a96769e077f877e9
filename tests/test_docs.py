"""What the docs name exists: files, commands, options, configurations and their fields, scripts."""

import argparse
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

from onereward_jax.cli.main import commands, split_overrides
from onereward_jax.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in ROOT.glob("docs/**/*.md") if "_generated" not in page.parts)])
SOURCES = [path for room in ("onereward_jax", "launch", "benchmarks") for path in (ROOT / room).rglob("*.*")]
MADE = ("_generated/api/judge.md", "_generated/api/fill.md", "_generated/help.md", "settings.md")  # from the code
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def shell_lines(page: Path) -> list[list[str]]:
    """Commands of a page's code blocks, each as its words; a line that ends in a backslash continues."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```|((?:^    .*\n)+)", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "\n".join(part for block in blocks for part in block).replace("\\\n", " ").splitlines()
    found = (line.strip().lstrip("$ ") for line in lines)
    return [shlex.split(line, comments=True) for line in found if re.match(r"(onereward|bash|python -m) ", line)]


COMMANDS = [(name, words) for name, page in zip(NAMES, PAGES, strict=True) for words in shell_lines(page)]
OURS = [(name, words) for name, words in COMMANDS if words[0] == "onereward" and words[1] in commands()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
    local = [link or image for link, image in links if ":" not in link and not link.endswith(MADE)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_code_names_pages_that_exist():
    texts = [path.read_text(encoding="utf-8") for path in SOURCES if path.suffix in (".py", ".sh")]
    named = {page for text in texts for page in re.findall(r"(?<![\w'/-])docs/[\w/-]+\.md", text)}
    named.discard("docs/flux_train_network.md")  # of sd-scripts
    assert {page for page in named if not (ROOT / page).exists() and not page.endswith(MADE)} == set()


def test_the_table_of_hostile_tests_is_that_of_their_accounts():
    made = runpy.run_path(str(ROOT / "dev" / "hostile_table.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run `python dev/hostile_table.py`"


def test_there_are_commands():
    assert len(OURS) > 30


def test_every_command_is_in_the_reference():
    table = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8").partition("| command |")[2]
    rows = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == set(commands())


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{words[1]}" for page, words in COMMANDS])
def test_programs_exist(page, words):
    program, name = words[:2]
    if program == "bash":
        assert (ROOT / name).exists()
    elif program == "python":
        path = ROOT / words[2].replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    elif name not in ("COMMAND", "<command>") and not name.startswith("-"):
        assert name in commands()


@pytest.mark.parametrize(("page", "words"), OURS, ids=[f"{page}-{words[1]}" for page, words in OURS])
def test_options_and_fields_exist(page, words):
    """Options of the command; for a configuration of this repository, its variant and the fields that are set."""
    module = importlib.import_module(f"onereward_jax.cli.commands.{words[1].replace('-', '_')}")
    parser = argparse.ArgumentParser()
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    rest, overrides = split_overrides([word.strip("[]") for word in words[2:]])
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert options <= known
    file = rest[rest.index("--config") + 1] if "--config" in rest else ""
    if file.startswith("configs/") and "$" not in file and "VARIANT" not in file:
        load_config(str(ROOT / file), [(field, value) for field, value in overrides if "$" not in value])
