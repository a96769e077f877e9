"""Small records with every field, and pictures of several sizes and kinds."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from onereward_jax.data.preferences.record import Candidate, Preference, Record, Vote, pairs_of_votes


def picture(seed: int, height: int = 24, width: int = 32, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def records() -> list[Record]:
    votes = (
        Vote("structure", "ann", 2, 0),
        Vote("structure", "bob", 2, 0),
        Vote("structure", "cai", 0, 2),
        Vote("aesthetics", "ann", None, None),
        Vote("text_alignment", "ann", 1, 2),
    )
    full = Record(
        id="fill-1",
        task="image_fill",
        prompt="ein roter Käfer 🐞",
        candidates=tuple(
            Candidate(picture(seed, 24 + seed, 32, kind), {"stop": None, "true_cfg_scale": 1.2 + 0.1 * seed})
            for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))
        ),
        votes=votes,
        pairs=pairs_of_votes(votes),
        image=picture(7),
        mask=picture(8),
        notes={"scene": 17, "source": "base", "tags": ["a", {"b": 0.1}]},
    )
    bare = Record(
        id="removal-1",
        task="object_removal",
        prompt="remove",
        candidates=(Candidate(picture(3)), Candidate(picture(4, 40, 20, "JPEG"))),
        pairs=(Preference("removal_quality", 1, 0),),
    )
    unlabelled = Record("extend-1", "image_extend", "", tuple(Candidate(picture(seed)) for seed in (5, 6)))
    return [full, bare, unlabelled]


def write_lines(directory: Path, lines: list[Any], pictures: dict[str, bytes]) -> Path:
    """A folder as a user would make it by hand."""
    for name, content in pictures.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    directory.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (directory / "preferences.jsonl").write_text("\n".join(texts) + "\n")
    return directory
