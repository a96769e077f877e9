"""Writes what diffusers fills and what transformers' judge answers to a file, for `onereward check --answers FILE`.

    python -m benchmarks.official_answers --out answers.npz --base black-forest-labs/FLUX.1-Fill-dev \
        --judge Qwen/Qwen2.5-VL-7B-Instruct

Runs on any machine with the `parity` extra and memory for a model in float32 (48 GB, 33 GB). One fill, and
the judge's answers about a few pairs of images, in float32 and in bfloat16: how far these are from each other is what
rounding costs the official code, by which `onereward check` measures ours. A smaller --side is quicker.
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.cli.exit_codes import guarded
from onereward_jax.judge import conversation
from onereward_jax.judge.judge import Judge
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.tasks import dimensions_of

DTYPES = ("float32", "bfloat16")


def fill_answers(
    directory: str | Path, image: np.ndarray, mask: np.ndarray, prompt: str, **settings: Any
) -> dict[str, np.ndarray]:
    """Fill one image by diffusers, from noise that is written down, with the mean of the masked image's posterior.

    Args:
      image: uint8 (H, W, 3); mask: uint8 (H, W), 1 = generate.
      settings: num_inference_steps, guidance_scale, max_sequence_length.

    Returns:
      {"image", "mask", "prompt", "noise": float32 (1, h, w, C), "settings": JSON, "float32" and "bfloat16": float32
      (H, W, 3) in [0, 1]}.
    """
    import diffusers
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    found = {"image": image, "mask": mask, "prompt": np.array(prompt), "settings": np.array(json.dumps(settings))}
    for dtype in DTYPES:
        pipeline = diffusers.FluxFillPipeline.from_pretrained(directory).to(getattr(torch, dtype))
        pipeline.set_progress_bar_config(disable=True)
        height, width = (side // pipeline.vae_scale_factor for side in mask.shape)
        channels = pipeline.vae.config.latent_channels
        noise = np.random.default_rng(0).standard_normal((1, height, width, channels), np.float32)
        latents = pipeline._pack_latents(torch.from_numpy(noise).permute(0, 3, 1, 2), 1, channels, height, width)
        with torch.no_grad():
            (made,) = pipeline(
                prompt=prompt,
                image=torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None],
                mask_image=torch.from_numpy(mask.astype(np.float32))[None, None],
                height=mask.shape[0],
                width=mask.shape[1],
                latents=latents.to(getattr(torch, dtype)),
                output_type="np",
                **settings,
            ).images
        found |= {"noise": noise, dtype: made.astype(np.float32)}
        del pipeline
        gc.collect()
    return found


def judge_answers(
    directory: str | Path, pairs: list[tuple[np.ndarray, np.ndarray]], texts: list[str]
) -> dict[str, np.ndarray]:
    """Ask transformers' model: P(Yes) over the whole vocabulary.

    Args:
      pairs: uint8 (H, W, 3) each, all of one size; texts: a question for each.

    Returns:
      {"first", "second": (N, H, W, 3), "questions": (N,), "float32" and "bfloat16": (N,)}.
    """
    import torch
    import transformers

    ours = Judge.from_pretrained(directory, read=False)  # for its tokenizer and the official image processor
    yes, _ = ours.yes_no
    found = {"first": np.stack([a for a, _ in pairs]), "second": np.stack([b for _, b in pairs])}
    found["questions"] = np.array(texts)
    for dtype in DTYPES:
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(directory).to(getattr(torch, dtype))
        with torch.no_grad():
            logits = [
                model(**inputs_of(ours, pair, text)).logits[0, -1].float()
                for pair, text in zip(pairs, texts, strict=True)
            ]
        found[dtype] = np.array([float(torch.softmax(x, -1)[yes]) for x in logits], np.float32)
        del model
        gc.collect()
    return found


def inputs_of(judge: Judge, pair: tuple[np.ndarray, np.ndarray], text: str) -> dict[str, Any]:
    """Do what `Qwen2_5_VLProcessor`, which needs torchvision, does with its parts: the template's text, the token of an
    image repeated as often as it has tokens, and the image processor's patches."""
    inputs = judge._official_processor()(images=list(pair), input_data_format="channels_last", return_tensors="pt")
    messages = conversation.messages_of(text)
    template = judge.tokenizer.chat_template or conversation.CHAT_TEMPLATE
    whole = judge.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    before, between, after = whole.split(conversation.IMAGE_TOKEN)
    counts = inputs["image_grid_thw"].prod(dim=1) // judge.settings.merge_size**2
    first, second = (conversation.IMAGE_TOKEN * int(count) for count in counts)
    texts = judge.tokenizer([before + first + between + second + after], return_tensors="pt")
    image = judge.tokenizer.convert_tokens_to_ids(conversation.IMAGE_TOKEN)
    return {**texts, **inputs, "mm_token_type_ids": (texts["input_ids"] == image).int()}


def write_answers(file: Path, fill: dict[str, np.ndarray] | None, judge: dict[str, np.ndarray] | None) -> None:
    """Write the file that `onereward check --answers` reads."""
    parts = {"fill": fill or {}, "judge": judge or {}}
    arrays = {f"{part}/{name}": array for part, answers in parts.items() for name, array in answers.items()}
    with file.open("wb") as opened:
        np.savez_compressed(opened, **arrays)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", help="directory or repository of the fill model; none is asked without it")
    parser.add_argument("--judge", help="directory of the judge; none is asked without it")
    parser.add_argument("--steps", type=int, default=4, help="of the fill (default: 4)")
    parser.add_argument("--side", type=int, default=512, help="pixels of the images (default: 512)")
    parser.add_argument("--guidance_scale", type=float, default=30.0)
    parser.add_argument("--max_sequence_length", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=4, help="that the judge is asked about (default: 4)")
    args = parser.parse_args()
    samples = [ProvingGround("test", args.side).scene(number, "image_fill").sample for number in range(args.pairs + 1)]
    fill = judge = None
    if args.base:
        sample = samples[0]
        settings = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
        settings["max_sequence_length"] = args.max_sequence_length
        fill = fill_answers(args.base, sample.image, sample.mask, sample.prompt, **settings)
    if args.judge:
        asked = [
            (sample, dimension) for sample in samples[1:] for dimension in dimensions_of("image_fill", sample.prompt)
        ]
        ours = Judge.from_pretrained(args.judge, read=False)
        grey = lambda sample: np.where(sample.mask[..., None] == 1, np.uint8(128), sample.image)
        pairs = [(sample.image, grey(sample)) for sample, _ in asked]
        judge = judge_answers(args.judge, pairs, [ours.question("image_fill", d, s.prompt) for s, d in asked])
    write_answers(args.out, fill, judge)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
