"""The golden of `tests.support.shardings`, which says how to write it anew."""

from pathlib import Path

from onereward_jax import tree as trees
from onereward_jax.parallel.sharding_rules import shardings
from tests.support import shardings as golden

GOLDEN = Path(__file__).parents[1] / "goldens" / "shardings.txt"


def test_every_array_at_full_size_lies_where_it_did():
    program = golden.program()
    assert [line.rstrip() for line in golden.lines(program)] == GOLDEN.read_text(encoding="utf-8").splitlines()
    state, mesh = program.state, golden.mesh_of("v5p:2x2x4")
    places = {path: place.spec for path, place in trees.flatten(shardings(state.params, mesh)).items()}
    for part in (state.ema, state.reference):
        assert {path: place.spec for path, place in trees.flatten(shardings(part, mesh)).items()} == places
    of_optimizer = trees.flatten(shardings(state.opt_state, mesh))
    for path, spec in places.items():
        moments = [place.spec for name, place in of_optimizer.items() if name.endswith((f"/mu/{path}", f"/nu/{path}"))]
        assert moments == [spec, spec], path
