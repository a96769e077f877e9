"""Types of a command's arguments, for argparse's `type`: ranges are said in the words of the settings.

    parser.add_argument("--seed", type=like(Recipe, "seed"))
    parser.add_argument("--num_images", type=number(int, at_least=1, at_most=1000))
    parser.add_argument("--out", type=path)

Every argument has one of these types, or `choices`; a test looks at all commands. That an argument is text that can be
written again is checked for all of them at once, in `main`.
"""

import argparse
import dataclasses
from typing import Any

from onereward_jax.buckets import is_bucket
from onereward_jax.config import option
from onereward_jax.config.option import Option, Settings, conform, read_plain
from onereward_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Number:
    """An argparse type: a number within limits.

    Attributes:
      kind: int or float.
      limits: as a setting has them.
    """

    kind: type
    limits: Option

    def __call__(self, text: str) -> Any:
        try:
            return conform("it", self.kind, self.limits, read_plain(self.kind, text))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def number(kind: type, **limits: Any) -> Number:
    """A number of its own; limits are `above`, `below`, `at_least` and `at_most` of `config.option.Option`."""
    return Number(kind, Option(**limits))


def like(group: type[Settings], name: str) -> Number:
    """A number that means what a setting does, and has its limits: `like(Evaluation, "num_steps")`."""
    return Number(*option.like(group, name))


def path(text: str) -> str:
    """A file, a directory or a repository, there or to be made; empty, it would be the current directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a path")
    return text


def local_path(text: str) -> str:
    """A path that is not in a bucket."""
    if is_bucket(text):
        raise argparse.ArgumentTypeError(f"{text} is in a bucket, which is not for this: give a path of this machine")
    return path(text)


def text(text: str) -> str:
    """Any text."""
    return text
