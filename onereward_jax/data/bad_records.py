"""Skips bad records in a user's data, reporting each; too many are an error."""

import sys

from onereward_jax.config.option import Option, conform
from onereward_jax.errors import UserError, printable
from onereward_jax.parallel import hosts

_NAMED = 10  # bad records reported one by one; the rest are counted


class Skipped:
    """Counts bad records and reports them on stderr, of several processes the primary alone.

    Args:
      noun, where: for messages: "records", and the path of the data.
      share: the share of the records that may be bad, from 0 to 1.
    """

    def __init__(self, noun: str, where: str, share: float):
        self._noun, self._where = noun, where
        self._share = conform(f"the share of bad {noun}", float, Option(at_least=0, at_most=1), share)
        self._bad: list[str] = []

    def add(self, sentence: str) -> None:
        """Skip one record; the sentence says what is wrong with it."""
        sentence = printable(sentence)
        self._bad.append(sentence)
        if len(self._bad) <= _NAMED and hosts.is_primary():
            print(f"skipped: {sentence}", file=sys.stderr)

    def end(self, total: int) -> None:
        """Report the count after all `total` records were read.

        Raises:
          UserError: too large a share is bad.
        """
        count = len(self._bad)
        if count > _NAMED and hosts.is_primary():
            print(f"skipped: {count - _NAMED} more {self._noun} in {self._where}", file=sys.stderr)
        if count > self._share * total:
            raise UserError(
                f"{count} of {total} {self._noun} in {self._where} are bad, more than the allowed share of"
                f" {self._share:g}: correct them; the first is {self._bad[0]}"
            )
