"""Writes a component in the official directory layout, for diffusers, transformers and `load_component`."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax import tree as trees
from onereward_jax.atomic_files import write_json
from onereward_jax.errors import UserError
from onereward_jax.parallel import hosts
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.load import param_dtype_of, param_shapes
from onereward_jax.weights.names import name_rules
from onereward_jax.weights.safetensors import write

# diffusers requires a version: the first whose configuration has all the fields that we write.
_DIFFUSERS_VERSION = "0.36.0"
MAX_SHARD_BYTES = 5_000_000_000


def save_component(
    directory: str | Path,
    kind: str,
    module: Any,
    params: trees.Tree,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and the weights atomically: an earlier output is replaced once everything is written.

    Of several processes, all call this alike and the primary writes; no other holds a copy on its host.

    Args:
      directory: new, empty or an earlier output, see `atomic_files.check_output`; files that were added to it are kept.
      kind: "transformer", "vae", "text_encoder", "text_encoder_2" or "judge".
      module: the Flax module, or its configuration as `module_from_config` takes it.
      params: the parameters, on host or on devices; cast there and gathered one tensor at a time.
      dtype: dtype on disk: "float32" or "bfloat16".
      max_shard_bytes: larger models are written in shards with an index.

    Raises:
      UserError: the directory may not be replaced, or the parameters do not fit the module.
    """
    with hosts.primary_output(Path(directory)) as partial:
        write_component(partial, kind, module, params, dtype, max_shard_bytes)


def write_component(
    directory: Path | None,
    kind: str,
    module: Any,
    params: trees.Tree,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """`save_component` as a part of a larger output, which is atomic: into a directory that is made if missing; None in
    processes that write nothing (`hosts.primary_output`)."""
    component = kind_of(kind)
    weights = component.module()
    param_dtype = param_dtype_of(dtype)
    if isinstance(module, Mapping):
        module = weights.module_from_config(dict(module))
    _check_params(module, params, kind)

    config = weights.config_of(module)
    if component.type_field == "_class_name":
        config = {"_class_name": config["_class_name"], "_diffusers_version": _DIFFUSERS_VERSION, **config}
    else:
        config["dtype"] = dtype

    if directory is None:
        for _ in name_rules.to_official(weights.TABLE, params, param_dtype):
            pass
        return
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", config)
    _write_weights(directory, component.stem, weights.TABLE, params, param_dtype, max_shard_bytes)


def _write_weights(
    directory: Path, stem: str, table: name_rules.Table, params: trees.Tree, dtype: np.dtype, max_shard_bytes: int
) -> None:
    shapes = name_rules.official_shapes(table, params)
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for name, shape in shapes.items()}
    shards = _split(sizes, max_shard_bytes)
    tensors = name_rules.to_official(table, params, dtype)  # one iterator for all shards, in the order of shapes
    if len(shards) == 1:
        write(directory / f"{stem}.safetensors", shapes, tensors, dtype, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        part: Iterator[tuple[str, np.ndarray]] = islice(tensors, len(names))
        write(directory / file, {name: shapes[name] for name in names}, part, dtype, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / f"{stem}.safetensors.index.json", index)


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Split the names, in order, into shards of at most `limit` bytes; a larger tensor gets its own shard."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _check_params(module: Any, params: trees.Tree, kind: str) -> None:
    expected = {path: leaf.shape for path, leaf in trees.flatten(param_shapes(module, kind)).items()}
    given = {path: leaf.shape for path, leaf in trees.flatten(params).items()}
    if expected != given:
        different = sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path))
        raise UserError(
            f"the parameters do not fit this {kind}: {different[0]} is {given.get(different[0])}, "
            f"the module has {expected.get(different[0])} ({len(different)} differ)"
        )
