"""Adapter files: FLUX with the names of diffusers/PEFT, kohya, XLabs or Black Forest Labs, the judge with PEFT's.

Use `with_adapters` when loading a model, otherwise `load_adapters` with `models.lora.attach` or `models.lora.merge`.
"""

import collections
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from onereward_jax import tree as trees
from onereward_jax.atomic_files import atomic_directory, write_json
from onereward_jax.errors import UserError, shown
from onereward_jax.given_files import parse_json, read_json
from onereward_jax.models import lora
from onereward_jax.models.fields import Range, check_value, object_of
from onereward_jax.parallel import hosts
from onereward_jax.weights import bfl
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import listed
from onereward_jax.weights.names import adapter_names, name_rules
from onereward_jax.weights.safetensors import DTYPES, Tensor, read_header, read_metadata, write

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_METADATA = "lora_adapter_metadata"  # where diffusers puts PEFT's configuration in the file's header, as JSON

# Prefixes of tensor names for each component of a pipeline; the first match wins.
_PREFIXES = {
    "text_encoder_2": re.compile(r"text_encoder_2\.|text_encoders\.t5xxl\.(?:transformer\.)?|lora_te[23]_"),
    "text_encoder": re.compile(r"text_encoder\.|text_encoders\.clip_l\.(?:transformer\.)?|lora_te1?_"),
    "transformer": re.compile(
        r"(?:base_model\.model\.|(?:model\.)?diffusion_model\.|transformer\.|lora_(?:unet|transformer)_)*"
    ),
}
Adapters = None | str | Path | Sequence[str | Path | tuple[str | Path, float]]
_PEFT_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+?)\.(?:lora\.|lora_linear_layer\.|lora_)?(A|B|down|up)(?:\.default)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_Alpha = Annotated[float, Range(-1e9, 1e9)]


class _Place(NamedTuple):
    """A layer of the model, stacked or not (`layer` is None)."""

    path: str
    layer: int | None
    shape: tuple[int, ...]  # (in, out)


def load_adapters(kind: str, params: trees.Tree, adapters: Sequence[tuple[str | Path, float]]) -> trees.Tree:
    """Read several weighted adapters as one, for `models.lora.attach` and `models.lora.merge`.

    Args:
      kind: the component to adapt: "transformer", "judge", "text_encoder" or "text_encoder_2". Tensors for other
        components of a pipeline are ignored.
      params: the component's parameters, or their shapes.
      adapters: (path, weight). A path is a .safetensors file, a directory with one (diffusers' pytorch_lora_weights,
        PEFT's adapter_model and adapter_config.json), or a repository on the Hugging Face hub.

    Returns:
      The adapter, float32 on the host, with alpha / rank and the weights multiplied into B. Empty if the files have no
      tensors for the component.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: a file is a pickle, or does not fit the model (one message names every mismatch).
    """
    return lora.combine([(_load_adapter(kind, params, path), weight) for path, weight in adapters])


def with_adapters(kind: str, params: trees.Tree, adapters: Adapters) -> trees.Tree:
    """Add adapters from files to a component's parameters.

    They are attached to the transformer or the judge, and merged into a text encoder, whose layers can't read them.

    Args:
      kind, params: see `load_adapters`.
      adapters: None, a path, or several paths, each with or without a weight: `["a", ("b", 0.5)]`.
    """
    given = [] if adapters is None else [adapters] if isinstance(adapters, str | Path) else list(adapters)
    weighted = [(one, 1.0) if isinstance(one, str | Path) else one for one in given]
    add = lora.attach if kind in ("transformer", "judge") else lora.merge
    return add(params, load_adapters(kind, params, weighted))


