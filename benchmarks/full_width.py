"""Runs the real commands on weights of full width and few layers: a lab's chain from pairs to an export.

    python -m benchmarks.full_width --workdir runs/full_width --json docs/results/full_size/full_width.json

Random weights with the names, shapes and files of FLUX.1-Fill-dev (one block of each kind, one layer in either text
encoder) and Qwen2.5-VL-7B (one layer of text and of vision), and photographs that are none of the proving ground's.
Every step is a command in a process of its own: `requests check`, `train-judge`, `train` on the requests, which is
killed by SIGKILL after its first checkpoint, the same again, `evaluate`, `export` in three forms, diffusers and peft
that open them, and `onereward check`. Prints seconds, CPU seconds and the process's peak of memory of each.

What is there is not made again: the same command goes on after a failed step. Other arguments take another working
directory. Takes the `parity` extra, 16 GB of
memory and 12 GB of disk. `--base miniature/base --judge miniature/judge --side 64 --bucket_step 16 --text 16` tries
the chain in minutes.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.photographs import HELD_OUT, TO_TRAIN, write_preferences, write_requests
from onereward_jax.atomic_files import remove, write_json
from onereward_jax.cli.exit_codes import guarded
from onereward_jax.errors import UserError
from onereward_jax.given_files import read_json
from onereward_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
UPDATES, KILLED_AFTER = 4, 2  # of the policy
GB = 1e9
# Compiled without optimisation: on a CPU, XLA takes longer over a program than the few times it runs here, and the
# large products are a library's.
XLA_FLAGS = (
    "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
POLICY, JUDGE = "flux_fill:dynamic_lora_512", "judge_7b"

Figures = dict[str, Any]


class Chain:
    """The steps, their commands, and what each took.

    Attributes:
      done: {step: its command, seconds, CPU seconds, peak of memory and figures}; also in WORKDIR/steps.json.
    """

    def __init__(self, args: argparse.Namespace):
        """
        Raises:
          UserError: the steps in the working directory are of other arguments.
        """
        self.args, self.workdir = args, args.workdir
        self.base = args.base or self.workdir / "base"
        self.judge = args.judge or self.workdir / "judge"
        self._file = self.workdir / "steps.json"
        self.done: dict[str, Figures] = self._read()

    def _read(self) -> dict[str, Figures]:
        if not self._file.exists():
            return {}
        kept = read_json(self._file)
        if kept.get("arguments") != self._arguments():
            raise UserError(
                f"{self._file} has the steps of other arguments ({kept.get('arguments')}): give those, or another"
                " --workdir"
            )
        return kept["steps"]

    def _arguments(self) -> dict[str, Any]:
        """Those that change what a step makes."""
        given = {name: value for name, value in vars(self.args).items() if name not in ("workdir", "json")}
        return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}

    # ------------------------------------------------------------------------------------------------------- a command

    def step(self, name: str, words: list[str], figures: Callable[[], Figures] = dict, kill_at: str = "") -> None:
        """Run a command unless it is done, and keep what it took.

        Args:
          words: "onereward" and its arguments, or "-m" and those of another module.
          kill_at: a file of the workdir; the process is killed by SIGKILL once it is there.

        Raises:
          UserError: the command failed; its output is in WORKDIR/logs.
        """
        if name in self.done:
            return
        log = self.workdir / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        program = ["-m", "onereward_jax.cli.main", *words[1:]] if words[0] == "onereward" else words
        # Every program is compiled by the step that needs it first, and kept where a user's would be.
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {"XDG_CACHE_HOME": str(self.workdir.resolve() / "cache"), "XLA_FLAGS": XLA_FLAGS}
        started = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, *program], cwd=ROOT, env=environment, stdout=file, stderr=file)
            try:
                code, usage = _ended(process, self.workdir / kill_at if kill_at else None)
            finally:
                if process.returncode is None:  # this process is being ended
                    process.kill()
                    process.wait()
        seconds = time.perf_counter() - started
        if code != (-signal.SIGKILL if kill_at else 0):
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise UserError(f"{name} ended with {code}: {log} says why; the same command makes it again")
        command = " ".join(words if words[0] == "onereward" else ["python", *words])
        self.done[name] = {
            "command": command,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gb": round(1024 * usage.ru_maxrss / GB, 2),
            **figures(),
        }
        write_json(self._file, {"arguments": self._arguments(), "steps": self.done})
        print(line_of(name, self.done[name]), flush=True)

    # ------------------------------------------------------------------------------------------------------- the steps

    def run(self) -> None:
        """All steps, in their order."""
        write_requests(self.workdir / "requests", TO_TRAIN)
        write_requests(self.workdir / "held_out", HELD_OUT)
        write_preferences(self.workdir / "preferences", self.args.side)
        self._weights()
        self._data_and_judge()
        train = ["onereward", "train", *self._policy_settings(), "--workdir", self._at("run")]
        checkpoint = f"run/checkpoints/step_{KILLED_AFTER:08d}.json"
        if "train, killed" not in self.done:
            remove(self.workdir / "run")  # what is to be waited for may be there
        self.step("train, killed", train, self._updates, kill_at=checkpoint)
        self.step("train, resumed", train, self._updates)
        self._evaluate()
        self._exports()
        self._check()

    def _weights(self) -> None:
        module, layers = ["-m", "benchmarks.random_checkpoint"], ["--layers", "1"]
        if not self.args.base:
            size = lambda: {"gb": _gigabytes(self.base)}
            self.step("random base", [*module, "write", str(self.base), *layers, "--text_layers", "1"], size)
        if not self.args.judge:
            judge = [*module, "judge", str(self.workdir), *layers]
            self.step("random judge", judge, lambda: {"gb": _gigabytes(self.judge)})

    def _data_and_judge(self) -> None:
        check = ["onereward", "requests", "check", "--source"]
        for name in ("requests", "held_out"):
            self.step(f"requests check, {name}", [*check, self._at(name)])
        settings = {
            "judge.start": self.judge,
            "judge.data": f"('{self._at('preferences')}',)",
            "judge.max_pixels": self.args.side**2,
            "judge.image_step": 112 if self.args.side > 112 else 0,
            "judge.held_out_share": 0.3,
            "judge.evaluate_every": 2,
            "judge.ema_decay": 0.5,
            "lora.rank": 16,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 1,
            "train.batch_size": 2,
            "train.num_steps": 4,
            "train.log_every": 1,
        }
        train = ["onereward", "train-judge", "--config", JUDGE, *overrides(settings), "--workdir", self._at("judged")]
        self.step("train-judge", train, self._judged)

    def _policy_settings(self) -> list[str]:
        settings = {
            "data.source": self._at("requests"),
            "data.held_out": self._at("held_out"),
            "data.resolution": self.args.side,
            "data.bucket_step": self.args.bucket_step,
            "max_sequence_length": self.args.text,
            "mesh.fsdp": 1,
            "mesh.tensor": 1,
            "model.base": self.base,
            "model.judge": self.judge,
            "model.judge_adapters": f"('{self._at('judged/export')}',)",
            "lora.rank": 16,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 1,
            "rl.num_steps": 2,
            "rl.first_index": 0,
            "rl.last_index": 1,
            "train.batch_size": 2,
            "train.num_steps": UPDATES,
            "train.checkpoint_every": KILLED_AFTER,
            "train.log_every": 1,
            "evaluation.every": KILLED_AFTER,
            "evaluation.scenes_while_training": 1,
            "evaluation.num_steps": 2,
            "evaluation.batch_size": 2,
        }
        return ["--config", POLICY, *overrides(settings)]

    def _evaluate(self) -> None:
        out = self._at("evaluation")
        settings = {
            "data.resolution": self.args.side,
            "data.bucket_step": self.args.bucket_step,
            "max_sequence_length": self.args.text,
            "evaluation.num_steps": 2,
            "evaluation.batch_size": 2,
        }
        self.step(
            "evaluate",
            [
                *("onereward", "evaluate", "--config", POLICY, *overrides(settings), "--policy", self._at("run")),
                *("--data", self._at("held_out"), "--judge", self._at("judged/export"), "--out", out),
            ],
            lambda: _evaluated(Path(out) / "evaluation.json"),
        )

    def _exports(self) -> None:
        export = ["onereward", "export", "--workdir", self._at("run"), "--format"]
        for form in ("diffusers", "lora", *(() if self.args.base else ("comfyui",))):
            out = self.workdir / "exports" / form
            size = lambda out=out: {"gb": _gigabytes(out)}
            self.step(f"export, {form}", [*export, form, "--out", str(out)], size)
        found = self.workdir / "opened.json"
        opened = ["-m", "benchmarks.opened_elsewhere", "--base", str(self.base), "--json", str(found)]
        for name, path in (("model", "exports/diffusers"), ("lora", "exports/lora"), ("judge", "judged/export")):
            opened += [f"--{name}", self._at(path)]
        opened += ["--rows", str(self.args.side // 16), "--text", str(self.args.text)]
        opened += ["--side", str(self.args.side)]
        self.step("opened by diffusers and peft", opened, lambda: {"errors": read_json(found)})

    def _check(self) -> None:
        answers, out = self._at("answers.npz"), self._at("check")
        words = ["--out", answers, "--base", str(self.base), "--judge", str(self.judge), "--steps", "2", "--pairs", "2"]
        words += ["--side", str(self.args.side), "--max_sequence_length", str(self.args.text)]
        self.step("official answers", ["-m", "benchmarks.official_answers", *words, "--guidance_scale", "1"])
        check = ["onereward", "check", *self._policy_settings(), "--answers", answers, "--updates", "2"]
        found = lambda: {"findings": json.loads((Path(out) / "check.json").read_text())}  # a list
        self.step("check", [*check, "--workdir", out], found)

    def _at(self, name: str) -> str:
        return str(self.workdir / name)

    # --------------------------------------------------------------------------------------------------------- figures

    def _judged(self) -> Figures:
        lines = read_metrics(self.workdir / "judged" / "metrics.jsonl")
        accuracy = [line["judge/held_out/accuracy"] for line in lines if "judge/held_out/accuracy" in line]
        return {"losses": [line["learning/loss"] for line in lines], "held_out_accuracy": accuracy}

    def _updates(self) -> Figures:
        """Of all updates so far: a resumed run's lines go on where the checkpoint was."""
        lines = read_metrics(self.workdir / "run" / "metrics.jsonl")
        names = [name for line in lines for name in line if name.startswith("evaluation/")]
        return {
            "updates": [line["step"] for line in lines],
            "losses": [line["learning/loss"] for line in lines],
            "step_seconds": [round(line["perf/step_time_seconds"], 1) for line in lines],
            "evaluated": sorted({name.split("/")[1] for name in names}),
        }


