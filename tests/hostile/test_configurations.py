"""Hostile settings, configuration files and command lines: a command comes as far as a model, or says one sentence.

A command runs as it does for a user, up to the first model that it would load, read or make; the address space may
grow by 1 GiB over all trials of a kind.
"""

import contextlib
import importlib
import io
import itertools
import resource
import warnings
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onereward_jax.cli import main as cli
from onereward_jax.cli.arguments import Number, path
from onereward_jax.config import schema
from onereward_jax.config.load import load_with_sources, options
from onereward_jax.config.option import about, is_mapping
from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.errors import UserError
from onereward_jax.weights.names import qwen2_5_vl
from tests.support.hostile import ALONE, Trial, Trials
from tests.support.preference_examples import records

ROOT = Path(__file__).parents[2]
# Commands with settings -> configurations of theirs, and what else they need.
CONFIGURED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (("quick", "fixed", "dynamic", "flux_fill:dynamic_1024", "flux_fill:fixed_lora_512"), ()),
    "reward-ascent": (("quick", "fixed"), ()),
    "sanity-checks": (("quick", "dynamic"), ()),
    "make-preferences": (("miniature/judge", "miniature/second_judge", "quick"), ()),
    "train-judge": (("miniature/judge", "miniature/task_judge", "judge_7b:7b"), ("--config.judge.data=preferences",)),
    "finetune": (("finetune", "finetune:flux_fill"), ("--config.data.source=images",)),
    "train-vae": (("miniature/vae",), ()),
    "train-base": (("miniature/base",), ()),
}
TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "2",
        "7",
        "-0.0",
        "0.5",
        "1.0",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1e308",
        "1e-320",
        "1e5",
    ),
    *(str(2**31 - 1), str(2**31), str(2**32 - 1), str(2**32), str(2**63), str(10**21), "9" * 4000, "9" * 5000),
    *("1_000", "٣", "0x10", "0b1", "1j", "true", "False", "None", "none", "null", "(1,2)", "128,256", "()", "[", "{}"),
    *("('a','b')", "a,b", "{'a': 1}", "(" * 3000, "-" * 5000 + "1", "/", ".", "..", "~", "/dev/zero", "/dev/null"),
    *("/proc/self/mem", "/etc/passwd", "/nowhere/at/all", "miniature/base", "miniature/judge", "miniature/judge/x"),
    *("a/b", "a/b:c", "https://x/y", "x" * 300, "x" * 9000, "😀" * 50, "\u202eabc", "a\nb", "a\tb", "\x1b[31m", "a\0b"),
    *("\udce9", "*", ".*", "(", "a{99999999999}", "(?P<a>x)(?P=b)", "{task}", "{prompt}", "{", "{task:99999999}"),
    *("fixed", "dynamic", "full", "ema", "opt_state", "float16", "cudnn", "image_fill", "object_removal"),
)
# Python values of a configuration file.
VALUES = (
    *("None", "True", "0", "-1", "0.5", "2**63", "10**21", "10**400", "-10**5000", "float('nan')", "float('inf')"),
    *("1e308", "-0.0", "1j", "'7'", "''", "'a\\0b'", "'\\ud800'", "'x' * 10**6", "b'x'", "()", "(1, 2)", "[1, [2]]"),
    *("{}", "{'a': 1}", "{1: 2}", "{'a': {'b': float('nan')}}", "{'a': object()}", "set()", "object()", "lambda: 0"),
    *("int", "len", "np.zeros(3)", "np.float32(0.5)", "np.int64(3)", "np.bool_(True)", "Fraction(1, 3)", "range(3)"),
    *("c.placeholder(int)", "c.required_placeholder(int)", "c.FieldReference(3)", "ConfigDict({'a': 1})"),
    *("1 / 0", "undefined", "open('/nowhere')", "__import__('nowhere')", "exit()", "exec('x = ' + '(' * 300)"),
    *("c.FieldReference(3) / 0", "(lambda f: f(f))(lambda f: f(f))", "{'image_fill': 1e-7}", "{'image_fill': 1}"),
)
FILE = """import numpy as np
from fractions import Fraction
from ml_collections import ConfigDict, config_dict as c
from onereward_jax.config import schema

def get_config():
    config = schema.{recipe}.config_dict()
    with config.unlocked():
{lines}
    return config
"""


# What loads, reads or makes a model.
MODELS = (
    ("fill.pipeline.FillPipeline", "from_pretrained"),
    ("judge.judge.Judge", "from_pretrained"),
    ("candidates.simulated_preferences", "load_component"),
    ("runs.miniature", "load_component"),
    ("runs.miniature", "init_params"),
    ("planning.topology", "open_topology"),
    ("annotation.serve", "bind"),  # of a server, which would not end
)


