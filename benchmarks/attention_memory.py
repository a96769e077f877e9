"""Measures the memory of the gradient of FLUX's transformer, besides its parameters, for each attention implementation.

    python -m benchmarks.attention_memory [--topology v5e:2x2] [--pixels 1024] [--json FILE]

Compiles the gradient ahead of time for one chip of the slice, at full width, with one sample and blocks recomputed in
the backward pass (remat "full"). Few blocks suffice: each further block adds only its input, whatever the attention.
Needs no TPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.planning import topology

TEXT = 512  # tokens


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", metavar="NAME", help="generation and sides, such as v5p:2x2x1")
    parser.add_argument("--pixels", type=int, default=1024, metavar="N", help="side of the image")
    parser.add_argument("--blocks", type=int, default=1, metavar="N", help="blocks of each of the two kinds")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    args = parser.parse_args(arguments)
    topology.prepare_environment()
    place = topology.open_topology(args.topology)
    print(f"{place.name}, one chip of {place.chip.hbm_gib} GiB, {args.pixels} pixels a side", flush=True)
    rows = {}
    for name in ("splash", "xla"):
        row = rows[name] = measure(place, name, args.pixels, args.blocks)
        least = "at least " if row["refused"] else ""
        text = f"{least}{row['temporaries_gib']:.3f} GiB of temporaries, compiled in {row['seconds']:.0f} s"
        print(f"  {name:<8}{text}", flush=True)
    if args.json:
        about = {"topology": place.name, "pixels": args.pixels, "blocks": args.blocks}
        Path(args.json).write_text(json.dumps(about | rows, indent=1) + "\n")
    return 0


def measure(place: topology.Topology, implementation: str, pixels: int, blocks: int) -> dict[str, Any]:
    """Measure the temporaries of the gradient with respect to parameters and inputs."""
    import jax
    import jax.numpy as jnp

    from onereward_jax.parallel.activations import batch_sharding
    from onereward_jax.parallel.mesh import make_mesh
    from onereward_jax.parallel.sharding_rules import shardings
    from onereward_jax.planning.compiling import needed_bytes
    from onereward_jax.planning.lives import placed
    from onereward_jax.planning.phases import GIB
    from onereward_jax.weights.component_kinds import kind_of
    from onereward_jax.weights.load import param_shapes
    from onereward_jax.weights.official_modules import OFFICIAL

    fields = OFFICIAL["black-forest-labs/FLUX.1-Fill-dev"]["transformer"]
    fields = fields | {"num_layers": blocks, "num_single_layers": blocks}
    transformer = (
        kind_of("transformer")
        .module()
        .module_from_config(fields, dtype=jnp.bfloat16, remat="full", attention_implementation=implementation)
    )
    mesh = make_mesh(1, 1, 1, devices=place.devices[:1])
    tokens = (pixels // 16) ** 2

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh))

    inputs = (
        array(1, tokens, transformer.in_channels),
        array(1, TEXT, transformer.joint_attention_dim),
        array(1, transformer.pooled_projection_dim),
        array(1),
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), param_shapes(transformer, "transformer")
    )
    params = placed(shapes, shardings(shapes, mesh))

    def gradient(params, inputs):
        ids = jnp.zeros((tokens, 3)), jnp.zeros((TEXT, 3))

        def loss(params, inputs):
            velocity = transformer.apply({"params": params}, *inputs, *ids, jnp.ones(1))
            return jnp.square(velocity.astype(jnp.float32)).sum()

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, argnums=(0, 1))(params, inputs)

    started = time.perf_counter()
    lowered = jax.jit(gradient).lower(params, inputs)
    try:
        size: float = lowered.compile().memory_analysis().temp_size_in_bytes
        refused = False
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        size, refused = needed, True
    return {"temporaries_gib": size / GIB, "refused": refused, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    sys.exit(guarded(main))
