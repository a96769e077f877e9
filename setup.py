"""A wheel carries the configurations and the packaged miniature in the package; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = ("configs", "miniature")


class BuildWithData(build_py):
    """Copies `DATA` into the package that is built. An editable install finds them at the top of the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in DATA:
                target = Path(self.build_lib) / "onereward_jax" / name
                shutil.rmtree(target, ignore_errors=True)  # left in build/ by an earlier build
                shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithData})
