"""Policies, as they lie in files: a whole model, a run's export, an adapter, a repository."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from onereward_jax.atomic_files import fingerprint
from onereward_jax.config.find import find_model
from onereward_jax.errors import UserError
from onereward_jax.fill.diffusers_io import FOLDERS, single_file
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.given_files import read_json
from onereward_jax.models.lora import attach
from onereward_jax.parallel import hosts
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.peft_adapters import is_adapter, load_adapters

_RUN_FILE = "config.json"  # of a working directory, with the settings of its run
_EXPORTS = ("export/policy", "export/transformer", "export")  # where a run's transformer, or its adapter, may lie


@dataclasses.dataclass(frozen=True)
class Policy:
    """A fill model that answers requests.

    Attributes:
      base: directory or hub repository of a whole model; a name such as "miniature/base" is one of the package.
      transformer: what takes its transformer's place, as `FillPipeline.from_pretrained` takes it; None is its own.
      adapter: directory or file of an adapter that is added to that transformer; None is none.
    """

    base: str
    transformer: str | None = None
    adapter: str | None = None

    @classmethod
    def at(cls, path: str | Path, base: str | None = None, argument: str = "--baseline") -> "Policy":
        """Find out what lies at a path.

        Args:
          path: a model in diffusers layout, a transformer of one, an adapter in diffusers' or PEFT's layout, an export
            for ComfyUI, a run's working directory (its policy), or a repository of the Hugging Face hub, of a
            transformer as "owner/name:subfolder".
          base: the whole model of a transformer or an adapter that no run exported: a run's is always its own.
          argument: of the command line, by which `base` is given.

        Raises:
          UserError: that is not known.
        """
        found = find_model(path)
        if not found.exists() and ":" not in str(path):
            return cls(str(path))  # of the hub, if it is anywhere
        if (found / "model_index.json").is_file():
            return cls(str(path))
        if (found / _RUN_FILE).is_file() and "model.base" in read_json(found / _RUN_FILE):
            found = next((found / name for name in _EXPORTS if _is_model(found / name)), found / _EXPORTS[0])
            if not found.is_dir():
                raise UserError(f"the run in {path} has exported no policy yet: let it end, or give an `export` of it")
            path = found
        base = _base_of_run(found) or base
        if base is None:
            raise UserError(
                f"{path} is a part of a model, and no run says of which: give {argument}, the whole model that it was"
                " trained from"
            )
        if is_adapter(found) or (found.is_file() and not single_file(found)):
            return cls(base, adapter=str(found))
        return cls(base, transformer=str(path))

    def check(self) -> None:
        """Check the files without reading the large ones.

        Raises:
          FileNotFoundError, UserError: something is missing or does not fit.
        """
        self.open("bfloat16", None)

    def open(self, dtype: str, mesh: Mesh | None) -> FillPipeline:
        """Open the model; `params["transformer"]` and the text encoders are unread `StoredParams`.

        Raises:
          FileNotFoundError, UserError: something is missing or does not fit.
        """
        pipeline = FillPipeline.from_pretrained(
            self.base, dtype=dtype, mesh=mesh, transformer=self.transformer, read=False
        )
        if self.adapter is not None:
            load_adapters("transformer", pipeline.params["transformer"].shapes, [(self.adapter, 1.0)])
        return pipeline

    def read(self, pipeline: FillPipeline, dtype: str, mesh: Mesh | None) -> Any:
        """Read the transformer's parameters straight into their places on the mesh, or onto one device.

        Args:
          pipeline: from `open`.
        """
        stored = pipeline.params["transformer"]
        params = stored.read(dtype, mesh)
        if self.adapter is not None:
            adapter = load_adapters("transformer", stored.shapes, [(self.adapter, 1.0)])
            params = attach(params, adapter if mesh is None else hosts.place(adapter, shardings(adapter, mesh)))
        return jax.tree.map(jnp.asarray, params)

    def fingerprint(self) -> str:
        """Identify the files; see `atomic_files.fingerprint`."""
        parts = [model_directory(self.base, folders=FOLDERS)]
        parts += [find_model(path) for path in (self.transformer, self.adapter) if path is not None]
        return " ".join(fingerprint(Path(part)) or str(part) for part in parts)

    def __str__(self) -> str:
        return self.adapter or self.transformer or self.base


def policies_at(policy: str | Path, baseline: str | Path | None) -> tuple[Policy, Policy]:
    """Find out which two policies are to be compared.

    Args:
      policy, baseline: see `Policy.at`; where one has no base of its own, it is that of the other. Without
        a baseline, it is the policy's base.

    Raises:
      UserError: one is not known, or a whole model has no baseline.
    """
    paths = [path for path in (policy, baseline) if path is not None]
    base = next((found for found in map(_base_at, paths) if found is not None), None)
    first, *second = (Policy.at(path, base) for path in paths)
    against = second[0] if second else Policy(first.base)
    if not second and first == against:
        raise UserError(f"{policy} is a whole model: name what to compare it with, --baseline")
    return first, against


def _base_at(path: str | Path) -> str | None:
    """The whole model at a path, or that of the run which made what lies there; None if no run says."""
    found = find_model(path)
    if (found / "model_index.json").is_file() or (not found.exists() and ":" not in str(path)):
        return str(path)
    return _base_of_run(found)


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() or (directory / "model_index.json").is_file() or is_adapter(directory)


def _base_of_run(path: Path) -> str | None:
    """The base model of the run in whose working directory an export lies."""
    for directory in (path, *path.absolute().parents[:3]):
        if (directory / _RUN_FILE).is_file() and (base := read_json(directory / _RUN_FILE).get("model.base")):
            return str(base)
    return None
