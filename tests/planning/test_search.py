"""`onereward plan --search`: which plans are compiled, which are skipped, and which is the cheapest."""

import json
import types

import jax
import pytest

from onereward_jax.cli import main as cli
from onereward_jax.cli.commands.plan import DOES_NOT_FIT
from onereward_jax.config.load import load_config
from onereward_jax.planning import search as searching
from onereward_jax.planning import topology
from onereward_jax.planning.compiling import CompilerError
from onereward_jax.planning.search import (
    REMAT,
    Choice,
    attention_blocks,
    cheapest,
    choices,
    fastest,
    meshes_of,
    search,
    table,
)
from onereward_jax.planning.topology import Chip, Topology
from tests.support.tiny_plan import TINY

CHIP = Chip(hbm_gib=1.0, flops=1e12, hbm_bandwidth=1e11, link_bandwidth=1e10)


def test_every_mesh_once():
    found = [tuple(mesh.values()) for mesh in meshes_of(8)]
    assert len(found) == len(set(found)) == 10
    assert all(data * fsdp * tensor == 8 for data, fsdp, tensor in found)
    assert found[0] == (1, 8, 1)


def test_a_batch_divides_among_the_devices():
    found = {tuple(choice.mesh.values()) for choice in choices(meshes_of(8), (4,), accumulate=2)}
    whole = {(1, 1, 8), (2, 1, 4), (1, 2, 4)}
    assert found == whole | {(2, 2, 2), (2, 4, 1), (4, 2, 1)}  # 2 samples, each of which several devices share
    assert {choice.remat for choice in choices(meshes_of(8), (8,))} == set(REMAT)
    assert choices([{"data": 1, "fsdp": 8, "tensor": 1}], (4,)) == []


