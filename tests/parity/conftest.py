"""Official modules start from one seed in every test, whatever ran before it in the same process."""

import pytest


def _seed() -> None:
    pytest.importorskip("torch").manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def seeded_module():
    """Before the fixtures of a module."""
    _seed()


@pytest.fixture(autouse=True)
def seeded(seeded_module):
    _seed()
