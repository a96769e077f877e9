"""OneReward in JAX: one vision-language judge improves a mask-guided image model over many tasks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onereward_jax.fill.pipeline import FillPipeline as FillPipeline
    from onereward_jax.judge.judge import Judge as Judge

# Read when they are asked for: `import onereward_jax` alone imports neither JAX nor transformers.
_PUBLIC = {"FillPipeline": "onereward_jax.fill.pipeline", "Judge": "onereward_jax.judge.judge"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
