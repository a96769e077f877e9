"""The components of a pipeline, and the module that describes each."""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

from onereward_jax.errors import UserError


class Kind(NamedTuple):
    """One component.

    Its `weights` module has `TABLE`, `module_from_config`, `config_of` and `example_inputs`, and may have
      ALIASES, TIED_ALIASES: {official name: second name of the same tensor}; a file may hold either or both;
      IGNORED: names of tensors that some files hold and the model does not use;
      official_name(name): a tensor's name in a file -> its name in the table, where some files differ.
    """

    weights: str  # module in names/
    type_field: str  # the field of config.json that names the architecture
    type_name: str  # its value
    stem: str  # stem of the weight files' names

    def module(self) -> ModuleType:
        return importlib.import_module(f"onereward_jax.weights.names.{self.weights}")

    def aliases(self, expected: dict[str, Any]) -> dict[str, str]:
        """Return {name: second name}, without second names that are separate tensors in this model."""
        module = self.module()
        both = getattr(module, "ALIASES", {}) | getattr(module, "TIED_ALIASES", {})
        return {name: other for name, other in both.items() if name in expected and other not in expected}


KINDS = {
    "transformer": Kind("flux", "_class_name", "FluxTransformer2DModel", "diffusion_pytorch_model"),
    "vae": Kind("vae", "_class_name", "AutoencoderKL", "diffusion_pytorch_model"),
    "text_encoder": Kind("clip", "model_type", "clip_text_model", "model"),
    "clip": Kind("clip_with_images", "model_type", "clip", "model"),
    "text_encoder_2": Kind("t5", "model_type", "t5", "model"),
    "judge": Kind("qwen2_5_vl", "model_type", "qwen2_5_vl", "model"),
}


def kind_of(name: str) -> Kind:
    """Look up a component by name.

    Raises:
      UserError: there is no such component.
    """
    if name not in KINDS:
        raise UserError(f"unknown kind of component {name!r}: choose one of {', '.join(KINDS)}")
    return KINDS[name]
