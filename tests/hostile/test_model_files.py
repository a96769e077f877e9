"""Damaged model files: loading one ends well or in one sentence, without memory or time that grows without end."""

import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from onereward_jax.models import lora
from onereward_jax.weights.bfl import save_bfl
from onereward_jax.weights.peft_adapters import save_adapter
from onereward_jax.weights.save import save_component
from tests.support import tiny_fill, tiny_judge
from tests.support.hostile import LONG, Trials
from tests.support.model_worker import Worker

FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
# What is damaged -> the loader of `tests.support.model_worker`, and how often it is drawn.
KINDS = {
    **{f"fill/{folder}": (folder, 3 if folder.startswith("tokenizer") else 2) for folder in FOLDERS},
    "sharded": ("transformer", 2),
    "judge": ("judge", 2),
    "adapter": ("adapter", 2),
    "judge_adapter": ("judge_adapter", 1),
    "single": ("single_file", 1),
}
NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    10**9,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    1e9,
    1e300,
    0.5,
    -0.5,
    float("nan"),
    float("inf"),
]
VALUES = [
    *NUMBERS,
    None,
    True,
    False,
    "",
    "2",
    "../x",
    "a\nb",
    "\ud800",
    [],
    {},
    [[]],
    [0],
    [-1, 0],
    {"a": 1},
    "x" * 5000,
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of everything, small."""
    root = tmp_path_factory.mktemp("models")
    pipeline = tiny_fill.pipeline(root / "tokenizers")
    pipeline.save_pretrained(root / "fill")
    params = pipeline.params["transformer"]
    save_component(root / "sharded", "transformer", pipeline.transformer, params, max_shard_bytes=60_000)
    judge = tiny_judge.judge()
    judge.save_pretrained(root / "judge")
    for kind, name, base in (("transformer", "adapter", params), ("judge", "judge_adapter", judge.params)):
        save_adapter(root / name, kind, jax.device_get(lora.LoRA(2, targets="attn").init(base, jax.random.key(0))))
    (root / "single").mkdir()
    save_bfl(root / "single" / "transformer.safetensors", params, "float32")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "image.png")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(root / "mask.png")
    return root


# ---------------------------------------------------------------------------------------------------- mutations


def places(value, path=()):
    """Every place in a JSON value, as the keys that lead to it."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def mutated_json(rng, text: bytes) -> bytes:
    """Replace, remove, rename or repeat values; of a long list of tokens those at the top are drawn as often."""
    value = json.loads(text)
    for _ in range(rng.integers(1, 3)):
        all_places = list(places(value))
        near = [path for path in all_places if len(path) <= 2] if rng.random() < 0.5 else all_places
        path = near[rng.integers(len(near))]
        if not path:
            if rng.random() < 0.1:
                return json.dumps(VALUES[rng.integers(len(VALUES))]).encode()
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        old, key = holder[path[-1]], path[-1]
        match rng.integers(5):
            case 0 | 1:
                holder[key] = VALUES[rng.integers(len(VALUES))]
            case 2:
                factor = int(rng.choice([-1, 2, 1000, 10**9]))
                is_number = isinstance(old, int | float) and not isinstance(old, bool)
                holder[key] = old * factor + int(rng.integers(-1, 2)) if is_number else [old]
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[f"{key}x" if rng.random() < 0.5 else str(rng.choice(["dtype", "", "shape", "é\n"]))] = (
                    holder.pop(key)
                )
    return json.dumps(value).encode()


def mutated_bytes(rng, content: bytes) -> bytes:
    """Flip, cut, insert, repeat or replace bytes."""
    changed = bytearray(content)
    at = int(rng.integers(len(changed))) if changed else 0
    match rng.integers(6):
        case 0:
            for _ in range(rng.integers(1, 9)):
                changed[int(rng.integers(min(len(changed), 2000)))] ^= 1 << int(rng.integers(8))
        case 1:
            del changed[at:]
        case 2:
            changed = bytearray()
        case 3:
            changed[at:at] = rng.bytes(int(rng.integers(1, 20)))
        case 4:
            del changed[at : at + int(rng.integers(1, 50))]
        case 5:
            changed = bytearray(rng.bytes(int(rng.integers(1, 300))))
    return bytes(changed)


def mutated_safetensors(rng, content: bytes) -> bytes:
    """Change the header's JSON, or its length."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        length = int(rng.choice([0, 1, size - 1, size + 1, 10**8, 10**8 + 1, 2**40, 2**63 - 1]))
        return struct.pack("<Q", length) + content[8:]
    header = mutated_json(rng, content[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def damage(rng, directory: Path) -> str:
    """Damage one file in a directory; returns how."""
    files = sorted(file for file in directory.rglob("*") if file.is_file() and file.suffix != ".png")
    small = [file for file in files if file.suffix != ".safetensors"]
    file = (
        (small or files)[rng.integers(len(small or files))] if rng.random() < 0.6 else files[rng.integers(len(files))]
    )
    content, draw = file.read_bytes(), rng.random()
    if draw < 0.04:
        file.unlink()
        return f"{file.name} removed"
    if draw < 0.08:
        other = files[rng.integers(len(files))]
        shutil.copy(other, file) if other != file else file.write_bytes(b"null")
        return f"{file.name} is {other.name}"
    if draw < 0.1 and file.name == "tokenizer.json":
        file.rename(file.with_name(str(rng.choice(["spiece.model", "vocab.json", "merges.txt"]))))
        return "tokenizer.json renamed"
    if file.name.endswith("index.json") and draw < 0.4:
        index = json.loads(content)
        elsewhere = [
            "/etc/passwd",
            "../sharded/x.safetensors",
            "/dev/zero",
            "a/../b.safetensors",
            "",
            3,
            None,
            "x" * 300,
        ]
        names = list(index["weight_map"])
        index["weight_map"][names[rng.integers(len(names))]] = elsewhere[rng.integers(len(elsewhere))]
        file.write_text(json.dumps(index))
        return "index points elsewhere"
    if file.suffix == ".json" and draw < 0.7:
        file.write_bytes(mutated_json(rng, content))
        return f"{file.name} with another value"
    if file.suffix == ".safetensors" and draw < 0.7:
        file.write_bytes(mutated_safetensors(rng, content))
        return f"{file.name} with another header"
    file.write_bytes(mutated_bytes(rng, content))
    return f"{file.name} with other bytes"


# -------------------------------------------------------------------------------------------------------- trials


def test_damaged_model_files(models, tmp_path):
    worker = Worker(models)
    trials = Trials("damaged model files", short=60, long=1500, limit=60)
    drawn = [name for name, (_, weight) in KINDS.items() for _ in range(weight)]
    try:
        worker.start()
        for trial in trials:
            name = drawn[trial.rng.integers(len(drawn))]
            target = tmp_path / Path(name).name
            shutil.copytree(models / name, target)
            how = damage(trial.rng, target)
            failed = len(trials.failures)
            with trial:
                worker.load(KINDS[name][0], target)
            if len(trials.failures) > failed:
                trials.failures[-1] += f" [{name}: {how}]"
                worker.start()
            shutil.rmtree(target)
    finally:
        worker.close()
    trials.check()
    assert trials.refused > trials.count / 3
    assert trials.accepted > trials.count / 20


@pytest.mark.skipif(not LONG, reason="loads whole models: in the long form")
def test_damaged_model_files_by_commands(models, tmp_path):
    worker = Worker(models)
    trials = Trials("damaged model files given to commands", short=0, long=120, limit=120)
    try:
        worker.start()
        for trial in trials:
            name, loader = [("fill", "fill"), ("fill", "fill_command"), ("judge", "judge_command")][trial.number % 3]
            target = tmp_path / name
            shutil.copytree(models / name, target)
            part = target / str(trial.rng.choice(FOLDERS)) if name == "fill" else target
            how = damage(trial.rng, part)
            failed = len(trials.failures)
            with trial:
                worker.load(loader, target)
            if len(trials.failures) > failed:
                trials.failures[-1] += f" [{name}/{part.name}: {how}]"
                worker.start()
            shutil.rmtree(target)
    finally:
        worker.close()
    trials.check()
