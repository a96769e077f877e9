"""Records what the trainers compute, so that a move or a rename can be shown to change nothing.

    python dev/regression_net.py record before      # on the code as it was
    python dev/regression_net.py record after       # on the code as it is
    python dev/regression_net.py compare before after

Runs every trainer from the command line, in miniature: 40 updates on one device, two updates on a mesh of 2 x 2 x 2
simulated devices, short runs of the switches of reward feedback learning; and lowers the update of a full-size
configuration for a TPU slice (with the `tpu` extra; compiling it is left out). Of each it keeps the metrics, digit by
digit, and a digest of the lowered update without names and source locations. About 20 minutes on two cores.

A program on 2 x 2 x 2 devices and one on a TPU is only lowered or run twice: its digest is what counts.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# What a configuration or a command was called before, if this code knows it by another name.
NAMES: dict[str, str] = {
    "configs/tiny.py:quick": "quick",
    **{f"configs/tiny.py:{name}": f"miniature/{name}" for name in ("vae", "base", "judge", "second_judge")},
}
COMMON = ("--config.train.log_every=1", "--config.train.checkpoint_every=0")
FORTY, TWO, SIX = (f"--config.train.num_steps={count}" for count in (40, 2, 6))
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", TWO)
NO_EVALUATION = ("--config.evaluation.every=0",)
LORA = ("--config.lora.rank=4",)


def runs(data: Path) -> dict[str, tuple[str, ...]]:
    """{name: command} of every run; `data` holds what they read."""
    vae = ("train-vae", "--config", "configs/tiny.py:vae")
    base = (
        *("train-base", "--config", "configs/tiny.py:base", "--config.base.vae=miniature/base/vae"),
        "--config.base.scenes_per_task=32",
    )
    judge = (
        *("train-judge", "--config", "configs/tiny.py:second_judge", f"--config.judge.data=('{data / 'train'}',)"),
        *("--config.judge.start=miniature/judge", "--config.judge.planted_share=0.4"),
        *("--config.judge.held_out_share=0.2", "--config.judge.evaluate_every=20"),
    )
    finetune = (
        *("finetune", "--config", "configs/finetune.py:tiny", f"--config.data.source={data / 'photographs'}"),
        *("--config.data.caption=a photograph", "--config.finetune.evaluate_every=20"),
    )
    train = ("train", "--config", "configs/tiny.py:quick")
    dynamic, fixed = (*train, *NO_EVALUATION), (*train, *NO_EVALUATION, "--config.algorithm=fixed")
    guidance = ("--config.rl.rollout_true_cfg_scale=2.0", "--config.rl.gradient_true_cfg_scale=2.0")
    return {
        "vae": (*vae, FORTY),
        "base": (*base, FORTY),
        "judge": (*judge, FORTY),
        "finetune": (*finetune, FORTY),
        "quick": (*train, FORTY, "--config.evaluation.every=20", "--config.evaluation.watched_scenes=4"),
        "fixed": (*fixed, FORTY),
        "guided": (*dynamic, SIX, *guidance, "--config.rl.accumulate=2", "--config.rl.predictions=2"),
        "matched": (*dynamic, SIX, "--config.rl.matched_reference=true", "--config.rl.index_per_sample=false"),
        "stale": (*dynamic, SIX, "--config.rl.reference_max_age=1", "--config.rl.shared_prefix=false"),
        "cached": (
            *fixed,
            SIX,
            f"--config.rl.reference_pool={data / 'references'}",
            "--config.data.num_conditions=16",
            "--config.rl.accumulate=2",
        ),
        "lora": (*fixed, SIX, *LORA),
        "mesh_vae": (*vae, *MESH),
        "mesh_base": (*base, *MESH),
        "mesh_judge": (*judge, *MESH, "--config.judge.evaluate_every=0"),
        "mesh_finetune": (*finetune, *MESH, "--config.finetune.evaluate_every=0", "--config.finetune.sample_every=0"),
        "mesh_quick": (*dynamic, *MESH),
        "plan": ("plan", "--config", "configs/flux_fill.py:dynamic_1024", "--topology", "v5p:2x2x4"),
        "plan_lora": ("plan", "--config", "configs/flux_fill.py:fixed_lora_512", "--topology", "v5e:4x4"),
    }


def record(directory: Path, only: list[str]) -> None:
    """Runs everything that `directory` has no result of."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    data = Path("/tmp/onereward-net")  # one path, before and after: it is a part of what a run is made of
    prepare(data, directory)
    for name, command in runs(data).items():
        result = directory / f"{name}.json"
        if result.exists() or (only and name not in only):
            continue
        started = time.perf_counter()
        found = lowered_plan(command, directory / name) if command[0] == "plan" else trained(name, command, directory)
        result.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found['program'][:16]}, {time.perf_counter() - started:.0f} s", flush=True)