class Loading(Exception):
    """A command came as far as a model."""


def loading(*args: Any, **fields: Any) -> NoReturn:
    raise Loading


@pytest.fixture(autouse=True)
def no_models(monkeypatch, tmp_path):
    """A directory of its own, where models are not loaded and nothing takes a GiB."""
    for module, name in MODELS:
        monkeypatch.setattr(f"onereward_jax.{module}.{name}", loading)

    def create(config: dict, *args: Any, **fields: Any) -> NoReturn:
        qwen2_5_vl.module_from_config(dict(config) | {"image_token_id": 0})
        raise Loading

    monkeypatch.setattr("onereward_jax.judge.judge.Judge.create", create)
    for command in cli.commands():
        importlib.import_module(f"onereward_jax.cli.commands.{command.replace('-', '_')}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (64 + 32 * number, 64)).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("a red circle")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    write_records(tmp_path / "preferences", iter(records()), "folder")
    (tmp_path / "requests.jsonl").write_text('{"image": "images/0.png", "mask": "mask.png", "prompt": "x"}\n')
    return tmp_path


@pytest.fixture(autouse=True)
def one_gib(no_models):
    jax.devices()  # its threads are there
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tried(argv: list[str]) -> None:
    """Run a command; it ends well, in front of a model, or with one line on stderr.

    Raises:
      UserError: with that line.
      AssertionError: it ends in another way.
    """
    errors, code = io.StringIO(), 0
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
        contextlib.suppress(Loading, SystemExit),  # the latter of --help
    ):
        code = cli.main(argv)
    some_failed = argv[0] == "fill" and "could not be filled" in errors.getvalue()
    assert code in (0, 2) or (code == 1 and some_failed), f"exit code {code}"
    if code == 2:
        lines = errors.getvalue().splitlines()
        assert len(lines) == 1, lines
        raise UserError(lines[0])


def value_for(rng: np.random.Generator, known: Any) -> str:
    """A text for a setting: an extreme, or a limit and its neighbours."""
    limits = [limit for limit in (known.above, known.at_least, known.below, known.at_most) if limit is not None]
    if limits and rng.random() < 0.6:
        limit = limits[rng.integers(len(limits))]
        return str(limit if rng.random() < 0.7 else limit + int(rng.choice([1, -1])))
    if known.choices and rng.random() < 0.5:
        return str(known.choices[rng.integers(len(known.choices))])
    return TEXTS[rng.integers(len(TEXTS))]


def test_settings(tmp_path):
    trials = Trials("settings", short=60, long=2000)
    for trial in trials:
        rng = trial.rng
        command = list(CONFIGURED)[rng.integers(len(CONFIGURED))]
        configs, needed = CONFIGURED[command]
        spec = configs[rng.integers(len(configs))]
        with warnings.catch_warnings(action="ignore"):
            config, _ = load_with_sources(spec)
        fields, flat = options(type(config)), config.flat()
        argv = [command, "--config", spec, *needed, "--workdir", "run"]
        for name in rng.choice(list(flat), size=rng.choice([1, 1, 2, 3, 6]), replace=False):
            if name == "data.source":
                continue  # all images below a folder are read, as documented
            field = fields[next(known for known in fields if name == known or name.startswith(f"{known}."))]
            argv.append(f"--config.{name}={value_for(rng, about(field))}")
        with trial:
            tried(argv)
    trials.check()
    assert trials.accepted > trials.count / 20
    assert trials.refused > trials.count / 4
    assert {entry.name for entry in tmp_path.iterdir()} <= {
        "images",
        "mask.png",
        "requests.jsonl",
        "preferences",
        "run",
    }


def test_files_of_values(tmp_path):
    trials = Trials("configuration files", short=120, long=1500)
    for trial in trials:
        recipe = schema.RECIPES[trial.rng.integers(len(schema.RECIPES))]
        names = list(options(recipe)) + [name for name, _ in recipe()] + ["train.nothing", "nothing"]
        lines = [
            f"        config.{name} = {VALUES[trial.rng.integers(len(VALUES))]}"
            for name in trial.rng.choice(names, size=trial.rng.integers(1, 3), replace=False)
        ]
        file = tmp_path / f"{trial.number}.py"
        file.write_text(FILE.format(recipe=recipe.__name__, lines="\n".join(lines)))
        with warnings.catch_warnings(action="ignore"), trial:
            config, _ = load_with_sources(file)
            assert load_with_sources(file)[0] == config
        file.unlink()
    trials.check()
    assert trials.accepted > trials.count / 50
    assert trials.refused > trials.count / 4


