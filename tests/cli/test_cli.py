"""The command line: what works, and one sentence with exit code 2 for what can't."""

import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereward_jax.cli import main as cli
from onereward_jax.config.load import load_config
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.errors import Interrupted, UserError

CONFIG = """
from onereward_jax.config import schema

def get_config(variant="fixed"):
    if variant not in ("fixed", "dynamic"):
        raise ValueError(f"there is no variant {variant!r}: choose fixed or dynamic")
    config = schema.RewardFeedback.config_dict()
    config.algorithm = variant
    return config
"""

# Stands in for a command, in the package's namespace as those in onereward_jax/cli/commands/ are.
COMMAND = '''
"""Trains a thing.

Longer words about it.
"""
from onereward_jax.cli.commands import config_arguments
from onereward_jax.config.schema import RewardFeedback

def add_arguments(parser):
    config_arguments(parser, RewardFeedback)

def run(args):
    print(args.config.train.num_steps, args.config.model.attention_blocks, args.config_file, args.workdir)
'''


@pytest.fixture
def config_file(tmp_path) -> str:
    path = tmp_path / "x.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Adds a module to onereward_jax/cli/commands/ for this test, without writing there."""

    def add(source: str) -> str:
        package = tmp_path / "package"
        folder = package / "cli" / "commands"
        folder.mkdir(parents=True)
        (folder / "try_it.py").write_text(textwrap.dedent(source))
        monkeypatch.setattr(cli, "PACKAGE", package)
        monkeypatch.setattr("onereward_jax.cli.commands.__path__", [str(folder)])
        monkeypatch.delitem(sys.modules, "onereward_jax.cli.commands.try_it", raising=False)
        return "try-it"

    yield add
    sys.modules.pop("onereward_jax.cli.commands.try_it", None)


def one_sentence(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("onereward: ")
    return captured.err.strip()


# ---------------------------------------------------------------------------------------------- the command line


def test_a_command_gets_its_configuration(command, config_file, capsys):
    argv = [command(COMMAND), "--config", f"{config_file}:dynamic", "--config.train.num_steps=7", "--workdir", "w"]
    assert cli.main([*argv, "--config.model.attention_blocks", "128,256"]) == 0
    assert capsys.readouterr().out == f"7 (128, 256) {config_file}:dynamic w\n"


def test_help(command, capsys):
    name = command(COMMAND)
    assert cli.main(["--help"]) == 0
    assert "  try-it  Trains a thing.\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Longer words about it." in text
    assert "--workdir DIR" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "there is no command trian: choose one of try-it"),
        (["try-itt"], "did you mean try-it?"),
        (["--config=x.py", "try-it"], "the command comes first"),
        (["try-it"], "required: --config, --workdir"),
        (["try-it", "--config=CONFIG"], "required: --workdir"),
        (["try-it", "--config=CONFIG", "--workdir=w", "--wrong"], "unrecognized arguments: --wrong"),
        (["try-it", "--config=missing.py", "--workdir=w"], "missing.py does not exist"),
        (["try-it", "--config=CONFIG:best", "--workdir=w"], "there is no variant 'best'"),
        (["try-it", "--config.seed=1", "--config=CONFIG", "--workdir=w"], "--config comes before its overrides"),
        (["try-it", "--config=CONFIG", "--config.sed=1", "--workdir=w"], "did you mean seed?"),
        (["try-it", "--config=CONFIG", "--config.seed", "--workdir=w"], "--config.seed has no value"),
        (["try-it", "--config=CONFIG", "--config.model.attention_blocks=1", "--workdir=w"], "two multiples of 128"),
    ],
)
def test_mistakes_are_one_sentence(command, config_file, capsys, argv, words):
    command(COMMAND)
    assert cli.main([word.replace("CONFIG", config_file) for word in argv]) == 2
    assert words in one_sentence(capsys)


def test_overrides_without_a_configuration(command, capsys):
    assert cli.main([command("def run(args): pass"), "--config.a=1"]) == 2
    assert "takes no configuration" in one_sentence(capsys)


