"""Official modules start from one seed in every test, whatever ran before it in the same process."""

import pytest


@pytest.fixture(autouse=True)
def seeded():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