def prepare(data: Path, directory: Path) -> None:
    """Preferences of the proving ground and a folder of photographs; kept, and the preferences' digest noted."""
    if not (data / "photographs").exists():
        import skimage.data
        from PIL import Image

        (data / "photographs").mkdir(parents=True)
        for name in ("astronaut", "coffee", "chelsea", "rocket"):
            Image.fromarray(getattr(skimage.data, name)()).save(data / "photographs" / f"{name}.png")
    made = directory / "preferences"
    if not (directory / "preferences.json").exists():
        shutil.rmtree(made, ignore_errors=True)
        onereward(
            *("make-preferences", "--config", "configs/tiny.py:judge", "--workdir", str(made)),
            *("--config.preferences.planted_scenes_per_task=32", "--config.preferences.scenes_per_task=32"),
        )
        files = sorted(path for path in (made / "train").rglob("*") if path.suffix in (".png", ".jsonl"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        (directory / "preferences.json").write_text(json.dumps({"program": digest, "metrics": len(files)}) + "\n")
    shutil.rmtree(data / "train", ignore_errors=True)
    shutil.copytree(made / "train", data / "train")
    shutil.rmtree(data / "references", ignore_errors=True)


def onereward(*command: str, **environment: str) -> None:
    program = [sys.executable, "-m", "onereward_jax.cli", *(NAMES.get(word, word) for word in command)]
    done = subprocess.run(program, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def trained(name: str, command: tuple[str, ...], directory: Path) -> dict[str, Any]:
    workdir, dump = directory / name, directory / f"{name}.programs"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.rmtree(dump, ignore_errors=True)
    flags = "--xla_force_host_platform_device_count=8" if name.startswith("mesh_") else ""
    # Two threads a device: with fewer, collectives of simulated devices can wait for ever.
    onereward(*command, *COMMON, "--workdir", str(workdir), XLA_FLAGS=flags, NPROC="32", JAX_DUMP_IR_TO=str(dump))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]
    found = {"program": digest_of_largest(dump, directory / f"{name}.mlir"), "metrics": numbers}
    shutil.rmtree(dump)
    shutil.rmtree(workdir)
    return found


def lowered_plan(command: tuple[str, ...], workdir: Path) -> dict[str, Any]:
    """Starts a plan and ends it when its program is lowered: the compiler takes minutes more."""
    dump = workdir.with_suffix(".programs")
    shutil.rmtree(dump, ignore_errors=True)
    # The kernel's own text holds source locations: the reference attention stands in for it.
    program = [sys.executable, "-m", "onereward_jax.cli", *(NAMES.get(word, word) for word in command)]
    process = subprocess.Popen(
        [*program, "--config.model.attention=xla"],
        env={**os.environ, "JAX_DUMP_IR_TO": str(dump)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    size = -1
    while process.poll() is None:
        time.sleep(3)
        largest = max((path.stat().st_size for path in dump.glob("*.mlir")), default=0)
        if largest == size and largest > 1_000_000:
            os.killpg(process.pid, signal.SIGKILL)
        size = largest
    if process.returncode != -signal.SIGKILL:
        sys.exit(f"{' '.join(command)}\n{process.stderr.read().decode() if process.stderr else ''}")
    found = {"program": digest_of_largest(dump, workdir.with_suffix(".mlir")), "metrics": []}
    shutil.rmtree(dump)
    return found


def digest_of_largest(dump: Path, kept: Path) -> str:
    """SHA-256 of the largest program, the update; its text is kept, to find a difference."""
    largest = max(dump.glob("*.mlir"), key=lambda path: path.stat().st_size)
    text = without_names(largest.read_text())
    kept.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def without_names(text: str) -> str:
    """A StableHLO module without source locations, and with functions and results numbered, not named."""
    text = re.sub(r"^#loc.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" loc\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\)", "", text)
    text = re.sub(
        r", *jax\.(?:result_info|arg_info) = \"[^\"]*\"|jax\.(?:result_info|arg_info) = \"[^\"]*\",? *", "", text
    )
    text = re.sub(r"module @\S+", "module @m", text)
    numbers: dict[str, str] = {}
    return re.sub(r"@[\w.$-]+", lambda name: numbers.setdefault(name[0], f"@{len(numbers)}"), text)


def compare(before: Path, after: Path) -> int:
    """Prints what differs; the exit code is 1 where anything does."""
    names = sorted({path.stem for path in before.glob("*.json")} | {path.stem for path in after.glob("*.json")})
    wrong = 0
    for name in names:
        files = [directory / f"{name}.json" for directory in (before, after)]
        if not all(file.exists() for file in files):
            print(f"{name}: missing in {next(str(file.parent) for file in files if not file.exists())}")
            wrong = 1
            continue
        old, new = (json.loads(file.read_text()) for file in files)
        program = "same program" if old["program"] == new["program"] else "ANOTHER PROGRAM"
        numbers = "same digits" if old["metrics"] == new["metrics"] else f"OTHER DIGITS {first_difference(old, new)}"
        print(f"{name}: {program}, {numbers}")
        wrong |= int(old != new)
    return wrong


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for step, (was, now) in enumerate(zip(old["metrics"], new["metrics"], strict=False)):
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                return f"(line {step}, {key}: {was.get(key)} and {now.get(key)})"
    return f"({len(old['metrics'])} and {len(new['metrics'])} lines)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("directory", type=Path)
    recording.add_argument("--only", nargs="*", default=[])
    comparing = commands.add_parser("compare")
    comparing.add_argument("directories", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.command == "compare":
        sys.exit(compare(*arguments.directories))
    record(arguments.directory, arguments.only)
