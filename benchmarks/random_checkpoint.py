"""Writes random checkpoints with the names, shapes and width of FLUX.1-Fill or of the 7B judge but fewer layers, and
measures loading them.

    python -m benchmarks.random_checkpoint write DIR [--layers 2] [--text_layers 2]
    python -m benchmarks.random_checkpoint judge DIR [--layers 2]
    python -m benchmarks.random_checkpoint measure DIR

`write` writes a whole model in diffusers layout, tensor by tensor, with the tokenizers of the proving ground; `judge`
one in transformers' layout, with as many layers of text as of vision. `measure` loads a transformer in bfloat16,
prints peak memory relative to the size of the tensors and fails above 1.2; then it computes one velocity, exports the
transformer in both layouts, and checks that the export equals the import.
"""

import argparse
import hashlib
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax.atomic_files import write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.fill.diffusers_io import write_model_index
from onereward_jax.flow.schedule import Shift
from onereward_jax.judge.conversation import IMAGE_TOKEN
from onereward_jax.judge.judge import PREPROCESSOR_FILE
from onereward_jax.judge.vision import OFFICIAL_SETTINGS
from onereward_jax.proving_ground import all_prompts
from onereward_jax.proving_ground.tokenizers import write_clip_tokenizer, write_qwen2_tokenizer, write_t5_tokenizer
from onereward_jax.questions import question
from onereward_jax.tasks import CELLS
from onereward_jax.weights.bfl import save_bfl
from onereward_jax.weights.component_kinds import kind_of
from onereward_jax.weights.load import load_component, param_dtype_of, param_shapes
from onereward_jax.weights.names import flux, name_rules
from onereward_jax.weights.safetensors import read_header, write
from onereward_jax.weights.save import save_component

OFFICIAL = Path(__file__).parents[1] / "tests" / "goldens"
LIMIT = 1.2


def write_model(directory: Path, layers: int = 2, text_layers: int = 2, dtype: str = "bfloat16") -> None:
    """Write a whole random model: `layers` blocks of each kind, `text_layers` in both text encoders."""
    tokenizer = write_clip_tokenizer(directory / "tokenizer", list(all_prompts()), model_max_length=77)
    write_t5_tokenizer(directory / "tokenizer_2", list(all_prompts()))
    write_component(directory, "transformer", {"num_layers": layers, "num_single_layers": layers}, dtype)
    write_component(directory, "vae", {}, dtype)
    clip = {"num_hidden_layers": text_layers, "eos_token_id": tokenizer.eos_token_id}
    write_component(directory, "text_encoder", clip, dtype)
    write_component(directory, "text_encoder_2", {"num_layers": text_layers}, dtype)
    write_model_index(directory, Shift())


def write_judge(directory: Path, layers: int = 2, dtype: str = "bfloat16") -> None:
    """Write a random judge: `layers` of text, and of vision, of which the last sees the whole image."""
    questions = [question(task, dimension, "a") for task, dimension in CELLS]
    tokenizer = write_qwen2_tokenizer(directory / "judge", [*all_prompts(), *questions])
    config = json.loads((OFFICIAL / "qwen2.5-vl-7b-instruct.json").read_text())["config"]
    text = config["text_config"] | {"num_hidden_layers": layers}
    vision = config["vision_config"] | {"depth": layers, "fullatt_block_indexes": [layers - 1]}
    token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    changes = {"text_config": text, "vision_config": vision, "image_token_id": token, "model_type": "qwen2_5_vl"}
    write_component(directory, "judge", changes, dtype, "qwen2.5-vl-7b-instruct")
    write_json(directory / "judge" / PREPROCESSOR_FILE, OFFICIAL_SETTINGS.to_config())


def write_component(directory: Path, kind: str, changes: dict, dtype: str, release: str = "") -> None:
    """Write a component's config.json, as released except for `changes`, and random weights."""
    component, weights = kind_of(kind), kind_of(kind).module()
    config = json.loads((OFFICIAL / f"{release or f'flux.1-fill-dev.{kind}'}.json").read_text())["config"] | changes
    module = weights.module_from_config(config)
    official = name_rules.official_shapes(weights.TABLE, param_shapes(module, kind))
    draw = np.random.default_rng(0)

    def tensors():
        for name, shape in official.items():
            centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # norms
            values = draw.standard_normal(shape, np.float32)
            values *= 0.02
            values += centre
            yield name, values

    (directory / kind).mkdir(parents=True, exist_ok=True)
    write_json(directory / kind / "config.json", weights.config_of(module))
    file = directory / kind / f"{component.stem}.safetensors"
    write(file, official, tensors(), param_dtype_of(dtype), {"format": "pt"})


def peak_bytes() -> int:
    """Return the peak resident size of this process."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(directory: Path) -> float:
    """Load, compute a velocity and export; return peak memory while loading, relative to the size of the tensors."""
    (file,) = (directory / "transformer").glob("*.safetensors")
    size = sum(int(np.prod(tensor.shape)) * 2 for tensor in read_header(file).values())
    before, started = resident_bytes(), time.perf_counter()
    module, params = load_component(directory / "transformer", "transformer", "bfloat16", {"dtype": jnp.bfloat16})
    share = (peak_bytes() - before) / size
    print(
        f"transformer of {size / 1e9:.2f} GB: loaded in {time.perf_counter() - started:.1f} s, peak {share:.2f} of it"
    )

    inputs = [jnp.ones(x.shape, x.dtype) if x is not None else None for x in flux.example_inputs(module)]
    started = time.perf_counter()
    velocity = jax.jit(module.apply)({"params": params}, *inputs)
    assert np.isfinite(np.asarray(velocity, np.float32)).all(), "the velocity is NaN or Inf"
    print(f"one velocity of {inputs[0].shape[1]} tokens: {time.perf_counter() - started:.1f} s with compilation")

    with tempfile.TemporaryDirectory(dir=directory) as out:
        started = time.perf_counter()
        save_component(Path(out) / "transformer", "transformer", module, params, "bfloat16")
        (again,) = (Path(out) / "transformer").glob("*.safetensors")
        assert digests(again) == digests(file), "the export differs from the import"
        save_bfl(Path(out) / "bfl.safetensors", params, "bfloat16")
        print(f"exported in both layouts, identical to the import: {time.perf_counter() - started:.1f} s")
    return share


def digests(file: Path) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.read().tobytes()).hexdigest() for name, tensor in read_header(file).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "judge", "measure"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--text_layers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "write":
        write_model(args.directory, args.layers, args.text_layers)
        return 0
    if args.what == "judge":
        write_judge(args.directory, args.layers)
        return 0
    return int(measure(args.directory) > LIMIT)


if __name__ == "__main__":
    sys.exit(guarded(main))
