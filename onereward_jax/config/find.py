"""Where a configuration or a packaged model lies that is asked for by its name alone.

Configurations and the packaged miniature lie beside the package in a checkout, and in it once it is installed from a
wheel: `onereward_jax/configs/` and `onereward_jax/miniature/`.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from onereward_jax.buckets import reading
from onereward_jax.config.option import did_you_mean
from onereward_jax.errors import UserError, shown_name
from onereward_jax.given_files import open_file

PACKAGE = Path(__file__).resolve().parents[1]
# Where `configs` and `miniature` are looked for after the working directory.
_PLACES = (PACKAGE, PACKAGE.parent)
# Variants of the file configs/tiny.py of earlier releases -> the files that took their place.
_TINY = {
    "": "quick",
    **{name: name for name in ("quick", "fixed", "dynamic")},
    **{name: f"miniature/{name}" for name in ("vae", "base", "judge", "one_judge", "task_judge")},
    **{f"{number}_judge": f"miniature/{number}_judge" for number in ("second", "third", "fourth", "fifth")},
}


def find_config(name: str | os.PathLike) -> tuple[Path, str]:
    """The file of a configuration, and its variant, "" for none.

    Args:
      name: a path such as `configs/flux_fill.py:dynamic_1024`, or a name such as `quick`, `flux_fill:dynamic_1024` and
        `miniature/vae`: of a file in the working directory's configs/, or in configs/ beside the package or in it.

    Raises:
      FileNotFoundError: there is no such file.
      UserError, IsADirectoryError: it is a pipe, or a directory.
    """
    text, _, variant = os.fspath(name).partition(":")
    if not text:
        raise UserError("the configuration has no name: give one such as quick, or a file")
    path = Path(text)
    if not path.suffix:
        for found in (Path("configs") / f"{text}.py", *_packaged(f"configs/{text}.py")):
            if found.is_file():
                return found, variant
    if path.is_file():
        return path, variant
    if path.name == "tiny.py" and variant in _TINY:
        beside = path.parent / f"{_TINY[variant]}.py"
        for found in (beside, *_packaged(f"configs/{_TINY[variant]}.py")):
            if found.is_file():
                warnings.warn(f"{os.fspath(name)} is now the configuration {_TINY[variant]}", stacklevel=2)
                return found, ""
    if path.suffix and os.path.lexists(path):
        open_file(path).close()  # says what it is, if it is no file
    beside_it = [str(file) for file in path.parent.glob("*.py")] if path.suffix and path.parent.is_dir() else []
    raise FileNotFoundError(
        f"configuration {shown_name(text)} does not exist{did_you_mean(text, beside_it or list_configs())}"
    )


def list_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    for place in _PLACES:
        directory = place / "configs"
        if files := sorted(directory.rglob("*.py")):
            names = [str(file.relative_to(directory).with_suffix("")) for file in files]
            return [name for name in names if not Path(name).name.startswith("_")]
    return []


def find_model(path: str | os.PathLike) -> Path:
    """Return a model's directory: the path itself if it exists, else the packaged model of that name, such as
    "miniature/base"; the path itself if there is neither. One in a bucket is copied first."""
    given = reading(path)
    if given.exists() or given.parts[:1] != ("miniature",):
        return given
    return next((found for found in _packaged(given) if found.exists()), given)


def _packaged(path: str | os.PathLike) -> Iterator[Path]:
    return (place / path for place in _PLACES)