def plans_of(peaks: dict[tuple[int, str, int], float], made: list[Choice]):
    """Replace the compiler: `peaks` by (tensor, remat, batch), GiB; time falls with tensor and with remat."""

    def compiled(config, place, exact=False):
        choice = Choice(**config.mesh, remat=config.model.remat, batch=config.train.batch_size)
        made.append(choice)
        peak = peaks.get((choice.tensor, choice.remat, choice.batch), 2.0)
        seconds = {"update": choice.batch * (1.0 - 0.1 * REMAT.index(choice.remat)) / choice.tensor}
        row = {"fits": peak <= 1.0, "peak_gib": peak, "seconds": seconds, "images_per_hour": 3600 * choice.batch}
        return types.SimpleNamespace(to_json=lambda: row)

    return compiled


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setattr(searching, "life_of", lambda config: types.SimpleNamespace(program=None))
    monkeypatch.setattr(
        searching, "held_bytes", lambda program, mesh, placement: ({"params": 2**31 // mesh.shape["tensor"]}, {})
    )
    return Topology("v5p:2x2x2", CHIP, jax.devices())


def test_choices_that_cannot_fit_are_not_compiled(place, monkeypatch):
    config = load_config("fixed", TINY)
    made: list[Choice] = []
    peaks = {(2, "full", 8): 0.5, (2, "dots", 8): 0.9, (4, "full", 8): 0.4, (4, "full", 16): 0.9}
    tried = choices([{"data": 1, "fsdp": 8 // tensor, "tensor": tensor} for tensor in (1, 2, 4)], (8, 16))
    monkeypatch.setattr(searching, "plan", plans_of(peaks, made))
    rows = search(config, place, tried)
    assert list(rows) == tried
    # Without a split over tensor the state takes 2 GiB.
    assert all("the state alone takes 2.0 GiB" in row["skipped"] for choice, row in rows.items() if choice.tensor == 1)
    assert [(choice.tensor, choice.remat, choice.batch) for choice in made] == [
        (2, "full", 8),
        (2, "dots", 8),
        (2, "none", 8),
        (2, "full", 16),
        (4, "full", 8),
        (4, "dots", 8),
        (4, "full", 16),
    ]
    assert rows[Choice(1, 4, 2, "dots", 16)]["skipped"] == "full with batch 16 does not fit"
    assert rows[Choice(1, 2, 4, "none", 16)]["skipped"] == "dots with batch 8 does not fit"
    best = cheapest(rows)
    assert best in (Choice(1, 2, 4, "full", 8), Choice(1, 2, 4, "full", 16))
    marked = [line for line in table(rows, 1.0).splitlines() if "cheapest" in line]
    assert len(marked) == 1
    assert marked[0].split()[:5] == ["1", "2", "4", str(best.batch), "full"]


def test_the_fastest_attention_blocks_read_least():
    config = load_config("fixed", TINY | {"data.resolution": 128, "max_sequence_length": 128})
    found = attention_blocks(config, Topology("v5p:2x2x2", CHIP, jax.devices()))
    assert set(found) == {(128, 128), (128, 384), (384, 128), (384, 384)}  # of 256 + 128 tokens
    assert fastest(found) == (384, 384)
    assert fastest(found | {(384, 384): None}) == (128, 384)  # one that does not fit the chip
    assert fastest({(128, 128): None}) is None


def test_a_stopped_search_is_resumed(place, monkeypatch, tmp_path, capsys):
    made: list[Choice] = []
    monkeypatch.setattr(topology, "open_topology", lambda name: place)
    monkeypatch.setattr(searching, "plan", plans_of({(2, "full", 8): 0.5}, made))
    file = tmp_path / "search.json"
    arguments = ("--topology", "v5p:2x2x2", "--search", "--mesh", "fsdp=4,tensor=2", "--json", str(file))
    assert run(*arguments) == 0
    assert "<- cheapest" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert (found["fits"], found["hbm_gib"], found["peak_gib"]) == (True, 1.0, 0.5)
    assert found["choice"] == {"data": 1, "fsdp": 4, "tensor": 2, "remat": "full", "batch": 8}
    compiled_once = len(made)
    assert run(*arguments) == 0
    assert len(made) == compiled_once
    # Another search does not go on in this file.
    assert run(*arguments, **{"rl.last_index": 0}) == 2
    assert "holds another search" in capsys.readouterr().err


def test_a_compiler_error_does_not_end_the_search(place, monkeypatch, capsys):
    def failing(config, topology, exact):
        raise CompilerError("the TPU compiler can't compile this update (INTERNAL: its own check)")

    monkeypatch.setattr(topology, "open_topology", lambda name: place)
    monkeypatch.setattr(searching, "plan", failing)
    assert run("--topology", "v5p:2x2x2", "--search", "--mesh", "fsdp=4,tensor=2", "--batch", "8") == DOES_NOT_FIT
    rows = [line for line in capsys.readouterr().out.splitlines() if "not compiled" in line]
    assert len(rows) == 3  # a remat policy each, and none taken to be too large
    assert all("INTERNAL: its own check" in row for row in rows)


def test_nothing_fits(place, monkeypatch, capsys):
    monkeypatch.setattr(topology, "open_topology", lambda name: place)
    monkeypatch.setattr(searching, "held_bytes", lambda program, mesh, placement: ({"params": 2**32}, {}))
    assert run("--topology", "v5p:2x2x2", "--search", "--batch", "8") == DOES_NOT_FIT
    assert "nothing fits; what helps: a larger --topology" in capsys.readouterr().out
    assert run("--topology", "v5p:2x2x2", "--search", "--batch", "8", "--mesh", "fsdp=8", **{"rl.accumulate": 2}) == 2
    assert "8 devices can't share a batch of 8" in capsys.readouterr().err


def run(*arguments: str, **overrides) -> int:
    fields = [f"--config.{name}={value}" for name, value in (TINY | overrides).items()]
    return cli.main(["plan", "--config", "fixed", *fields, *arguments])