def save_adapter(
    directory: str | Path | None, kind: str, adapter: trees.Tree, scale: float = 1.0, base: str | None = None
) -> None:
    """Write an adapter for `load_adapters` and other programs.

    The scale is multiplied into the tensors, and the file says alpha = rank, so ignoring alpha is right too. Of several
    processes, all call this alike and the primary writes.

    Args:
      directory: new, empty or an earlier output, see `atomic_files.check_output`; files that were added to it are kept.
        None in processes that write nothing.
      kind: "transformer" writes pytorch_lora_weights.safetensors for diffusers' `load_lora_weights`; "judge" writes
        adapter_model.safetensors and adapter_config.json for PEFT.
      scale: factor on A·B, see `models.lora.attach`.
      base: the name of the base model, which PEFT notes.
    """
    adapter = jax.tree.map(hosts.fetch_to_primary, adapter)
    if directory is None or not hosts.is_primary():
        return
    module = kind_of(kind).module()
    peft_name = getattr(module, "nested_name", lambda name: name)
    prefix = _PEFT_PREFIX if kind == "judge" else f"{kind}."
    pairs = {path: (np.asarray(a), np.asarray(scale * b)) for path, (a, b) in lora.factors(adapter).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, np.ndarray] = {}
    for number, factor in enumerate(("lora_A", "lora_B")):
        kernels = trees.unflatten({f"{path}/kernel": ab[number] for path, ab in pairs.items()})
        for name, array in name_rules.to_official(module.TABLE, kernels):
            name = f"{prefix}{peft_name(name.removesuffix('.weight'))}.{factor}.weight"
            shapes[name], tensors[name] = array.shape, array
    config = _peft_config(module.TABLE, pairs, peft_name)
    metadata = {"format": "pt"}
    if kind != "judge":
        metadata[_METADATA] = json.dumps({f"{kind}.{name}": value for name, value in config.items()}, sort_keys=True)
    with atomic_directory(Path(directory)) as partial:
        file = partial / (PEFT_FILE if kind == "judge" else DIFFUSERS_FILE)
        write(file, shapes, tensors.items(), np.dtype(np.float32), metadata)
        if kind == "judge":
            write_json(partial / PEFT_CONFIG, config | {"base_model_name_or_path": base, "inference_mode": True})


def is_adapter(directory: str | Path) -> bool:
    """Whether the directory holds an adapter that `save_adapter` wrote."""
    return any((Path(directory) / name).is_file() for name in (DIFFUSERS_FILE, PEFT_FILE))


# -------------------------------------------------------------------------------------------------------- writing


def _peft_config(table: name_rules.Table, pairs: dict[str, tuple[np.ndarray, np.ndarray]], peft_name: Any) -> dict:
    """Make the fields of PEFT's `LoraConfig`, with regular expressions that match only the adapter's layers.

    With a list of names instead, PEFT would match "proj_out" to every layer whose name ends in it.
    """
    patterns, ranks = {}, {path: a.shape[-1] for path, (a, _) in pairs.items()}
    for path in pairs:
        name = peft_name(name_rules.official_name(table, f"{path}/kernel").removesuffix(".weight"))
        patterns[path] = r"\d+".join(re.escape(part) for part in name.split("{layer}"))
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{patterns[path]}": other for path, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": "|".join(patterns.values()),
        "lora_dropout": 0.0,
        "bias": "none",
    }


# -------------------------------------------------------------------------------------------------------- reading