def test_files_of_bytes(tmp_path):
    """A file of ours with bytes changed, cut, doubled or put in."""
    sources = [file.read_bytes() for file in sorted((ROOT / "configs").glob("*.py"))]
    trials = Trials("mutated configuration files", short=80, long=1000)
    for trial in trials:
        rng, content = trial.rng, bytearray(sources[trial.rng.integers(len(sources))])
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(content) + 1))
            some = content[start : start + int(rng.integers(1, 40))]
            kind = rng.integers(4)
            if kind == 0 and start < len(content):
                content[start] = rng.integers(256)
            elif kind == 1:
                content[start : start + len(some)] = b""
            elif kind == 2:
                content[start:start] = some
            else:
                content[start:start] = rng.bytes(3)
        file = tmp_path / "mutated.py"
        file.write_bytes(content[: rng.integers(len(content) + 1)] if rng.random() < 0.3 else content)
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), trial:
            load_with_sources(f"{file}:dynamic_1024" if rng.random() < 0.5 else file)
    trials.check()
    assert trials.refused > trials.count / 4


# --------------------------------------------------------------------------------------------------- command lines

# No output outside the test's own directory.
_OUTPUTS = {"--workdir", "--out", "--docs", "--json", "--report", "--to", "--sheet", "--keep", "--votes"}
_NAMES = ("x", "x/y", "x.png", "images", "images/0.png", "run", "x" * 300, "é", "a b", "-x", "", " ")
_RIGHT = {
    "--config": ("quick",),
    "--model": ("miniature/base", "miniature/judge"),
    "--image": ("images/0.png", "images", "requests.jsonl"),
    "--mask": ("mask.png",),
    "--first": ("images/0.png",),
    "--second": ("images/1.png",),
    "--prompt": ("a red circle",),
    "--topology": ("v5p:2x2x1",),
    "--out": ("x.png", "new"),
    "--workdir": ("run", "new"),
}
_texts = st.sampled_from(TEXTS) | st.text(max_size=20)


def name_of(action: Any) -> str:
    return action.option_strings[0] if action.option_strings else action.dest


def right_value(command: str, action: Any) -> st.SearchStrategy[str]:
    """Of an argument that is right by itself."""
    if name_of(action) == "--config" and command in CONFIGURED:
        return st.sampled_from(CONFIGURED[command][0])
    if action.choices:
        return st.sampled_from([str(choice) for choice in action.choices])
    if isinstance(action.type, Number):
        limits = action.type.limits
        edges = [edge for edge in (limits.above, limits.at_least, limits.below, limits.at_most) if edge is not None]
        return st.sampled_from([str(edge) for edge in edges])
    return st.sampled_from(_RIGHT.get(name_of(action), ("x", "images", "miniature/base")))


def wrong_value(command: str, action: Any) -> st.SearchStrategy[str]:
    names = st.sampled_from(_NAMES)
    if name_of(action) in _OUTPUTS:
        return names
    if isinstance(action.type, Number):
        return right_value(command, action).map(lambda edge: str(float(edge) + 1)) | _texts
    return names | _texts if action.type is path else _texts


@st.composite
def command_lines(draw: Any) -> list[str]:
    command = draw(st.sampled_from([*cli.commands(), *cli.RENAMED]))
    name = cli.RENAMED.get(command, command).replace("-", "_")
    parser = ArgumentParser(add_help=False)
    importlib.import_module(f"onereward_jax.cli.commands.{name}").add_arguments(parser)
    argv = [command]
    for action in parser._actions:
        if draw(st.integers(0, 19 if action.required else 1)) == 0:
            continue
        option = name_of(action)
        value = right_value if draw(st.integers(0, 9)) else wrong_value
        if action.nargs == 0:
            argv.append(option)
        elif not action.option_strings:
            argv.append(draw(value(command, action)))
        elif draw(st.booleans()):
            argv += [option, draw(value(command, action))]
        else:
            argv.append(f"{option}={draw(value(command, action))}")
    if draw(st.integers(0, 9)) == 0:
        argv.insert(draw(st.integers(0, len(argv))), draw(_texts))
    return argv


def test_command_lines(tmp_path):
    trials = Trials("command lines", short=80, long=3000)
    numbers = itertools.count()

    @settings(
        max_examples=trials.count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines())
    def run(argv):
        if (number := next(numbers)) == int(ALONE or number):
            with Trial(trials, number):
                tried(argv)

    run()
    trials.count = next(numbers)
    trials.check()
    assert trials.refused > trials.count / 4


def test_it_is_the_mapping_fields_that_have_names_inside():
    """Names of `flat` that are no option belong to a mapping: `test_settings` reaches what is in them."""
    for recipe in schema.RECIPES:
        known = options(recipe)
        for name in recipe().flat():
            assert name in known or any(name.startswith(f"{other}.") and is_mapping(known[other]) for other in known)
