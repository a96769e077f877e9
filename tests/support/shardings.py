"""Where every array of the update of configs/flux_fill.py lies, on a slice of each generation.

    python -m tests.support.shardings > tests/goldens/shardings.txt

A line an array of a MiB and more: its size, then for each slice the axes of its mesh that split it, and the MiB that a
device holds. EMA, optimiser and reference lie as the parameters do (`tests/parallel/test_shardings.py`).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from onereward_jax import tree as trees
from onereward_jax.config.load import load_config
from onereward_jax.parallel.mesh import AXES
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.planning.lives import Program, life_of

CONFIG = str(Path(__file__).parents[2] / "configs" / "flux_fill.py")
MIB = 2**20
# Slices and their meshes.
MESHES = {"v5p:2x2x4": (1, 8, 2), "v6e:4x8": (1, 8, 4), "v5e:8x8": (1, 8, 8), "tpu7x:2x2x1": (1, 8, 1)}


def program(variant: str = "fixed_1024") -> Program:
    return life_of(load_config(f"{CONFIG}:{variant}")).program


def mesh_of(slice_name: str) -> AbstractMesh:
    return AbstractMesh(MESHES[slice_name], AXES, axis_types=(AxisType.Auto,) * 3)


def lines(found: Program) -> Iterator[str]:
    yield f"{'':<78}" + "".join(f"{name:>28}" for name in MESHES)
    yield f"{'data, fsdp, tensor':<78}" + "".join(f"{mesh!s:>28}" for mesh in MESHES.values())
    parts = {"transformer": found.state.params, "vae": found.frozen.vae, "judge": found.frozen.judge}
    parts["adapter"] = program("dynamic_lora_1024").state.params
    for name, part in parts.items():
        places = [trees.flatten(shardings(part, mesh_of(slice_name))) for slice_name in MESHES]
        rest = [0.0 for _ in MESHES]
        for path, leaf in sorted(trees.flatten(part).items()):
            held = [size_mib(place[path].shard_shape(leaf.shape), leaf) for place in places]
            if size_mib(leaf.shape, leaf) < 1:
                rest = [total + one for total, one in zip(rest, held, strict=True)]
                continue
            cells = [f"{axes(place[path].spec)} {one:9.3f}" for place, one in zip(places, held, strict=True)]
            size = "x".join(map(str, leaf.shape))
            yield f"{f'{name}/{path} {size} {leaf.dtype}':<78}" + "".join(f"{cell:>28}" for cell in cells)
        yield f"{f'{name}, arrays below a MiB':<78}" + "".join(f"{one:28.3f}" for one in rest)


def size_mib(shape: tuple[int, ...], leaf: Any) -> float:
    return math.prod(shape) * leaf.dtype.itemsize / MIB


def axes(spec: Any) -> str:
    return ",".join("-" if names is None else names if isinstance(names, str) else "+".join(names) for names in spec)


if __name__ == "__main__":
    print("\n".join(line.rstrip() for line in lines(program())))
