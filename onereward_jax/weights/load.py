"""Reads a component from its official directory: config.json and safetensors files."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from onereward_jax import tree as trees
from onereward_jax.errors import UserError, shown_name
from onereward_jax.given_files import read_json
from onereward_jax.parallel.sharding_rules import sharding_of
from onereward_jax.weights.component_kinds import Kind, kind_of
from onereward_jax.weights.names import name_rules
from onereward_jax.weights.safetensors import DTYPES, Tensor, read_header, read_index

PARAM_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NAMED = 8  # names listed for each kind of mismatch; the rest are counted


def load_component(
    directory: str | Path,
    kind: str,
    dtype: str = "float32",
    fields: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Any, trees.Tree]:
    """Load a component: the module that config.json describes, and its weights.

    Args:
      directory: holds config.json and *.safetensors, in one file or in shards with an index.
      kind: "transformer", "vae", "text_encoder", "text_encoder_2" or "judge".
      dtype: dtype of the parameters: "float32" (training masters) or "bfloat16". Files may hold float64, float32,
        float16 or bfloat16.
      fields: module fields that are not in config.json: the compute `dtype`, `remat`, ...
      mesh: shards the parameters by `parallel.sharding_rules.TRANSFORMER_RULES`. Each device's part is read from the
        files when needed, so host memory holds one parameter at a time.

    Returns:
      The Flax module and its parameters: on the mesh, or without one as NumPy arrays on the host.

    Raises:
      FileNotFoundError: the directory, config.json or the weights are missing.
      UserError: the configuration is for another kind, the files do not fit it (one message names every mismatch), or
        there are only pickles.
    """
    module, stored = open_component(directory, kind, fields)
    return module, stored.read(dtype, mesh)


@dataclasses.dataclass(frozen=True)
class StoredParams:
    """Parameters of a component in its files, checked against its configuration and not read yet.

    Attributes:
      shapes: of the parameters, float32 `jax.ShapeDtypeStruct`s.
      dtype: the smallest of `PARAM_DTYPES` that holds the files without loss.
    """

    shapes: trees.Tree
    dtype: str
    _table: name_rules.Table
    _read: Callable[[str], np.ndarray]  # official name -> array as on disk

    def read(self, dtype: str = "float32", mesh: Mesh | None = None) -> trees.Tree:
        """Read them: on a mesh, each process only what its devices hold, or as NumPy arrays on the host.

        Args:
          dtype, mesh: see `load_component`.
        """
        return name_rules.from_official(self._table, self.shapes, self._read, param_dtype_of(dtype), place_on(mesh))

    def split(self, *names: str) -> tuple["StoredParams", "StoredParams"]:
        """(The parameters under these names at the top of the tree, the others)."""
        of = lambda wanted: dataclasses.replace(
            self, shapes={name: tree for name, tree in self.shapes.items() if (name in names) == wanted}
        )
        return of(True), of(False)


def open_component(
    directory: str | Path, kind: str, fields: Mapping[str, Any] | None = None
) -> tuple[Any, StoredParams]:
    """Build a component's module and check its files, without reading the weights; see `load_component`."""
    directory = Path(directory)
    component = kind_of(kind)
    module = module_from_directory(directory, kind, fields)
    weights, shapes = component.module(), param_shapes(module, kind)
    tensors = _checked(directory, component, name_rules.official_shapes(weights.TABLE, shapes))
    return module, StoredParams(shapes, dtype_of(tensors), weights.TABLE, lambda name: tensors[name].read())


def place_on(mesh: Mesh | None) -> name_rules.Place | None:
    """Return the function that makes a parameter on a mesh from its parts; None without a mesh."""
    if mesh is None:
        return None

    def place(path: str, shape: tuple[int, ...], part: Callable[[Any], np.ndarray]) -> jax.Array:
        return jax.make_array_from_callback(shape, sharding_of(path, shape, mesh), part)

    return place


def module_from_directory(directory: str | Path, kind: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Build the module that a directory's config.json describes, without reading weights.

    Raises:
      FileNotFoundError, UserError: see `load_component`.
    """
    directory = Path(directory)
    component = kind_of(kind)
    config = _config(directory, kind, component)
    try:
        return component.module().module_from_config(config, **(fields or {}))
    except ValueError as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None


def param_shapes(module: Any, kind: str) -> trees.Tree:
    """Return the parameters' shapes as `jax.ShapeDtypeStruct`s, float32."""
    example_inputs = kind_of(kind).module().example_inputs
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *example_inputs(module)))["params"]


def in_dtype(shapes: trees.Tree, dtype: str) -> trees.Tree:
    """Return the shapes of parameters that are read in a dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, param_dtype_of(dtype)), shapes)


def dtype_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the smallest of `PARAM_DTYPES` that holds tensors in files without loss."""
    return "bfloat16" if {tensor.dtype for tensor in tensors.values()} == {"BF16"} else "float32"


