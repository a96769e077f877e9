"""Results that are kept as they are made, so that an evaluation which was killed goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from onereward_jax.atomic_files import make_directory, remove, write_json
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import read_json
from onereward_jax.parallel import hosts

_ABOUT = "about.json"


def as_json(value: Any) -> Any:
    """The value as it is read back from a file: tuples are lists."""
    return json.loads(json.dumps(value))


class Kept:
    """A directory of results that all depend on the same inputs.

    directory/
      about.json    what the results depend on; written before the first
      ...           the results, each a file that appears whole or not at all

    Of several processes, all call this alike, and share the directory.

    Attributes:
      directory: where the results lie.
    """

    def __init__(self, directory: Path, about: dict[str, Any], replace: bool = False):
        """
        Args:
          about: JSON values.
          replace: whether results of other inputs are removed; otherwise they are refused.

        Raises:
          UserError: there are results of other inputs.
        """
        self.directory = directory
        hosts.on_primary(lambda: self._claim(as_json(about), replace))

    def _claim(self, about: dict[str, Any], replace: bool) -> None:
        file = self.directory / _ABOUT
        earlier = read_json(file, f"delete {self.directory}") if file.is_file() else about
        if earlier != about:
            name = next(name for name in {**about, **earlier} if about.get(name) != earlier.get(name))
            if not replace:
                raise UserError(
                    f"{self.directory} holds results of other inputs, differing in {name}"
                    f" ({shown(earlier.get(name), 60)} there, {shown(about.get(name), 60)} now): choose another --out,"
                    " or delete it"
                )
            remove(self.directory)
        make_directory(self.directory)
        write_json(file, about)

    def missing(self, names: list[str]) -> list[str]:
        """Those of the files that are not there yet; the same in all processes."""
        return hosts.on_primary(lambda: [name for name in names if not (self.directory / name).is_file()])

    def write(self, name: str, value: Any) -> None:
        """Write a JSON value; of several processes, one calls this."""
        path = self.directory / name
        make_directory(path.parent)
        write_json(path, value)

    def read(self, name: str) -> Any:
        """Read a JSON object that `write` wrote."""
        path = self.directory / name
        return read_json(path, f"delete {path}")
