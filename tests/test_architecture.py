"""The house stands as the table in docs/reference/architecture.md says."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "onereward_jax"
TABLE = (TOP / "docs" / "reference" / "architecture.md").read_text().partition("| room |")[2]
# Names of rooms, and of loose modules in the first row, from the top of the house to its bottom.
ROWS = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in TABLE.splitlines() if line.startswith("| `")]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def row_of(name: str) -> int:
    return next(number for number, row in enumerate(ROWS) if name in row)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_table_names_every_room_and_no_other():
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    assert {name for row in ROWS for name in row} == there


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("onereward_jax.")}
    assert not {other for other in imported if row_of(other) > row_of(room)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_never_imported_and_linen_only_by_models(path):
    imported = {name.split(".")[0] for name in imports_of(path)}
    assert not imported & {"torch", "diffusers", "peft", "tensorflow"}
    if path.relative_to(PACKAGE).parts[0] != "models":
        assert not any(name.startswith("flax.linen") for name in imports_of(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_catches_every_error_says_why(path):
    lines = ["", *path.read_text().splitlines()]
    broad = [number for number, line in enumerate(lines) if re.match(r"\s*except (Base)?Exception\b", line)]
    assert [number for number in broad if "#" not in lines[number] and "#" not in lines[number - 1]] == []


# Folders of tests/ that are no rooms: fixtures, recorded results, and tests of the whole.
OTHER_TESTS = {"support", "goldens", "parity", "kill_and_resume", "multiprocess", "hostile"}


def test_tests_mirror_the_rooms_and_share_fixtures_in_support():
    folders = {path.name for path in (TOP / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - OTHER_TESTS <= {name for row in ROWS for name in row}
    for path in (TOP / "tests").rglob("*.py"):
        imported = {name for name in imports_of(path) if re.match(r"tests\.(?!support\b)\w", name)}
        assert not imported, f"{path} takes {imported} of another test: move what they share to tests/support"
