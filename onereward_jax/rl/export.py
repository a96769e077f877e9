"""A run's checkpoint as a model that other programs open."""

import shutil
from pathlib import Path
from typing import Any

import jax

from onereward_jax.checkpoint import Checkpointer
from onereward_jax.errors import UserError
from onereward_jax.files import hold, read_json, whole_directory, write_json, write_text
from onereward_jax.flow.pipeline import FOLDERS
from onereward_jax.lora import LoRA, merge
from onereward_jax.weights.bfl import save_bfl
from onereward_jax.weights.export import save_component
from onereward_jax.weights.hub import model_directory
from onereward_jax.weights.load import load_component, module_from_directory, param_shapes, stored_dtype
from onereward_jax.weights.lora import save_adapter

WHAT = {"policy": "params", "ema": "ema"}  # -> field of the TrainState
COMFYUI_FILE = "transformer.safetensors"
# Of FLUX.1-Fill, for the workflow of ComfyUI.
_TEXT_ENCODERS = ("clip_l.safetensors", "t5xxl_fp16.safetensors")
_MAX_PICTURES = 4


def export(workdir: Path, out: Path, what: str = "policy", form: str = "diffusers") -> int:
    """Writes the policy or the EMA of a run's newest checkpoint, in the dtype of the base model's own files.

    "diffusers" is the base model with this transformer in its transformer's place, which `FluxFillPipeline` opens;
    "comfyui" is the transformer alone in one file with Black Forest Labs' names, and a workflow; an adapter is merged
    into the base model for either. "lora" is the adapter alone, as diffusers' `load_lora_weights` takes it. A model
    card and, if the run has been evaluated, its pictures lie beside all three.

    Returns:
      The step of the checkpoint.

    Raises:
      FileNotFoundError, UserError: the run or its base is missing, the run is going on, or it trained no adapter and
        "lora" is asked for.
    """
    config_file, checkpoints = workdir / "config.json", workdir / "checkpoints"
    if not config_file.is_file() or not checkpoints.is_dir():
        raise UserError(f"{workdir} holds no run with checkpoints: give the --workdir of `onereward train`")
    config = read_json(config_file)
    if not config.get("model.base"):
        raise UserError(f"the run in {workdir} has no policy: give the --workdir of `onereward train`")
    adapters = (
        LoRA(config["lora.rank"], config["lora.alpha"], config["lora.targets"]) if config.get("lora.rank") else LoRA()
    )
    if form == "lora" and not adapters.rank:
        raise UserError(f"the run in {workdir} trained the whole transformer, no adapter: export it for diffusers")
    base = model_directory(config["model.base"], folders=FOLDERS)
    module = module_from_directory(base / "transformer", "transformer")
    hold(workdir)
    restored = Checkpointer(checkpoints.resolve()).restore_part(WHAT[what], _abstract(module, adapters))
    if restored is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: let `onereward train` come to one")
    step, params = restored
    dtype = stored_dtype(base / "transformer", "transformer")
    if adapters.rank and form != "lora":
        params = merge(load_component(base / "transformer", "transformer")[1], params, adapters.scale)
    with whole_directory(out) as partial:
        if form == "lora":
            save_adapter(partial, "transformer", jax.device_get(params), adapters.scale)
        elif form == "comfyui":
            save_bfl(partial / COMFYUI_FILE, jax.device_get(params), dtype)
            write_json(partial / "workflow.json", comfyui_workflow())
        else:
            for part in FOLDERS:
                if part != "transformer":
                    shutil.copytree(base / part, partial / part)
            shutil.copy2(base / "model_index.json", partial / "model_index.json")
            save_component(partial / "transformer", "transformer", module, params, dtype)
        pictures = sorted((workdir / "figures").glob("*.png"))[:_MAX_PICTURES]
        for picture in pictures:
            shutil.copy2(picture, partial / picture.name)
        card = model_card(config, out.name, what, form, step, [picture.name for picture in pictures])
        write_text(partial / "README.md", card)
    return step


def _abstract(module: Any, adapters: LoRA) -> Any:
    """Shapes of the masters, which are float32: of the transformer, or of its adapter."""
    shapes = param_shapes(module, "transformer")
    return jax.eval_shape(lambda: adapters.init(shapes, jax.random.key(0))) if adapters.rank else shapes


def model_card(config: dict[str, Any], name: str, what: str, form: str, step: int, pictures: list[str]) -> str:
    """The README.md of an export: base, licence, how it was trained, how it is used, pictures."""
    base, algorithm = config["model.base"], 2 if config.get("algorithm") == "dynamic" else 1
    source = f'"{base}", lora="{name}"' if form == "lora" else f'"{name}"'
    opens = "load_lora_weights" if form == "lora" else "from_pretrained"
    use = (
        f"""Put `{COMFYUI_FILE}` into ComfyUI's `models/diffusion_models`, the text encoders
({", ".join(_TEXT_ENCODERS)}) into `models/text_encoders`, `ae.safetensors` into `models/vae`, and open
`workflow.json`."""
        if form == "comfyui"
        else f"""```python
from onereward_jax import FillPipeline

pipe = FillPipeline.from_pretrained({source})
picture = pipe(
    prompt="remove", image="image.png", mask_image="mask.png", negative_prompt="nsfw",
    guidance_scale=1.0, true_cfg_scale=4.0,
).images[0]
```

`diffusers.FluxFillPipeline.{opens}("{name}")` takes it, too."""
    )
    gallery = "".join(f"![{picture}]({picture})\n" for picture in pictures)
    return f"""---
base_model: {base}
license: other
license_name: that-of-the-base-model
pipeline_tag: image-to-image
tags: [inpainting, outpainting, object-removal, onereward]
---

# {name}

{base}, improved by one vision-language judge: {"the EMA of the policy" if what == "ema" else "the policy"} after {step}
updates of OneReward's Algorithm {algorithm} (arXiv 2508.21066).

The licence is that of the base model; its conditions hold for this one.

## Use

{use}
{f"{chr(10)}## Pictures{chr(10)}{chr(10)}{gallery}" if pictures else ""}"""


def comfyui_workflow() -> dict[str, Any]:
    """ComfyUI's nodes, as its API and its canvas take them, with OneReward's settings: guidance 1, true guidance 4."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    first, second = _TEXT_ENCODERS
    return {
        "model": node("UNETLoader", unet_name=COMFYUI_FILE, weight_dtype="default"),
        "clip": node("DualCLIPLoader", clip_name1=first, clip_name2=second, type="flux"),
        "vae": node("VAELoader", vae_name="ae.safetensors"),
        "image": node("LoadImage", image="image.png"),
        "mask": node("LoadImageMask", image="mask.png", channel="red"),
        "prompt": node("CLIPTextEncode", text="remove", clip=["clip", 0]),
        "negative_prompt": node("CLIPTextEncode", text="nsfw", clip=["clip", 0]),
        "guidance": node("FluxGuidance", conditioning=["prompt", 0], guidance=1.0),
        "negative_guidance": node("FluxGuidance", conditioning=["negative_prompt", 0], guidance=1.0),
        "condition": node(
            "InpaintModelConditioning",
            positive=["guidance", 0],
            negative=["negative_guidance", 0],
            vae=["vae", 0],
            pixels=["image", 0],
            mask=["mask", 0],
            noise_mask=False,
        ),
        "sampled": node(
            "KSampler",
            model=["model", 0],
            positive=["condition", 0],
            negative=["condition", 1],
            latent_image=["condition", 2],
            seed=0,
            steps=50,
            cfg=4.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="onereward"),
    }
