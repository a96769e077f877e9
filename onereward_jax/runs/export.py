"""A run's checkpoint as a model that other programs open."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from onereward_jax import buckets
from onereward_jax.atomic_files import check_output, lock, write_json, write_text
from onereward_jax.errors import UserError
from onereward_jax.fill.diffusers_io import COMFYUI_FILE, FOLDERS
from onereward_jax.given_files import read_json
from onereward_jax.models.lora import LoRA, merge
from onereward_jax.parallel import hosts
from onereward_jax.parallel.mesh import make_mesh
from onereward_jax.parallel.sharding_rules import shardings
from onereward_jax.runs.finetune import SAMPLES
from onereward_jax.runs.request_report import REQUESTS_FILE
from onereward_jax.tasks import NEGATIVE_PROMPT, REMOVAL_PROMPT
from onereward_jax.training.checkpoint import Checkpointer
from onereward_jax.training.early_stop import recorded
from onereward_jax.weights.bfl import save_bfl
from onereward_jax.weights.hub import model_directory, repository_of
from onereward_jax.weights.load import open_component
from onereward_jax.weights.official_modules import official_module
from onereward_jax.weights.peft_adapters import save_adapter
from onereward_jax.weights.save import write_component

WHAT = {"policy": "params", "ema": "ema"}  # -> field of the TrainState
_COMFYUI_MODEL = "black-forest-labs/FLUX.1-Fill-dev"
_COMFYUI_FIELDS = (
    "in_channels",
    "out_channels",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "pooled_projection_dim",
    "axes_dims_rope",
)
# Of FLUX.1-Fill, for the workflow of ComfyUI.
_TEXT_ENCODERS = ("clip_l.safetensors", "t5xxl_fp16.safetensors")
_FIGURES = ("examples", "good_same_bad", "judge_accuracy", "judge_and_ground_truth")  # of a run, for its model card
_GIVE = "give the --workdir of `onereward train` or `onereward finetune`"


def export(workdir: Path, out: Path, what: str | None = None, form: str = "diffusers") -> tuple[int, str]:
    """Writes what a run of reward feedback learning or fine-tuning has trained, at its newest checkpoint, or at the one
    that a run ended with which was stopped (`training.early_stop`), in the dtype of the base model's own files.

    "diffusers" is the base model with this transformer in its transformer's place, which `FluxFillPipeline` opens;
    "comfyui" is the transformer alone in one file with Black Forest Labs' names, and a workflow; an adapter is merged
    into the base model for either. "lora" is the adapter alone, as diffusers' `load_lora_weights` takes it. A model
    card and the run's pictures (of its evaluation, or its newest sheet of samples) lie beside all three.

    Args:
      out: new, empty or an earlier output, see `atomic_files.check_output`.
      what: "policy", the parameters themselves, or "ema", their average; None: of reward feedback learning the former,
        of fine-tuning the latter, if it keeps one.

    Returns:
      The step of the checkpoint, and what was taken.

    Of several processes, all call this alike: the parameters are spread over all devices, and the primary gathers and
    writes them one by one.

    Raises:
      FileNotFoundError, UserError: the run or its base is missing, the run is going on, the checkpoint that it ended
        with is gone, it trained no adapter and "lora" is asked for, keeps no average and "ema" is, or has a base that
        ComfyUI can't open.
    """
    hosts.on_primary(lambda: check_output(out))
    config_file, checkpoints = workdir / "config.json", workdir / "checkpoints"
    checkpointed = buckets.native(checkpoints.resolve())
    if not config_file.is_file() or not buckets.path(checkpointed).is_dir():
        raise UserError(f"{buckets.native(workdir.resolve())} holds no run with checkpoints: {_GIVE}")
    if checkpoints.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out} lies among the run's checkpoints, which come and go: choose another directory")
    config = read_json(config_file)
    if not config.get("model.base"):
        raise UserError(f"the run in {workdir} trained no fill model: {_GIVE}")
    tuned = _is_finetuning(config)
    keeps_average = not tuned or config["finetune.ema_decay"] > 0
    if what == "ema" and not keeps_average:
        raise UserError(f"the run in {workdir} keeps no average (finetune.ema_decay is 0): export its policy")
    what = what or ("ema" if tuned and keeps_average else "policy")
    adapters = LoRA(**{name.removeprefix("lora."): x for name, x in config.items() if name.startswith("lora.")})
    if form == "lora" and not adapters.rank:
        raise UserError(f"the run in {workdir} trained the whole transformer, no adapter: export it for diffusers")
    base = model_directory(config["model.base"], folders=FOLDERS)
    module, stored = open_component(base / "transformer", "transformer")
    if form == "comfyui":
        check_comfyui(module, config["model.base"])
    hosts.on_primary(lambda: lock(workdir))
    part, mesh = f"{WHAT[what]}/transformer" if tuned else WHAT[what], make_mesh()
    stop = recorded(workdir)
    if stop is not None and not stop.step:
        raise UserError(f"the run in {workdir} has {stop}: there is nothing to export")
    abstract, at_most = _abstract(stored.shapes, adapters, mesh), None if stop is None else stop.step
    restored = Checkpointer(checkpointed).restore_part(part, abstract, at_most)
    if stop is not None and (restored is None or restored[0] != stop.step):
        raise UserError(
            f"the run in {workdir} has {stop}, but no whole checkpoint of that step is there: put it back, or let the"
            " run go on without train.stop_on_alarm and train.stop_without_gain"
        )
    if restored is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: let the run come to one")
    step, params = restored
    if adapters.rank and form != "lora":
        params = merge(stored.read(stored.dtype, mesh), params, adapters.scale)
    with hosts.primary_output(out) as partial:
        _write(partial, form, base, module, params, stored.dtype, adapters.scale)
        if partial is None:
            return step, what
        if form == "comfyui":
            write_json(partial / "workflow.json", comfyui_workflow(_use_of(config)))
        pictures = _pictures(workdir)
        for picture in pictures:
            shutil.copy2(picture, partial / picture.name)
        origin = _origin(workdir, config, what, step)
        write_text(partial / "README.md", model_card(config, out.name, form, origin, [p.name for p in pictures]))
    return step, what


def _write(partial: Path | None, form: str, base: Path, module: Any, params: Any, dtype: str, scale: float) -> None:
    """Writes the weights; `partial` is None in processes that only have parts of them."""
    if form == "lora":
        save_adapter(partial, "transformer", params, scale)
    elif form == "comfyui":
        save_bfl(partial and partial / COMFYUI_FILE, params, dtype)
    else:
        write_component(partial and partial / "transformer", "transformer", module, params, dtype)
        if partial is not None:
            for part in FOLDERS:
                if part != "transformer":
                    shutil.copytree(base / part, partial / part)
            shutil.copy2(base / "model_index.json", partial / "model_index.json")


def check_comfyui(module: Any, base: str) -> None:
    """Check that ComfyUI can open a transformer: of a file's sizes it reads the number of blocks, and takes the others
    to be those of FLUX.1 (comfy/model_detection.py).

    Raises:
      UserError: another one is different.
    """
    official = official_module(_COMFYUI_MODEL, "transformer")
    for field in _COMFYUI_FIELDS:
        if getattr(module, field) != getattr(official, field):
            raise UserError(
                f"ComfyUI opens transformers of {_COMFYUI_MODEL}'s sizes only, but {base} has {field}"
                f" {getattr(module, field)} instead of {getattr(official, field)}: export it for diffusers"
            )


class Use(NamedTuple):
    """How an exported model is asked, as arguments of a `FillPipeline`."""

    prompt: str
    guidance_scale: float
    true_cfg_scale: float
    max_sequence_length: int
    negative_prompt: str = ""


def _is_finetuning(config: dict[str, Any]) -> bool:
    """Of `onereward finetune`, as opposed to `onereward train`."""
    return "finetune.ema_decay" in config


def _use_of(config: dict[str, Any]) -> Use:
    """As fine-tuning makes its samples, or as OneReward's transformers are run."""
    length = config.get("max_sequence_length", 512)
    if not _is_finetuning(config):
        return Use(REMOVAL_PROMPT, 1.0, 4.0, length, NEGATIVE_PROMPT)
    guidance, true_guidance = (config[f"finetune.sample_{name}"] for name in ("guidance_scale", "true_cfg_scale"))
    return Use("what the hole shows", guidance, true_guidance, length)


