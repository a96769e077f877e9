"""diffusers' own tests of FluxFillPipeline, run on ours, every image of which must be within 1e-5 of diffusers'.

They are in no package: give a checkout of diffusers' repository, and they are loaded from its `tests`.

    DIFFUSERS_CHECKOUT=DIR python -m pytest -o addopts= -rA tests/parity/test_diffusers_own.py

(without our options, since the tests have marks of their own).

The tests know only components of torch, so `Shim` is what they get: diffusers' pipeline, whose prompts are encoded and
whose images are made by ours, from the components as `save_pretrained` writes them. Torch's generators draw what ours
is given as latents and as noise of the posterior. Tokenizers and T5's configuration, which the tests take from the hub,
are written here.
"""

import contextlib
import importlib
import inspect
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from onereward_jax.fill.diffusers_io import read_shift  # noqa: E402
from onereward_jax.fill.pipeline import FillPipeline  # noqa: E402
from onereward_jax.fill.prompts import PromptEncoder  # noqa: E402
from onereward_jax.proving_ground import tokenizers  # noqa: E402
from onereward_jax.weights.load import load_component  # noqa: E402

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT", "")
if not CHECKOUT:
    pytest.skip("DIFFUSERS_CHECKOUT names no checkout of diffusers' repository", allow_module_level=True)

TOLERANCE = 1e-5
CORPUS = ["a painting of a squirrel eating a burger", "a different prompt", "very long"]
pytestmark = pytest.mark.filterwarnings("default")


class Shim(diffusers.FluxFillPipeline):
    """diffusers' pipeline, with ours in the place of its prompts and its call."""

    def __init__(self, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer):
        for module in (vae, text_encoder, text_encoder_2, transformer):
            if module is not None:
                module.eval()
        super().__init__(scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer)

    def encode_prompt(self, prompt, prompt_2=None, max_sequence_length=512):
        with self._opened() as pipeline:
            encoded = pipeline.prompts.encode(prompt, max_sequence_length, prompt_2)
        prompt_embeds, pooled_prompt_embeds = (torch.from_numpy(np.array(array)) for array in encoded)
        text_ids = torch.zeros(prompt_embeds.shape[1], 3)
        return prompt_embeds, pooled_prompt_embeds, text_ids

    def __call__(self, **arguments):
        drawn, official = [], diffusers.FluxFillPipeline(**self.components)
        official.set_progress_bar_config(disable=True)
        known = {name: arguments[name] for name in arguments if name in inspect.signature(official.__call__).parameters}
        with _recorded(drawn):
            expected = official(**known | {"generator": _copies(arguments.get("generator"))})[0]
        given = {name: _to_ours(name, value) for name, value in arguments.items()}
        repeat = lambda x: np.repeat(x, len(expected) // len(x), axis=0)
        if arguments.get("latents") is None:
            given["latents"] = _packed(drawn[-2])
        given["posterior"] = repeat(drawn[-1].permute(0, 2, 3, 1).numpy())
        if callback := arguments.get("callback_on_step_end"):
            given["callback_on_step_end"] = lambda pipeline, step, timestep, tensors: {
                name: np.asarray(tensor)
                for name, tensor in callback(
                    pipeline, step, timestep, {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
                ).items()
            }
        given.pop("generator", None)
        with self._opened() as pipeline:
            output = pipeline(**given)
        self._guidance_scale, self._num_timesteps = pipeline.guidance_scale, pipeline.num_timesteps
        made = torch.from_numpy(output.images) if isinstance(expected, torch.Tensor) else output.images
        assert np.abs(np.asarray(made) - np.asarray(expected)).max() < TOLERANCE
        return output._replace(images=made)

    __call__.__signature__ = inspect.signature(FillPipeline.__call__)

    @contextlib.contextmanager
    def _opened(self):
        """Ours, of the components that there are."""
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            for name, component in self.components.items():
                if component is not None:
                    component.save_pretrained(directory / name)
            if self.transformer is None:
                encoder = PromptEncoder.from_pretrained(directory)
                yield types.SimpleNamespace(prompts=encoder)
            elif self.tokenizer is None:
                modules = {name: load_component(directory / name, name) for name in ("transformer", "vae")}
                params = {name: params for name, (_, params) in modules.items()}
                yield FillPipeline(modules["transformer"][0], modules["vae"][0], params, None, read_shift(directory))
            else:
                yield FillPipeline.from_pretrained(directory, dtype="float32")


def _copies(generator):
    if isinstance(generator, list):
        return [_copies(one) for one in generator]
    return generator if generator is None else torch.Generator().set_state(generator.get_state())


@contextlib.contextmanager
def _recorded(drawn):
    """Keeps every noise that diffusers draws: of the image's posterior, of the latents, of the masked image's."""
    from diffusers.models.autoencoders import vae
    from diffusers.pipelines.flux import pipeline_flux_fill

    def keep(draw):
        def kept(*args, **kwargs):
            drawn.append(draw(*args, **kwargs))
            return drawn[-1]

        return kept

    with pytest.MonkeyPatch.context() as patch:
        for module in (vae, pipeline_flux_fill):
            patch.setattr(module, "randn_tensor", keep(module.randn_tensor))
        yield


def _to_ours(name, value):
    if not isinstance(value, torch.Tensor):
        return value
    return (value.permute(0, 2, 3, 1) if name in ("image", "mask_image") else value).numpy()


def _packed(noise):
    count, channels, height, width = noise.shape
    return diffusers.FluxFillPipeline._pack_latents(noise, count, channels, height, width).numpy()


def _their_tests():
    """The module of the tests, as part of a package that is not named `tests`, as ours is."""
    package = types.ModuleType("diffusers_tests")
    package.__path__ = [str(Path(CHECKOUT) / "tests")]
    sys.modules[package.__name__] = package
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module("diffusers_tests.pipelines.flux.test_pipeline_flux_fill")


theirs = _their_tests()


class TestFluxFill(theirs.FluxFillPipelineFastTests):
    pipeline_class = Shim

    @pytest.mark.skip(reason="torch's modules keep their weights in float8 by hooks of their own")
    def test_layerwise_casting_inference(self): ...

    @pytest.fixture(autouse=True)
    def without_the_hub(self, tmp_path, monkeypatch):
        clip = tokenizers.write_clip_tokenizer(tmp_path / "clip", CORPUS)
        t5 = tokenizers.write_t5_tokenizer(tmp_path / "t5", CORPUS)
        config = transformers.T5Config(
            vocab_size=len(t5), d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=5, feed_forward_proj="gated-gelu"
        )
        stand_in = lambda object: types.SimpleNamespace(from_pretrained=lambda name: object)
        monkeypatch.setattr(diffusers.pipelines, "Shim", Shim, raising=False)  # where a test reads its source
        for name, value in {"CLIPTokenizer": clip, "AutoTokenizer": t5, "AutoConfig": config}.items():
            monkeypatch.setattr(theirs, name, stand_in(value))


del theirs.FluxFillPipelineFastTests  # or it would be collected as well
