"""Collectives of compiled programs: on a simulated mesh, and as the TPU compiler writes them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from onereward_jax.parallel.mesh import P, make_mesh
from onereward_jax.planning.hlo import Collective, collectives_of

LAYERS, WIDTH, ROWS = 5, 64, 1024


@functools.cache
def compiled() -> str:
    """A rollout through a stack of layers whose kernels are sharded over all eight devices."""

    def function(x, layers, stop):
        through = lambda x: jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, layers)[0]
        with jax.named_scope("rollout"):
            return jax.lax.fori_loop(0, stop, lambda i, x: through(x), x)

    place = functools.partial(NamedSharding, make_mesh(1, 8, 1))
    places = place(P("fsdp")), place(P(None, "fsdp")), place(P())
    arguments = (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arguments] + [jax.ShapeDtypeStruct((), jnp.int32)]
    jitted = jax.jit(function, in_shardings=places, out_shardings=places[0])
    return jitted.lower(*shapes).compile().as_text()


def test_a_sharded_stack_is_gathered_layer_by_layer_in_every_step():
    gathers = [c for c in collectives_of(compiled(), {"rollout": 7}) if c.kind == "all-gather"]
    assert sum(c.times * c.size for c in gathers) == 7 * LAYERS * WIDTH * WIDTH * 4
    assert {c.group for c in gathers} == {8}
    assert gathers[0].sent == gathers[0].size * 7 / 8


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    with pytest.warns(UserWarning, match="rollout/while"):
        gathers = [c for c in collectives_of(compiled()) if c.kind == "all-gather"]
    assert sum(c.times * c.size for c in gathers) == LAYERS * WIDTH * WIDTH * 4


# What the TPU compiler wrote for such a program, without what is not read.
OF_TPU = """\
HloModule jit_f, is_scheduled=true

%all-reduce-scatter.1 (input.4: bf16[2048,1024]) -> bf16[2048,512] {
  %all-reduce.15 = bf16[2048,1024]{1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=17, replica_groups={{0,2},{1,3}}
  ROOT %dynamic-slice.64 = bf16[2048,512]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.15, %constant.1, %multiply.9)
}

%cond.1 (p: (s32[], bf16[32,1024])) -> pred[] {
  %constant.68 = s32[]{:T(128)} constant(5)
  ROOT %lt.16 = pred[]{:T(512)} compare(%get-tuple-element.294, %constant.68), direction=LT
}

%body.1 (p: (s32[], bf16[32,1024])) -> (s32[], bf16[32,1024]) {
  %all-gather.24 = bf16[1,1024,2048]{2,1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0)
  %all-gather-start.1 = (bf16[512,8]{1,0}, bf16[1024,8]{1,0}) all-gather-start(%x), replica_groups=[2,2]<=[4]
  %all-gather-done.1 = bf16[1024,8]{1,0} all-gather-done(%all-gather-start.1)
  %fusion.63 = bf16[2048,512]{1,0:T(8,128)(2,1)} fusion(%copy-done.3), kind=kCustom, calls=%all-reduce-scatter.1
}

%windows.1 (p: bf16[8]) -> bf16[8] {
  %all-reduce.1 = bf16[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%whole.1 (p: bf16[8]) -> bf16[8] {
  %collective-permute.1 = bf16[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %while.53 = (s32[]{:T(128)}, bf16[32,1024]{1,0}) while(%tuple.79), condition=%cond.1, body=%body.1
  %conditional.1 = bf16[8]{0} conditional(%i, %p, %p), branch_computations={%windows.1, %whole.1}, \
metadata={op_name="jit(f)/visual/cond"}
}
"""


def test_the_tpu_compilers_forms():
    found = [(c.kind, c.size, c.group, c.times) for c in collectives_of(OF_TPU, shares={"visual": (0.75, 0.25)})]
    assert found == [
        ("all-gather", 2 * 1024 * 2048, 2, 5.0),
        ("all-gather", 2 * 1024 * 8, 2, 5.0),
        ("reduce-scatter", 2 * 2048 * 1024, 2, 5.0),
        ("all-reduce", 16.0, 4, 0.75),
        ("collective-permute", 16.0, 1, 0.25),
    ]


# A product whose kernel goes round a ring of eight, two parts a turn, as the TPU compiler wrote it.
OF_RING = """\
%wide.cond.1 (p: (bf16[1,384,1536], u32[])) -> pred[] {
  %constant.2287 = u32[]{:T(128)} constant(7)
  %get-tuple-element.1421 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %compare.54 = pred[]{:T(512)} compare(%get-tuple-element.1421, %constant.2287), direction=LT
}

%wide.body.1 (p: (bf16[1,384,1536], u32[])) -> (bf16[1,384,1536], u32[]) {
  %constant.1 = u32[]{:T(128)} constant(1)
  %constant.2466..sunk2 = u32[]{:T(128)} constant(2)
  %get-tuple-element.2330 = u32[]{:T(128)} get-tuple-element(%p), index=1
  %add.1751 = u32[]{:T(128)S(6)} add(%get-tuple-element.2330, %constant.1)
  %add.1755 = u32[]{:T(128)} add(%get-tuple-element.2330, %constant.2466..sunk2)
  %collective-permute.20 = bf16[1,384,1536]{2,1,0} collective-permute(%x), source_target_pairs={{0,2},{2,4}}
  ROOT %tuple.319 = (bf16[1,384,1536]{2,1,0}, u32[]{:T(128)}) tuple(%collective-permute.20, %add.1755)
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %while.74 = (bf16[1,384,1536]{2,1,0}, u32[]{:T(128)}) while(%tuple.1), condition=%wide.cond.1, body=%wide.body.1
}
"""


def test_a_partly_unrolled_loop_runs_fewer_times():
    (found,) = collectives_of(OF_RING)
    assert (found.kind, found.times) == ("collective-permute", 4.0)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("[2,8]<=[16]", 8),
        ("{{0,2,4},{1,3,5}}", 3),
        ("mesh['axis_0'=8,'axis_1'=2] {'axis_0'}", 8),
        ("mesh['data'=8,'tensor'=2] {'data':(2)4,'tensor'}", 8),
    ],
)
def test_replica_groups_are_read_in_every_notation(written, size):
    line = f"  %a = f32[16]{{0}} all-reduce(%p), replica_groups={written}, to_apply=%add"
    (found,) = collectives_of(f"ENTRY %main (p: f32[16]) -> f32[16] {{\n{line}\n}}\n")
    assert found.group == size


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75.0), ("reduce-scatter", 75.0), ("all-reduce", 150.0), ("collective-permute", 100)],
)
def test_bytes_sent_around_a_ring(kind, sent):
    assert Collective(kind, 100.0, 4, 1.0, "").sent == sent