def _origin(workdir: Path, config: dict[str, Any], what: str, step: int) -> str:
    """How the model was made: half a sentence after the base model's name."""
    if not _is_finetuning(config):
        algorithms = {"fixed": "Algorithm 1", "dynamic": "Algorithm 2", "earned": "Algorithm 1 with earned references"}
        algorithm = algorithms[config.get("algorithm", "fixed")]
        return (
            f"improved by one vision-language judge: {'the EMA of the policy' if what == 'ema' else 'the policy'} after"
            f" {step}\nupdates of OneReward's {algorithm} (arXiv 2508.21066)"
        )
    count = _images_of(workdir)
    trained = f"an adapter of rank {config['lora.rank']}" if config["lora.rank"] else "the whole transformer"
    return (
        f"fine-tuned by flow matching on {count} pictures: {trained}{', averaged,' if what == 'ema' else ''} after"
        f"\n{step} updates with OneReward in JAX"
    )


def _images_of(workdir: Path) -> int:
    """Of a fine-tuning run, to which an earlier release gave another file."""
    file = workdir / REQUESTS_FILE
    return read_json(file)["requests"] if file.exists() else read_json(workdir / "pictures.json")["pictures"]


def _pictures(workdir: Path) -> list[Path]:
    """Of a run, for the model card."""
    samples = sorted((workdir / SAMPLES).glob("*.png"))
    figures = [workdir / "figures" / f"{name}.png" for name in _FIGURES]
    return samples[-1:] or [figure for figure in figures if figure.is_file()]


