"""Draws docs/images/before_after.png: held-out scenes of each task before and after a run of reward feedback learning.

    python docs/images/before_after.py --workdir runs/quick

The scenes are the first ones of the test split, not chosen. Base and policy start from the same noise.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onereward_jax import FillPipeline
from onereward_jax.images.grid import enlarge, mask_overlay, write_png
from onereward_jax.proving_ground import ProvingGround, Scene
from onereward_jax.tasks import NEGATIVE_PROMPT, TASKS

COLUMNS = ("source and mask", "base", "after training")
GAP, BETWEEN, HEADING, CAPTION = 6, 28, 26, 22  # pixels: between images, between blocks, above a block, above a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run of `onereward train`")
    parser.add_argument("--base", default="miniature/base", help="the model that the run began with")
    parser.add_argument("--rows", type=int, default=3, help="scenes of each task")
    parser.add_argument("--scale", type=int, default=3, help="enlargement of the images")
    parser.add_argument("--out", type=Path, default=Path("docs/images/before_after.png"))
    args = parser.parse_args()

    ground = ProvingGround("test", 64)
    scenes = {task: [ground.scene(index, task) for index in range(args.rows)] for task in TASKS}
    models = (None, args.workdir / "export" / "policy")
    base, policy = (filled(args.base, transformer, scenes) for transformer in models)
    blocks = [
        [(caption(scene), mask_overlay(scene.sample.image, scene.sample.mask), base[task][row], policy[task][row])
         for row, scene in enumerate(scenes[task])]
        for task in TASKS
    ]  # fmt: skip
    write_png(args.out, two_by_two(blocks, args.scale))


def filled(base: str, transformer: Path | None, scenes: dict[str, list[Scene]]) -> dict[str, list[np.ndarray]]:
    """{task: the model's images, uint8 (H, W, 3)}, in the settings of the quick run's evaluation."""
    pipe = FillPipeline.from_pretrained(base, transformer=transformer and str(transformer), dtype="float32")
    return {
        task: [
            np.asarray(image)
            for image in pipe(
                prompt=[scene.sample.prompt for scene in of_task],
                image=[scene.sample.image for scene in of_task],
                mask_image=[np.asarray(scene.sample.mask * 255, np.uint8) for scene in of_task],
                negative_prompt=NEGATIVE_PROMPT,
                num_inference_steps=8,
                guidance_scale=1.0,
                true_cfg_scale=1.0,
                max_sequence_length=16,
                seed=0,
            ).images
        ]
        for task, of_task in scenes.items()
    }


def caption(scene: Scene) -> str:
    return f"{scene.sample.task.replace('_', ' ')}: {scene.sample.prompt}"


def two_by_two(blocks: Sequence[Sequence[tuple]], scale: int) -> np.ndarray:
    """Four blocks of rows, two beside each other; a row is its caption and its images. uint8 (H, W, 3)."""
    side = blocks[0][0][1].shape[0] * scale
    width = 3 * side + 2 * GAP
    row = CAPTION + side + GAP
    height = HEADING + len(blocks[0]) * row
    sheet = Image.new("RGB", (2 * width + BETWEEN, 2 * height + BETWEEN), "white")
    draw = ImageDraw.Draw(sheet)
    heading, small = ImageFont.load_default(17), ImageFont.load_default(15)
    for number, block in enumerate(blocks):
        left, top = number % 2 * (width + BETWEEN), number // 2 * (height + BETWEEN)
        for column, name in enumerate(COLUMNS):
            draw.text((left + column * (side + GAP), top), name, fill="#222", font=heading)
        for line, (text, *images) in enumerate(block):
            y = top + HEADING + line * row
            draw.text((left, y), text, fill="#555", font=small)
            for column, image in enumerate(images):
                place = (left + column * (side + GAP), y + CAPTION)
                sheet.paste(Image.fromarray(enlarge(image, scale)), place)
    return np.asarray(sheet)


if __name__ == "__main__":
    main()