def param_dtype_of(name: str) -> np.dtype:
    """Look up a parameter dtype by name.

    Raises:
      UserError: parameters can't have it.
    """
    if name not in PARAM_DTYPES:
        raise UserError(f"parameters cannot be {name!r}: choose one of {', '.join(PARAM_DTYPES)}")
    return PARAM_DTYPES[name]


def _config(directory: Path, kind: str, component: Kind) -> dict[str, Any]:
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}: give the one that holds the {kind}'s config.json")
    file = directory / "config.json"
    if not file.is_file():
        if (directory / "model_index.json").is_file():
            raise FileNotFoundError(f"{directory} is a whole pipeline: give its subdirectory with the {kind}")
        raise FileNotFoundError(f"{directory} has no config.json: give the directory of a {kind} as it was published")
    config = read_json(file)
    # Another library's component names its architecture in another field.
    names = (component.type_field, "_class_name", "model_type")
    found = next((config[name] for name in names if name in config), component.type_name)
    if found != component.type_name:
        raise UserError(
            f"{file} describes a {shown_name(str(found))}, but a {kind} is a {component.type_name}: give its directory"
        )
    return config


def _weight_files(directory: Path, stem: str) -> tuple[list[Path], dict[str, str] | None]:
    """List the files to read, and the index's {tensor: file name} if there is one."""
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    if single.is_file() and index.is_file():
        raise UserError(f"{directory} has both {single.name} and {index.name}: remove the one that is out of date")
    if single.is_file():
        return [single], None
    if not index.is_file():
        indices = sorted(directory.glob("*.safetensors.index.json"))
        index = indices[0] if len(indices) == 1 else index
    if index.is_file():
        weight_map = read_index(index)
        return [directory / name for name in sorted(set(weight_map.values()))], weight_map
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
        if pickles:
            raise UserError(
                f"{directory} has weights only as pickle ({pickles[0]}), which can run code when read: "
                "give a directory with .safetensors files"
            )
        raise FileNotFoundError(f"{directory} has no .safetensors file: download the weights")
    if len(files) > 1:
        raise UserError(
            f"{directory} has {len(files)} .safetensors files and no index that says which to read: "
            f"add {stem}.safetensors.index.json, or keep one file"
        )
    return files, None


def _checked(directory: Path, component: Kind, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return {official name: tensor} for all expected tensors; one message names every mismatch."""
    files, weight_map = _weight_files(directory, component.stem)
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    unread: set[str] = set()  # unreadable files: their tensors are not reported as missing as well
    official_name = getattr(component.module(), "official_name", lambda name: name)
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name} is missing")
            unread.add(file.name)
            continue
        try:
            header = read_header(file)
        except ValueError as error:
            problems.append(str(error).replace(f"{directory}/", ""))
            unread.add(file.name)
            continue
        found |= {
            official_name(name): tensor
            for name, tensor in header.items()
            if weight_map is None or weight_map.get(name) == file.name
        }

    for name in getattr(component.module(), "IGNORED", ()):
        found.pop(name, None)
    for name, other in component.aliases(expected).items():
        second = found.pop(other, None)
        if second is not None:
            found.setdefault(name, second)

    excused = set() if weight_map is None else {official_name(n) for n, file in weight_map.items() if file in unread}
    told = expected.keys() if weight_map is None and unread else excused
    problems += mismatches(found, expected, told)
    if problems:
        raise UserError(f"the weights in {directory} do not fit its config.json: {'; '.join(problems)}")
    return found


def mismatches(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], told: Collection[str] = ()
) -> list[str]:
    """List how tensors in files differ from a model's: missing, unexpected, of another shape, or no floats.

    Args:
      expected: {name: shape}.
      told: names that are not listed if they are missing.
    """
    where = lambda name: f"{name} ({found[name].file.name})"
    common = [name for name in expected if name in found]
    return [
        *listed("missing", sorted(expected.keys() - found.keys() - set(told))),
        *listed("unexpected", [where(name) for name in sorted(found.keys() - expected.keys())]),
        *listed(
            "wrong shape",
            [
                f"{where(name)} is {found[name].shape}, config.json says {tuple(expected[name])}"
                for name in common
                if found[name].shape != tuple(expected[name])
            ],
        ),
        *listed(
            "wrong dtype",
            [
                f"{where(name)} is {found[name].dtype}, not a float"
                for name in common
                if found[name].dtype not in DTYPES
            ],
        ),
    ]


def listed(problem: str, names: list[str]) -> list[str]:
    """Format a problem and the first of the names that have it; an empty list if there are no names."""
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{problem}: {', '.join(map(shown_name, names[:_NAMED]))}{more}"]