def overrides(settings: dict[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def _ended(process: subprocess.Popen, kill_at: Path | None) -> tuple[int, Any]:
    """Wait for a process, or kill it once a file is there: its exit code, minus the signal, and what it used."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if kill_at is not None and kill_at.exists():
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.2)


def _evaluated(file: Path) -> Figures:
    found = read_json(file)
    return {"requests": found["requests"], "meters": sorted(found["meters"]), "judges": sorted(found["judges"])}


def _gigabytes(directory: Path) -> float:
    return round(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / GB, 3)


def line_of(name: str, step: Figures) -> str:
    """Write a step as a row of a table."""
    return f"| {name} | {step['seconds']:.0f} | {step['cpu_seconds']:.0f} | {step['peak_gb']:.1f} |"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--base", type=Path, help="fill model; without it random weights of full width are written")
    parser.add_argument("--judge", type=Path, help="judge; likewise")
    parser.add_argument("--side", type=int, default=256, help="pixels of a side (default: 256)")
    parser.add_argument("--bucket_step", type=int, default=64, help="of the buckets (default: 64)")
    parser.add_argument("--text", type=int, default=64, help="tokens that T5 reads (default: 64)")
    return parser


def check_packages() -> None:
    """
    Raises:
      UserError: what the last steps open the exports with is missing.
    """
    missing = [name for name in ("diffusers", "peft", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'onereward-jax[parity]'")


def main() -> None:
    check_packages()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the step's process is ended, too
    chain = Chain(arguments().parse_args())
    chain.run()
    total = {name: round(sum(step[name] for step in chain.done.values()), 1) for name in ("seconds", "cpu_seconds")}
    total["peak_gb"] = max(step["peak_gb"] for step in chain.done.values())
    print(line_of("all", total))
    if chain.args.json:
        machine = {"cpus": os.cpu_count(), "side": chain.args.side, "updates": UPDATES}
        write_json(chain.args.json, machine | {"steps": chain.done, "all": total})


if __name__ == "__main__":
    sys.exit(guarded(main))
