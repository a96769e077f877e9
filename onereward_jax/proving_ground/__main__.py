"""Writes an image grid of scenes: python -m onereward_jax.proving_ground --out scenes.png"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from onereward_jax import tasks
from onereward_jax.proving_ground import defects, photos
from onereward_jax.proving_ground.scenes import ProvingGround


def scene_grid(ground: ProvingGround, rows: int, flaws: int, first: int = 0) -> np.ndarray:
    """Draw `rows` scenes of each task, uint8 (H, W, 3), as source | masked | target | flawed targets."""
    blocks = []
    for task in tasks.TASKS:
        lines = []
        for index in range(first, first + rows):
            scene = ground.scene(index, task)
            masked = np.where(scene.sample.mask[..., None] > 0, 128, scene.sample.image).astype(np.uint8)
            cells = [scene.sample.image, masked, scene.target]
            for flaw in range(flaws):
                cells.append(defects.flawed(scene, np.random.default_rng((index, flaw))).target)
            lines.append(
                np.concatenate([np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=255) for cell in cells], 1)
            )
        blocks.append(np.concatenate(lines, axis=0))
    half = (len(blocks) + 1) // 2
    columns = [np.concatenate(blocks[:half], axis=0), np.concatenate(blocks[half:], axis=0)]
    return np.concatenate([np.pad(column, ((0, 0), (0, 6), (0, 0)), constant_values=255) for column in columns], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes an image grid of the proving ground's scenes.")
    parser.add_argument("--out", type=Path, required=True, help="image file to write")
    parser.add_argument("--split", default="train", choices=photos.SPLITS)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, help="folder of your own photographs")
    parser.add_argument("--rows", type=int, default=3, help="scenes per task")
    parser.add_argument("--flaws", type=int, default=3, help="flawed targets per scene")
    options = parser.parse_args()
    ground = ProvingGround(options.split, options.resolution, options.seed, options.photos)
    grid = Image.fromarray(scene_grid(ground, options.rows, options.flaws))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grid.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(f"{options.out}: source | masked | target | flawed targets, {grid.width}x{grid.height}")
    for photo in ground.photos:
        print(f"  {photo.name}: {photo.credit}")


if __name__ == "__main__":
    main()
