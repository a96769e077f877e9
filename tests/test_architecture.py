"""The house stands as docs/architecture.md says: a file imports only from its own floor or floors below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onereward_jax"
FLOORS = [
    {
        *("tasks", "errors", "files", "tree", "mesh", "lora", "pictures", "inputs", "configuration", "validation"),
        "processes",
        *("cost", "hlo", "topology"),
    },
    {"models"},
    {"weights", "train_state", "checkpoint", "metrics", "loop", "trainer", "data"},
    {"flow"},
    {"judge"},
    {"rl"},
    {"evaluation"},
    {"commands", "cli"},
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("onereward_jax.")}
    above = {other for other in imported if floor_of(other) > floor_of(part)}
    assert not above


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_never_imported_and_linen_only_by_models(path):
    imported = {name.split(".")[0] for name in imports_of(path)}
    assert not imported & {"torch", "diffusers", "peft", "tensorflow"}
    if path.relative_to(PACKAGE).parts[0] != "models":
        assert not any(name.startswith("flax.linen") for name in imports_of(path))
