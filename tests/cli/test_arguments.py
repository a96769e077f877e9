"""Arguments of all commands: each has a range or a type of ours, and what is outside is one sentence."""

import argparse
import importlib

import pytest

from onereward_jax.cli import arguments
from onereward_jax.cli import main as cli
from onereward_jax.cli.commands import fill
from onereward_jax.config.schema import Evaluation

COMMANDS = list(cli.commands())


def actions_of(command: str) -> list[argparse.Action]:
    """The arguments of a command that take a value."""
    module = importlib.import_module(f"onereward_jax.cli.commands.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return [action for action in parser._actions if action.nargs != 0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_range_or_a_type(command):
    for action in actions_of(command):
        known = (arguments.path, arguments.local_path, arguments.text, fill._adapter)
        assert action.choices or isinstance(action.type, arguments.Number) or action.type in known, (
            action.option_strings
        )
        if isinstance(action.type, arguments.Number):
            limits = action.type.limits
            assert limits.above is not None or limits.at_least is not None, action.option_strings
            assert limits.below is not None or limits.at_most is not None, action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_of_a_command_that_is_empty(command, capsys):
    for action in actions_of(command):
        if action.type in (arguments.path, arguments.local_path):
            assert cli.main([command, action.option_strings[0], ""]) == 2
            error = capsys.readouterr().err
            assert "it is empty: give a path" in error
            assert error.count("\n") == 1
        if action.type is arguments.local_path:
            assert cli.main([command, action.option_strings[0], "gs://bucket/out"]) == 2
            assert "gs://bucket/out is in a bucket" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["fill", f"--seed={2**63}"],
            "from 0 to 4,294,967,295, not 9223372036854775808",
        ),
        (["fill", "--seed=-1"], "--seed: it must be a whole number from 0"),
        (["fill", "--seed=1.5"], "--seed: it must be a whole number from 0 to 4,294,967,295, not '1.5'"),
        (["fill", "--num_inference_steps=0"], "it must be a whole number from 1 to 10,000, not 0"),
        (["fill", "--true_cfg=inf"], "it must be a number from 0 to 1,000, not inf"),
        (["fill", "--max_sequence_length=513"], "it must be a whole number from 1 to 512, not 513"),
        (["fill", "--lora=a=nan"], "it must be a number from -1,000 to 1,000, not nan"),
        (["fill", "--lora==1"], "it is empty: give a path"),
        (["evaluate-judge", "--bad_share=nan"], "it must be a number from 0 to 1, not nan"),
        (["evaluate-judge", "--batch_size=0"], "it must be a whole number from 1 to 65,536, not 0"),
        (["convert-preferences", "--bad_share=-1"], "it must be a number from 0 to 1, not -1.0"),
        (["plan", f"--batch={10**11}"], "it must be a whole number from 1 to 65,536, not 100000000000"),
        (["judge", "--prompt=caf\udce9"], "the argument '--prompt=caf\\udce9' is no UTF-8: give another"),
        (["judge", "--prompt", "a" * 10_001], "is longer than 10,000 characters: give another"),
        (["judge", "--prompt=a\0b"], "holds a NUL: give another"),
        (["judge", "--a\nb"], "--a b: see `onereward judge --help`"),
        (["a\nb"], "there is no command 'a\\nb'"),
        (["config", "--config", "quick", "--config.a\nb=1"], "has no field 'a\\nb'"),
        (["config", "--config", "x" * 5000 + ".py"], " is too long for a path: check it"),
    ],
)
def test_what_is_refused(argv, words, capsys):
    required = {"fill": ("--model", "m", "--image", "i", "--out", "o.png"), "plan": ("--topology", "v5p:2x2x1")}
    required["evaluate-judge"] = ("--model", "m", "--data", "d")
    required["convert-preferences"] = ("--from", "a", "--to", "b")
    required["judge"] = ("--model", "m", "--first", "a", "--second", "b", "--task", "image_fill")
    assert cli.main([argv[0], *required.get(argv[0], ()), *argv[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_last_of_many_seeds(capsys):
    argv = ["fill", "--model", "m", "--image", "i", "--out", "o.png", f"--seed={2**32 - 2}", "--num_images=3"]
    assert cli.main(argv) == 2
    assert "the last image's seed must be a whole number from 0 to" in capsys.readouterr().err


def test_numbers_are_those_of_the_settings():
    assert arguments.like(Evaluation, "num_steps")("10000") == 10_000
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 10,000, not '1e3'"):
        arguments.like(Evaluation, "num_steps")("1e3")
    assert fill._adapter("a=b") == ("a=b", 1.0)
    assert fill._adapter("a=b=0.5") == ("a=b", 0.5)