def _load_adapter(kind: str, params: trees.Tree, path: str | Path) -> trees.Tree:
    file = _file_of(path)
    header = read_header(file)
    config = _config_of(file, kind)
    names = _names(kind, _places(kind, params))
    problems: dict[str, list[str]] = collections.defaultdict(list)

    found: dict[str, dict[str, Tensor]] = collections.defaultdict(dict)  # layer name in the file -> its tensors
    for key, tensor in header.items():
        name = _component_name(kind, key)
        if name is None:
            continue
        if match := _FACTOR.fullmatch(name):
            found[match[1]]["A" if match[2] in ("A", "down") else "B"] = tensor
        elif match := _ALPHA.fullmatch(name):
            found[match[1]]["alpha"] = tensor
        else:
            problems["neither A, B nor alpha"].append(key)
    problems["not supported"] += _unsupported(config)

    official_name = getattr(kind_of(kind).module(), "official_name", lambda name: name)
    parts: dict[_Place, tuple[np.ndarray, np.ndarray]] = {}
    for layer, tensors in found.items():
        places, shift_first = names.get(layer) or names.get(official_name(layer)) or ([], False)
        if not places:
            problems["no such layer"].append(layer)
            continue
        if missing := [factor for factor in "AB" if factor not in tensors]:
            problems["incomplete"].append(f"{layer} has no {missing[0]}")
            continue
        if wrong := [tensor.dtype for tensor in tensors.values() if tensor.dtype not in DTYPES]:
            problems["wrong dtype"].append(f"{layer} is {wrong[0]}, not a float")
            continue
        if "alpha" in tensors and tensors["alpha"].shape not in ((), (1,)):
            problems["wrong shape"].append(f"{layer} has alpha {tensors['alpha'].shape}, which is one number")
            continue
        a, b = tensors["A"], tensors["B"]
        features_in, sizes = places[0].shape[0], [place.shape[1] for place in places]
        rank = a.shape[0] if a.shape else 0
        if not rank or a.shape != (rank, features_in) or b.shape != (sum(sizes), rank):
            problems["wrong shape"].append(
                f"{layer} has A {a.shape} and B {b.shape}, the model needs (r, {features_in}) and ({sum(sizes)}, r)"
            )
            continue
        scale = _scale(config, tensors.get("alpha"), rank, kind, places[0])
        if not np.isfinite(scale):
            problems["NaN or Inf"].append(f"{layer} has alpha / rank {scale}")
            continue
        rows = b.read().astype(np.float32) * scale
        if shift_first:
            rows = np.concatenate(np.split(rows, 2)[::-1])
        for place, part in zip(places, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
            if place in parts:
                problems["given twice"].append(layer)
            parts[place] = a.read().astype(np.float32).T, part.T
    if not header:
        problems["nothing"].append("the file has no tensors")
    if found_problems := "; ".join(part for problem, names in problems.items() for part in listed(problem, names)):
        raise UserError(f"the adapter {file} does not fit this {kind}: {found_problems}")
    return _stacked(parts, params)


def _stacked(parts: dict[_Place, tuple[np.ndarray, np.ndarray]], params: trees.Tree) -> trees.Tree:
    """Stack the layers, with zeros for layers without an adapter and up to the highest rank."""
    by_path: dict[str, dict[int | None, tuple[np.ndarray, np.ndarray]]] = collections.defaultdict(dict)
    for place, ab in parts.items():
        by_path[place.path][place.layer] = ab
    kernels, pairs = lora.layers(params), {}
    for path, layers in by_path.items():
        if None in layers:
            pairs[path] = layers[None]
            continue
        count, features_in, features_out = kernels[path].shape
        rank = max(a.shape[1] for a, _ in layers.values())
        stacked_a = np.zeros((count, features_in, rank), np.float32)
        stacked_b = np.zeros((count, rank, features_out), np.float32)
        for layer, (a, b) in layers.items():
            stacked_a[layer, :, : a.shape[1]], stacked_b[layer, : b.shape[0]] = a, b
        pairs[path] = stacked_a, stacked_b
    return lora.from_factors(pairs)


def _places(kind: str, params: trees.Tree) -> dict[str, _Place]:
    """Return {official layer name: place}."""
    table, places = kind_of(kind).module().TABLE, {}
    for path, kernel in lora.layers(params).items():
        name = name_rules.official_name(table, f"{path}/kernel").removesuffix(".weight")
        if "{layer}" in name:
            for layer in range(kernel.shape[0]):
                places[name.format(layer=layer)] = _Place(path, layer, kernel.shape[1:])
        else:
            places[name] = _Place(path, None, kernel.shape)
    return places


def _names(kind: str, places: dict[str, _Place]) -> dict[str, tuple[list[_Place], bool]]:
    """Return {layer name in any program: (places of its rows, whether its halves are swapped)}."""
    names = {name: ([place], False) for name, place in places.items()}
    if kind == "transformer":
        layers = range(1 + max((place.layer or 0 for place in places.values()), default=0))
        for theirs, ours in adapter_names.FLUX.items():
            for layer in layers if "{layer}" in theirs else (0,):
                official = [name.format(layer=layer) for name in ours]
                if all(name in places for name in official):
                    where = [places[name] for name in official]
                    names[theirs.format(layer=layer)] = where, theirs == bfl.SHIFT_FIRST
    # kohya and ComfyUI put underscores where the names have dots.
    return {name.replace(".", "_"): target for name, target in names.items()} | names


def _component_name(kind: str, key: str) -> str | None:
    """Return the tensor's name without the component's prefix; None if it belongs to another component."""
    if kind == "judge":
        return key.removeprefix(_PEFT_PREFIX)
    owner, match = next((owner, match) for owner, regex in _PREFIXES.items() if (match := regex.match(key)))
    return key.removeprefix(match[0]) if owner == kind else None


def _file_of(path: str | Path) -> Path:
    found = model_directory(path)
    if found.is_dir():
        named = [found / name for name in (DIFFUSERS_FILE, PEFT_FILE) if (found / name).is_file()]
        files = named[:1] or sorted(found.glob("*.safetensors"))
        if len(files) > 1:
            raise UserError(f"{found} has {len(files)} .safetensors files: give the path of the adapter's file")
        if not files:
            raise FileNotFoundError(
                f"{found} has no .safetensors file with an adapter, such as {DIFFUSERS_FILE} (pickles are not read):"
                " give the path of one"
            )
        return files[0]
    if not found.is_file():
        raise FileNotFoundError(f"there is no adapter {path}: give a .safetensors file, or a directory with one")
    if found.suffix != ".safetensors":
        raise UserError(f"{found} is not a .safetensors file: convert it, since a pickle can run code when it is read")
    return found


def _config_of(file: Path, kind: str) -> dict[str, Any]:
    """Read what we use of PEFT's configuration, from beside the file or from its header."""
    beside = file.with_name(PEFT_CONFIG)
    if beside.is_file():
        return _checked(read_json(beside), beside)
    try:
        config = parse_json(read_metadata(file).get(_METADATA, "{}"))
    except UserError as error:
        raise UserError(f"{file} is damaged, {_METADATA} in its header can't be read ({error}): save it anew") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged, {_METADATA} in its header is no JSON object: save it anew")
    own = {name.removeprefix(f"{kind}."): value for name, value in config.items() if name.startswith(f"{kind}.")}
    return _checked(own, file)


def _checked(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Check the fields from which `_scale` is computed; null stands for a field that is left out."""
    config = {name: value for name, value in config.items() if value is not None}
    try:
        if "lora_alpha" in config:
            check_value(config["lora_alpha"], _Alpha, "lora_alpha")
        for pattern, alpha in object_of(config, "alpha_pattern").items():
            check_value(alpha, _Alpha, f"alpha_pattern of {shown(pattern)}")
            _check_pattern(pattern)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return config


def _check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression, or one that may take forever: it came with the file."""
    try:
        re.compile(pattern)
        hard = len(re.findall(r"[*+{]", pattern)) > 4 or re.search(r"\)\s*[*+{]", pattern)
    except (re.error, OverflowError, RecursionError):
        hard = True
    if hard or len(pattern) > 1000:
        raise UserError(f"alpha_pattern has {shown(pattern)}, which is no simple regular expression: write out names")


def _unsupported(config: dict[str, Any]) -> list[str]:
    found = [
        name
        for name in ("use_dora", "use_qalora", "lora_bias", "modules_to_save", "fan_in_fan_out")
        if config.get(name)
    ]
    if config.get("bias", "none") != "none":
        found.append(f"bias {shown(config['bias'])}")
    if config.get("peft_type", "LORA") != "LORA":
        found.append(f"peft_type {shown(config['peft_type'])}")
    return found


def _scale(config: dict[str, Any], alpha: Tensor | None, rank: int, kind: str, place: _Place) -> np.float32:
    """Return alpha / rank, with alpha from the file's own tensor or PEFT's configuration, or else 1."""
    if alpha is not None:
        return np.float32(float(alpha.read().reshape(-1)[0]) / rank)
    if "lora_alpha" not in config:
        return np.float32(1)
    module = kind_of(kind).module()
    name = (
        name_rules.official_name(module.TABLE, f"{place.path}/kernel").removesuffix(".weight").format(layer=place.layer)
    )
    name = getattr(module, "nested_name", lambda name: name)(name)
    # As `peft.utils.get_pattern_key`.
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
    value = config["lora_alpha"] if key is None else patterns[key]
    return np.float32(value / (rank**0.5 if config.get("use_rslora") else rank))