def _abstract(shapes: Any, adapters: LoRA, mesh: Mesh) -> Any:
    """The masters, which are float32, where they shall lie: of the transformer, or of its adapter."""
    masters = jax.eval_shape(lambda: adapters.init(shapes, jax.random.key(0))) if adapters.rank else shapes
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), masters, shardings(masters, mesh)
    )


def model_card(config: dict[str, Any], name: str, form: str, origin: str, pictures: list[str]) -> str:
    """The README.md of an export: base, licence, how it was trained, how it is used, pictures.

    Args:
      origin: how it was trained, after "BASE, ".
    """
    repository, settings = repository_of(config["model.base"]), _use_of(config)
    # A path says nothing to others, and too much of this machine.
    base = repository or Path(config["model.base"]).resolve().name
    relation = "adapter" if form == "lora" else "finetune"
    of_base = f"base_model: {repository}\nbase_model_relation: {relation}\n" if repository else ""
    library = "" if form == "comfyui" else "library_name: diffusers\n"
    source = f'"{base}", lora="{name}"' if form == "lora" else f'"{name}"'
    opens = "load_lora_weights" if form == "lora" else "from_pretrained"
    given = {field: value for field, value in settings._asdict().items() if value != "" and field != "prompt"}
    arguments = ", ".join(f"{field}={json.dumps(value)}" for field, value in given.items())
    use = (
        f"""Put `{COMFYUI_FILE}` into ComfyUI's `models/diffusion_models`, the text encoders
({", ".join(_TEXT_ENCODERS)}) into `models/text_encoders`, `ae.safetensors` into `models/vae`, and open
`workflow.json`. It pads prompts to {settings.max_sequence_length} tokens of T5, as this program does. ComfyUI rounds
each noise level to one of 10,000 that it keeps in a table, and shifts them at every size as diffusers does at
1024 × 1024 pixels, so its images differ a little from those of diffusers.

`FillPipeline.from_pretrained(BASE, transformer="{COMFYUI_FILE}")` reads the file back."""
        if form == "comfyui"
        else f"""```python
from onereward_jax import FillPipeline

pipe = FillPipeline.from_pretrained({source})
picture = pipe(
    prompt="{settings.prompt}", image="image.png", mask_image="mask.png",
    {arguments},
).images[0]
```

`diffusers.FluxFillPipeline.{opens}("{name}")` takes it, too."""
    )
    gallery = "".join(f"![{picture}]({picture})\n" for picture in pictures)
    return f"""---
{of_base}{library}license: other
license_name: that-of-the-base-model
pipeline_tag: image-to-image
tags: [inpainting, outpainting, {"finetune" if _is_finetuning(config) else "object-removal"}, onereward]
---

# {name}

{base}, {origin}.

The licence is that of the base model; its conditions hold for this one. FLUX.1-Fill-dev's and those of OneReward's
transformers allow non-commercial use only.

## Use

{use}
{f"{chr(10)}## Pictures{chr(10)}{chr(10)}{gallery}" if pictures else ""}"""


def comfyui_workflow(use: Use) -> dict[str, Any]:
    """ComfyUI's nodes, as its API and its canvas take them."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    first, second = _TEXT_ENCODERS
    return {
        "model": node("UNETLoader", unet_name=COMFYUI_FILE, weight_dtype="default"),
        "clip": node("DualCLIPLoader", clip_name1=first, clip_name2=second, type="flux"),
        # ComfyUI pads T5's prompts to 256 tokens by itself.
        "padded": node("T5TokenizerOptions", clip=["clip", 0], min_padding=0, min_length=use.max_sequence_length),
        "vae": node("VAELoader", vae_name="ae.safetensors"),
        "image": node("LoadImage", image="image.png"),
        "mask": node("LoadImageMask", image="mask.png", channel="red"),
        "prompt": node("CLIPTextEncode", text=use.prompt, clip=["padded", 0]),
        "negative_prompt": node("CLIPTextEncode", text=use.negative_prompt, clip=["padded", 0]),
        "guidance": node("FluxGuidance", conditioning=["prompt", 0], guidance=use.guidance_scale),
        "negative_guidance": node("FluxGuidance", conditioning=["negative_prompt", 0], guidance=use.guidance_scale),
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
            cfg=use.true_cfg_scale,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="onereward"),
    }