RAISES = """
import json
from onereward_jax.errors import UserError
def run(args):
    {}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise UserError('the mask is empty: draw one')", "the mask is empty: draw one"),
        ("raise FileNotFoundError('no weights in x: download them')", "no weights in x: download them"),
        ("open('/nowhere/file')", "/nowhere/file does not exist"),
        ("open('/')", "/ is a directory and not a file"),
        ("open('/dev/null/file')", "/dev/null/file is no path, since a part of it is a file"),
        ("import os; os.mkdir('/dev')", "/dev exists already"),
        ("raise PermissionError(13, 'Permission denied', '/secret')", "/secret can't be opened (permission denied)"),
        ("raise PermissionError('no access to the store')", "no access to the store"),
    ],
)
def test_errors_for_the_user(command, capsys, body, words):
    assert cli.main([command(RAISES.format(body))]) == 2
    assert words in one_sentence(capsys)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_tokenizer_without_its_files(command, capsys, tmp_path, name):
    """transformers raises errors of many lines for both, or makes a vocabulary of two words."""
    (tmp_path / "empty").mkdir()
    body = f"from onereward_jax.weights.tokenizer import load_tokenizer; load_tokenizer('{tmp_path / name}')"
    assert cli.main([command(RAISES.format(body))]) == 2
    assert f"the tokenizer in {tmp_path / name} has no tokenizer.json" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("json.loads('{')", ValueError),  # raised by a library
        ("raise OSError(5, 'Input/output error', 'x')", OSError),  # not what the command line says
        ("int('x')", ValueError),  # raised by an expression of ours
        ("raise ValueError('x')", ValueError),
        ("import numpy as np; np.zeros(3).reshape(2)", ValueError),
        ("import jax.numpy as jnp; jnp.zeros(3).reshape(2)", TypeError),
        ("import jax.numpy as jnp; jnp.concatenate([jnp.zeros(3), jnp.zeros((2, 2))])", (ValueError, TypeError)),
        ("import jax.numpy as jnp; jnp.stack([])", ValueError),
        ("raise KeyError('x')", KeyError),
    ],
)
def test_defects_keep_their_traceback(command, body, kind):
    with pytest.raises(kind):
        cli.main([command(RAISES.format(body))])


def test_traceback_on_request(command, monkeypatch):
    monkeypatch.setenv("ONEREWARD_TRACEBACK", "1")
    with pytest.raises(UserError, match="empty"):
        cli.main([command(RAISES.format("raise UserError('empty')"))])


def test_an_interrupted_run_has_its_own_code(command, capsys):
    body = "from onereward_jax.errors import Interrupted; raise Interrupted(15, 7, 'runs/x')"
    assert cli.main([command(RAISES.format(body))]) == 143
    assert one_sentence(capsys).endswith(
        "stopped by SIGTERM at step 7, saved in runs/x: run the same command to resume"
    )
    with pytest.raises(SystemExit) as stop:
        raise Interrupted(2, 1, "w")
    assert stop.value.code == 130


def test_a_full_disk_has_its_own_code(command, capsys):
    assert cli.main([command(RAISES.format("raise OSError(28, 'No space left on device', 'runs/x')"))]) == 75
    assert one_sentence(capsys).endswith(
        "No space left on device at runs/x: make room, then give the same command again"
    )


# ----------------------------------------------------------------------------------------------- the real program


def test_the_commands_there_are_light_and_documented():
    """Each command's first docstring line is its help; its module imports nothing heavy."""
    known = cli.commands()
    assert all(len(summary) > 10 and summary.endswith(".") for summary in known.values()), known
    modules = [f"onereward_jax.cli.commands.{name.replace('-', '_')}" for name in known]
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        "print([name for name in ('jax', 'flax', 'numpy', 'grain', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("old", list(cli.RENAMED))
def test_an_old_command_name_is_accepted_with_a_warning(old, capsys):
    with pytest.warns(UserWarning, match=f"onereward {cli.RENAMED[old]}"), pytest.raises(SystemExit):
        cli.main([old, "--help"])
    assert f"usage: onereward {cli.RENAMED[old]}" in capsys.readouterr().out


TINY = "quick"


@pytest.fixture
def evaluated(monkeypatch) -> list:
    """What `onereward evaluate` was to evaluate: (configuration, workdir), without JAX."""
    calls: list = []
    stand_in = types.ModuleType("onereward_jax.evaluation.evaluate")
    stand_in.evaluate = lambda *arguments: calls.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return calls


