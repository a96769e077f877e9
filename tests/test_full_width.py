"""`benchmarks/full_width.py`: its inputs are what it says, and its commands parse. The run itself takes long."""

import argparse
import importlib.util
import math
import signal

import numpy as np
import pytest
from PIL import Image

from benchmarks import full_width, opened_elsewhere, photographs
from onereward_jax.cli.main import commands, split_overrides
from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.data.requests.read import check_requests
from onereward_jax.data.requests.source import Requests
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from onereward_jax.tasks import TASKS

SIDE = 64


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    photographs.write_requests(root / "requests", photographs.TO_TRAIN)
    photographs.write_requests(root / "held_out", photographs.HELD_OUT)
    photographs.write_preferences(root / "preferences", SIDE)
    return root


def test_requests_are_of_all_tasks_and_several_buckets(inputs):
    for name in ("requests", "held_out"):
        checked = check_requests(inputs / name)
        assert not checked.bad, checked.bad
        assert {task for request in checked.requests for task in request.tasks} == set(TASKS)
    checked = check_requests(inputs / "requests")
    assert any(side % 2 for request in checked.requests for side in request.size)
    overrides = {"data.resolution": 256, "data.source": str(inputs / "requests"), "train.batch_size": 2}
    config = load_config(full_width.POLICY, overrides)
    source = Requests(config, checked.requests)
    assert source.sizes == ((192, 320), (256, 256), (320, 192))
    assert 0 < source.target_share < 1


def test_one_image_is_turned_by_its_exif_tag(inputs):
    (cut,) = [cut for cut in photographs.TO_TRAIN if cut.extra.get("turned")]
    path = inputs / "requests" / "images" / f"{photographs.TO_TRAIN.index(cut):02d}.jpg"
    left, top, right, bottom = cut.box
    with Image.open(path) as stored:
        assert stored.size == (bottom - top, right - left)
    upright = np.asarray(photographs.photograph(cut.photograph).crop(cut.box)).astype(int)
    assert np.abs(read_image(path).astype(int) - upright).mean() < 4  # of JPEG


def test_preferences_have_pairs_of_every_task(inputs):
    records = list(open_records(inputs / "preferences"))
    assert {record.task for record in records} == set(TASKS)
    assert all(record.pairs for record in records)


def test_no_photograph_is_the_proving_grounds(monkeypatch):
    monkeypatch.setitem(photographs.PHOTOGRAPHS, "cat", ("skimage", "data/chelsea.png"))
    with pytest.raises(UserError):
        photographs.photograph("cat")


def test_the_commands_of_its_steps_parse(tmp_path, monkeypatch):
    steps = {}
    monkeypatch.setattr(full_width.Chain, "step", lambda chain, name, words, *_, **__: steps.update({name: words}))
    chain = full_width.Chain(full_width.arguments().parse_args([f"--workdir={tmp_path}", f"--side={SIDE}"]))
    chain.run()
    ours = [words[1:] for words in steps.values() if words[0] == "onereward"]
    assert {words[0] for words in ours} == {"requests", "train-judge", "train", "evaluate", "export", "check"}
    for name, *words in ours:
        assert name in commands()
        module, parser = (
            importlib.import_module(f"onereward_jax.cli.commands.{name.replace('-', '_')}"),
            argparse.ArgumentParser(),
        )
        module.add_arguments(parser)
        rest, overrides = split_overrides(words)
        args = parser.parse_args(rest)
        if overrides:
            load_config(args.config, overrides, args.config_recipes)
    for words in steps.values():
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1])


def test_a_step_is_made_once_and_a_killed_one_is_killed(tmp_path, capsys):
    chain = full_width.Chain(full_width.arguments().parse_args([f"--workdir={tmp_path}"]))
    writes = f"import pathlib, time; pathlib.Path({str(tmp_path / 'there')!r}).touch(); time.sleep(60)"
    chain.step("killed", ["-c", writes], kill_at="there")
    chain.step("said", ["-c", "print(1)"], lambda: {"figure": 1})
    again = full_width.Chain(full_width.arguments().parse_args([f"--workdir={tmp_path}"]))
    again.step("said", ["-c", "raise SystemExit(1)"])
    assert again.done["said"]["figure"] == 1
    assert 0 < again.done["killed"]["seconds"] < 60
    with pytest.raises(UserError, match="failed ended with 3"):
        again.step("failed", ["-c", "raise SystemExit(3)"])
    assert "failed" not in again.done
    assert capsys.readouterr().out.count("| killed |") == 1
    with pytest.raises(UserError, match=r"steps\.json"):
        full_width.Chain(full_width.arguments().parse_args([f"--workdir={tmp_path}", "--side=64"]))


def test_a_step_ends_with_the_benchmark(tmp_path, monkeypatch):
    started = []

    def stopped(process, _):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(full_width, "_ended", stopped)
    chain = full_width.Chain(full_width.arguments().parse_args([f"--workdir={tmp_path}"]))
    with pytest.raises(KeyboardInterrupt):
        chain.step("long", ["-c", "import time; time.sleep(60)"])
    assert started[0].returncode == -signal.SIGKILL


def test_an_export_fails_where_a_figure_is_missing_or_no_number():
    good = {"model": 1e-5, "adapter": 1e-5, "adapter_moves_the_base_by": 0.1}
    assert not opened_elsewhere.failures(good, judged=False)
    assert opened_elsewhere.failures(good | {"adapter": math.nan}, judged=False) == ["adapter"]
    assert opened_elsewhere.failures(good | {"adapter_moves_the_base_by": 0.0}, judged=False)
    assert opened_elsewhere.failures(good, judged=True) == ["judge", "judge_adapter_moves_p_yes_by"]
