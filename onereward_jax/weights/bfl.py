"""FLUX with Black Forest Labs' own names, as ComfyUI reads it: one file, some layers fused.

A fused layer concatenates the rows of several diffusers layers, and the modulation of the last norm has the shift
before the scale.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax import tree as trees
from onereward_jax.errors import UserError
from onereward_jax.weights.load import StoredParams, dtype_of, mismatches, param_dtype_of
from onereward_jax.weights.names import flux, name_rules
from onereward_jax.weights.safetensors import read_header, write

_DOUBLE, _SINGLE = "transformer_blocks.{layer}", "single_transformer_blocks.{layer}"

# This layer's rows are (shift, scale) here and (scale, shift) in diffusers.
SHIFT_FIRST = "final_layer.adaLN_modulation.1"

# Layer -> the diffusers layers whose rows it concatenates.
LAYERS: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{
        f"{theirs}_in.{layer}": (f"time_text_embed.{name}_embedder.linear_{number}",)
        for theirs, name in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for layer, number in (("in_layer", 1), ("out_layer", 2))
    },
    "double_blocks.{layer}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{layer}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "double_blocks.{layer}.img_attn.qkv": tuple(f"{_DOUBLE}.attn.to_{x}" for x in "qkv"),
    "double_blocks.{layer}.txt_attn.qkv": tuple(f"{_DOUBLE}.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.{layer}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{layer}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{layer}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{layer}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{layer}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{layer}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "single_blocks.{layer}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "single_blocks.{layer}.linear1": (*(f"{_SINGLE}.attn.to_{x}" for x in "qkv"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.{layer}.linear2": (f"{_SINGLE}.proj_out",),
    "final_layer.linear": ("proj_out",),
    SHIFT_FIRST: ("norm_out.linear",),
}
# Norm scales, which diffusers calls weights.
NORMS: dict[str, str] = {
    "double_blocks.{layer}.img_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_q",
    "double_blocks.{layer}.img_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_k",
    "double_blocks.{layer}.txt_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_added_q",
    "double_blocks.{layer}.txt_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_added_k",
    "single_blocks.{layer}.norm.query_norm": f"{_SINGLE}.attn.norm_q",
    "single_blocks.{layer}.norm.key_norm": f"{_SINGLE}.attn.norm_k",
}

Read = Callable[[str], np.ndarray]


def fused_names(official: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map each tensor here to the diffusers tensors whose rows it concatenates.

    Args:
      official: the model's tensor names in diffusers.

    Raises:
      KeyError: no rule maps one of them.
    """
    rules = {parts[0]: (name, parts, "") for name, parts in LAYERS.items()}
    rules |= {part: (name, (part,), ".scale") for name, part in NORMS.items()}
    known = {part for _, parts, _ in rules.values() for part in parts}
    names = {}
    for tensor in official:
        stem, _, kind = tensor.rpartition(".")
        found = re.search(r"transformer_blocks\.(\d+)\.", stem)
        layer = found[1] if found else ""
        template = re.sub(r"transformer_blocks\.\d+\.", "transformer_blocks.{layer}.", stem)
        if template not in known:
            raise KeyError(f"no rule maps {tensor} to Black Forest Labs' names: add it to the table")
        if template in rules:
            name, parts, suffix = rules[template]
            key = name.format(layer=layer) + (suffix or f".{kind}")
            names[key] = tuple(f"{part.format(layer=layer)}.{kind}" for part in parts)
    return names


def fused_shapes(
    names: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in `fused_names`, from those of the diffusers tensors."""
    return {name: (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:]) for name, parts in names.items()}


def fuse(names: Mapping[str, tuple[str, ...]], read: Read) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) for every tensor in `fused_names`.

    Args:
      read: diffusers name -> array.
    """
    for name, parts in names.items():
        rows = [read(part) for part in parts]
        if name.startswith(SHIFT_FIRST):
            rows = np.split(rows[0], 2)[::-1]
        yield name, np.concatenate(rows)


def split(names: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]], read: Read) -> Read:
    """Invert `fuse`: return a function that reads a tensor by its diffusers name.

    Args:
      shapes: shapes of the diffusers tensors.
      read: name here -> array.
    """
    where = {part: (name, parts) for name, parts in names.items() for part in parts}

    def read_part(part: str) -> np.ndarray:
        name, parts = where[part]
        if name.startswith(SHIFT_FIRST):
            return np.concatenate(np.split(read(name), 2)[::-1])
        start = sum(shapes[before][0] for before in parts[: parts.index(part)])
        return read(name)[start : start + shapes[part][0]]

    return read_part


def open_bfl(file: str | Path, shapes: trees.Tree) -> StoredParams:
    """Check a transformer's parameters in one file, as `save_bfl` writes it, to be read later.

    Args:
      shapes: the parameters' shapes; see `load.param_shapes`.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is damaged, or does not fit the shapes; one message names every mismatch.
    """
    official = name_rules.official_shapes(flux.TABLE, shapes)
    names = fused_names(official)
    tensors = read_header(Path(file))
    if problems := mismatches(tensors, fused_shapes(names, official)):
        raise UserError(f"{file} does not fit the transformer's config.json: {'; '.join(problems)}")
    return StoredParams(
        shapes, dtype_of(tensors), flux.TABLE, split(names, official, lambda name: tensors[name].read())
    )


def save_bfl(
    file: str | Path | None, params: trees.Tree, dtype: str, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a transformer's parameters as one file, whole or not at all; gathered one tensor at a time.

    Args:
      file: None in processes that write nothing, but have parts of the parameters.
      dtype: dtype on disk: "float32" or "bfloat16".
    """
    array_type = param_dtype_of(dtype)
    tensors = name_rules.official_tensors(flux.TABLE, params, array_type)
    shapes = name_rules.official_shapes(flux.TABLE, params)
    names = fused_names(shapes)
    if file is None:
        for part in (part for parts in names.values() for part in parts):
            tensors[part]()
        return
    file = Path(file)
    fused = fused_shapes(names, shapes)
    partial = file.with_name(f".{file.name}.partial")
    write(partial, fused, fuse(names, lambda name: tensors[name]()), array_type, {"format": "pt", **(metadata or {})})
    partial.replace(file)