def test_evaluate_before_training_makes_nothing(evaluated, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert cli.main(["evaluate", "--config", TINY, "--workdir", str(workdir)]) == 2
    assert "run `onereward train` with this --workdir first" in one_sentence(capsys)
    assert not workdir.exists()
    assert not evaluated


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "say what to evaluate"),
        (["--workdir", "w", "--policy", "p"], "say what to evaluate"),
        (["--policy", "p"], "--policy needs requests to answer: give them with --data"),
        (["--policy", "p", "--data", "nowhere"], "p is a whole model: name what to compare it with, --baseline"),
        (["--policy", "p", "--baseline", "b", "--data", "nowhere"], "there are no requests at nowhere"),
        (["--policy", ".", "--data", "nowhere"], ". is a part of a model, and no run says of which"),
    ],
)
def test_evaluate_is_told_what(given, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *given]) == 2
    assert words in one_sentence(capsys)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_otherwise_than_planned(evaluated, tmp_path, capsys):
    claim_workdir(tmp_path, load_config(TINY))
    (tmp_path / "training.json").write_text("{}")
    argv = ["evaluate", "--config", TINY, "--workdir", str(tmp_path)]
    assert cli.main([*argv, "--config.evaluation.weights=ema", "--config.preferences.part_size=10"]) == 0
    ((config, workdir),) = evaluated
    assert (config.evaluation.weights, config.preferences.part_size, workdir) == ("ema", 10, tmp_path)
    assert cli.main([*argv, "--config.rl.num_steps=9"]) == 2
    assert "differing in rl.num_steps (8 there, 9 now)" in one_sentence(capsys)


def test_evaluate_changes_nothing_that_an_earned_run_is_trained_by(evaluated, tmp_path, capsys):
    """Else config.json would have it, and the run's own train command would be refused."""
    earned = {"algorithm": "earned", "evaluation.other_judge": "owner/other", "evaluation.every": "10"}
    config = load_config(TINY, earned)
    claim_workdir(tmp_path, config, config.only_measuring)
    (tmp_path / "training.json").write_text("{}")
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    argv = ["evaluate", "--config", TINY, "--workdir", str(tmp_path)]
    argv += [f"--config.{name}={value}" for name, value in earned.items()]
    assert cli.main([*argv, "--config.evaluation.scenes_while_training=8"]) == 2
    assert "differing in evaluation.scenes_while_training" in one_sentence(capsys)
    assert cli.main([*argv, "--config.alarms.seeds=1"]) == 0
    assert len(evaluated) == 1
    claim_workdir(tmp_path, config, config.only_measuring)


def test_fast_in_a_process_of_its_own(config_file):
    """Errors come before any heavy import: exit code 2, one line, well under a second of processor time."""
    argv = [sys.executable, "-X", "importtime", "-m", "onereward_jax.cli.main"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    for words, code in ((["--help"], 0), (["wrong"], 2)):
        result = subprocess.run([*argv, *words], capture_output=True, text=True, env=environment)
        assert result.returncode == code
        assert "| jax" not in result.stderr
        last = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
        assert len(last) == (1 if code else 0), last


def test_paths_that_no_system_takes_are_one_sentence(tmp_path, capsys):
    from onereward_jax.cli.exit_codes import guarded

    (tmp_path / "loop").symlink_to("loop")
    for wrong in ("a\0b", tmp_path / "loop", tmp_path / ("n" * 300)):
        for use in (
            lambda path: Path(path).read_bytes(),
            lambda path: Path(path).resolve(strict=True),
            os.stat,
            os.listdir,
        ):
            assert guarded(lambda use=use, wrong=wrong: use(wrong)) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert len(said) < 300
    with pytest.raises(ValueError, match="ours"):
        guarded(lambda: int("ours"))


def test_a_message_is_one_line_whatever_it_quotes():
    error = UserError(f"a\nb\u2028c\x1b[2J\ud800 {'x' * 5000} is no name: give another")
    assert str(error).startswith("a\\nb\\u2028c\\x1b[2J\\ud800 xxx")
    assert str(error).endswith("x is no name: give another")
    assert len(str(error)) <= 910


@given(st.text(max_size=3000))
def test_any_message_is_one_line(text):
    said = str(UserError(text))
    assert said.isprintable()
    assert len(said) <= 910
    assert said == text or not text.isprintable() or len(text) > 900
