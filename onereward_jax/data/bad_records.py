"""Bad records of a user's data: named, passed over, and too many of them an error."""

import sys

from onereward_jax.errors import UserError

_NAMED = 10  # bad records that are named; the rest is counted


class Skipped:
    """Counts what is bad, and names it on stderr as it is met.

    Args:
      what, where: for messages: "records", and the path of the data.
      share: of them, that may be bad.
    """

    def __init__(self, what: str, where: str, share: float):
        self._what, self._where, self._share = what, where, share
        self._bad: list[str] = []

    def add(self, sentence: str) -> None:
        """What is wrong with one of them."""
        self._bad.append(sentence)
        if len(self._bad) <= _NAMED:
            print(f"skipped: {sentence}", file=sys.stderr)

    def end(self, total: int) -> None:
        """
        Raises:
          UserError: more of all `total` are bad than may be.
        """
        count = len(self._bad)
        if count > _NAMED:
            print(f"skipped: {count - _NAMED} more {self._what} of {self._where}", file=sys.stderr)
        if count > self._share * total:
            raise UserError(
                f"{count} of {total} {self._what} in {self._where} are bad, more than the share of {self._share:g}"
                f" that may be: correct them; the first is {self._bad[0]}"
            )
