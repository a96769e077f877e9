"""First contact: what to see before a long run is started on new weights, on a new machine, each with go or no-go.

Every check is one line: its name, a figure, what to expect. The parity checks compare with answers of diffusers and
transformers that `benchmarks/official_answers.py` has written to a file, on any machine that has those libraries.
"""

import dataclasses
import functools
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax import tasks
from onereward_jax.atomic_files import make_directory, remove, write_json
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.errors import Fault, UserError, in_memory, one_line
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.given_files import read_bytes, read_json
from onereward_jax.judge.judge import Judge
from onereward_jax.parallel import cluster, hosts
from onereward_jax.parallel.activations import traced_for
from onereward_jax.rl.build_update import computation, frozen_dtype
from onereward_jax.runs import reward_feedback
from onereward_jax.training import trainer
from onereward_jax.training.metrics import read_metrics

RESULTS, RUN = "check.json", "run"  # in the working directory
GIB = 2.0**30
RESUMED = 2  # updates after the resume
SCENES = 4  # of each task in the first evaluation
# Ours may be so much farther from the official answer in float32 than the official one in our dtype is, and no less
# than a float32 computation in another order is: levels of 8 bits, and probabilities.
FARTHER, LEVELS, PROBABILITY = 1.5, 0.05, 0.002
RISE, LARGEST_STEP = 0.1, 8 / 255  # of log P(Yes), by the gradient's own prediction; of a pixel, root mean square
PLAN_TOLERANCE = 1.05

Answers = Mapping[str, np.ndarray]


class Skipped(Exception):
    """A check that can't be made here; the message says what it takes."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
      figure: what was measured, or why nothing was.
      expected: what goes.
      go: None where the check was skipped.
    """

    name: str
    figure: str
    expected: str
    go: bool | None

    def line(self) -> str:
        """Write the check for people."""
        verdict = "skipped" if self.go is None else "go" if self.go else "NO-GO"
        return f"{verdict:8}{self.name}: {self.figure} (expected: {self.expected})"


@dataclasses.dataclass
class FirstContact:
    """The checks of a configuration of `train`.

    Attributes:
      workdir: new, or of an earlier check, whose run is removed.
      answers: the file of `benchmarks/official_answers.py`; None skips the parity checks.
      plan: what `onereward plan --json` wrote for this configuration; None leaves the comparison out.
      updates: of the first run, before it is resumed.
    """

    config: RewardFeedback
    workdir: Path
    answers: Path | None = None
    plan: Path | None = None
    updates: int = 10

    def run(self, tell: Callable[[Finding], None]) -> list[Finding]:
        """Make all checks, one after the other, and write them to workdir/check.json.

        A check that fails does not keep the others from being made; those that need what it did fail too.

        Args:
          tell: called with each finding, as soon as it is there.

        Raises:
          FileNotFoundError, UserError: the working directory, a file that was given, the requests or a model can't be
            used; nothing is written.
        """
        self._answers = None if self.answers is None else read_answers(self.answers)
        self._planned = None if self.plan is None else _read_plan(self.plan)
        self._source = reward_feedback.open_requests(self.config)
        FillPipeline.from_pretrained(self.config.model.base, read=False)
        Judge.from_pretrained(self.config.model.judge, read=False)
        hosts.on_primary(self._begin)
        findings: list[Finding] = []
        for name, expected, check in self._checks():
            findings.append(_found(name, expected, check))
            tell(findings[-1])
            if hosts.is_primary():
                write_json(self.workdir / RESULTS, [dataclasses.asdict(finding) for finding in findings])
        return findings

    def _begin(self) -> None:
        if (self.workdir / RUN).exists() and not (self.workdir / RESULTS).exists():
            raise UserError(f"{self.workdir / RUN} is no run of an earlier check: choose another --workdir")
        remove(self.workdir / RUN)
        make_directory(self.workdir / RUN)
        write_json(self.workdir / RESULTS, [])

    def _checks(self) -> Iterator[tuple[str, str, Callable[[], tuple[str, bool]]]]:
        """(name, what to expect, function that gives a figure and whether it goes)."""
        last = self.updates + RESUMED
        yield "machine", "devices that share the batch", self._machine
        yield "fill beside diffusers", "as near as its own rounding", self._fill
        yield "judge beside transformers", "as near as its own rounding", self._judge
        yield "judge's gradient", "a small step along it raises log P(Yes)", self._gradient
        yield f"{self.updates} updates", "none skipped, finite losses", self._first_run
        yield "policy's gradient", "finite, not zero", self._policy_gradient
        yield "memory", "below the devices' limit, and the plan's peak within 5 %", self._memory
        yield "resume", f"updates 1 to {last}, each once", self._resume
        yield "first evaluation", "a figure for each task, all finite", self._evaluation

    # ------------------------------------------------------------------------------------------------------ the models

    def _machine(self) -> tuple[str, bool]:
        machine, devices = cluster.machine(), jax.devices()
        mesh = trainer.check_devices(self.config)
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        memory = f", {limit / GIB:.1f} GiB each" if limit else ""
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        return (
            f"{machine.name}, hosts: {hosts.count()} of {machine.memory / GIB:.0f} GiB,"
            f" devices: {len(devices)} ({devices[0].device_kind}{memory}) as {axes}",
            True,
        )

    def _fill(self) -> tuple[str, bool]:
        given = self._of("fill")
        mesh, dtype = trainer.check_devices(self.config), frozen_dtype(self.config)
        pipeline = FillPipeline.from_pretrained(self.config.model.base, dtype=dtype, mesh=mesh)
        (image,) = pipeline(
            prompt=str(given["prompt"]),
            image=given["image"],
            mask_image=given["mask"] * np.uint8(255),
            noise=given["noise"],
            posterior="mode",
            output_type="array",
            **json.loads(str(given["settings"])),
        ).images
        return _nearness(
            255 * np.asarray(image), 255 * given["float32"], 255 * given[dtype], LEVELS, "levels of 255, on average"
        )

    def _judge(self) -> tuple[str, bool]:
        given, dtype = self._of("judge"), frozen_dtype(self.config)
        judge = Judge.from_pretrained(self.config.model.judge, dtype, mesh=trainer.check_devices(self.config))
        p_yes = [
            judge.ask(first, second, question=str(question))["yes"]
            for first, second, question in zip(given["first"], given["second"], given["questions"], strict=True)
        ]
        figure = f"in P(Yes), the mean of {len(p_yes)}"
        return _nearness(np.array(p_yes), given["float32"], given[dtype], PROBABILITY, figure)

    def _gradient(self) -> tuple[str, bool]:
        """The chain that training differentiates: resize, normalise, patchify, vision tower, language model."""
        mesh, fields = trainer.check_devices(self.config), computation(self.config)
        judge = Judge.from_pretrained(self.config.model.judge, frozen_dtype(self.config), fields=fields, mesh=mesh)
        task = self._source.tasks[0]
        sample = self._source.sample(0, task)
        question = judge.question(task, tasks.dimensions_of(task, sample.prompt)[-1], sample.prompt)
        first = jnp.asarray(sample.image / np.float32(255))
        second = jnp.where(jnp.asarray(sample.mask)[..., None] == 1, 0.5, first)

        @jax.jit
        @functools.partial(traced_for, mesh)
        def both(params, image):
            return jax.value_and_grad(lambda x: judge.log_p_yes(x, second, question=question, params=params))(image)

        before, gradient = both(judge.params, first)
        size = jnp.sqrt(jnp.square(gradient).mean())
        if not (jnp.isfinite(size) and size > 0):
            return f"its size is {size:g}", False
        direction = gradient / size
        step = jnp.minimum(RISE / jnp.vdot(gradient, direction), LARGEST_STEP)
        rise = float(both(judge.params, first + step * direction)[0] - before)
        predicted = float(step * jnp.vdot(gradient, direction))
        return f"a step of {255 * step:.2g} levels raises it by {rise:+.3f}, by the gradient {predicted:+.3f}", rise > 0

    # --------------------------------------------------------------------------------------------------------- the run

    def _train(self, last: int) -> None:
        config = self.config.replace(
            {
                "train.num_steps": last,
                "train.checkpoint_every": self.updates,
                "train.log_every": 1,
                "evaluation.every": self.updates,
                "evaluation.scenes_while_training": min(SCENES, self.config.evaluation.scenes_while_training),
            }
        )
        workdir = claim_workdir(self.workdir / RUN, config, RewardFeedback.MEASURING)
        reward_feedback.train(config, workdir)

    def _metrics(self) -> list[dict[str, Any]]:
        file = self.workdir / RUN / "metrics.jsonl"
        if not file.exists():
            raise UserError("there was no update")
        return read_metrics(file)

    def _first_run(self) -> tuple[str, bool]:
        self._peak_before = _peak_gib()
        self._train(self.updates)
        lines = self._metrics()
        skipped = sum(line.get("learning/skipped", 0) for line in lines)
        # The first update waits for the compiler.
        seconds = [line["perf/step_time_seconds"] for line in lines[1:]]
        pace = f", {float(np.median(seconds)):.2f} s an update" if seconds else ""
        if self._planned and seconds:
            pace += f" (plan: at least {self._planned['seconds']['update']:.2f})"
        finite = all(_is_finite(line["learning/loss"]) for line in lines)
        return f"{len(lines)} updates, {skipped:g} skipped{pace}", len(lines) == self.updates and not skipped and finite

    def _policy_gradient(self) -> tuple[str, bool]:
        norms = [line["learning/grad_norm"] for line in self._metrics()]
        if not all(map(_is_finite, norms)):
            return "NaN or Inf", False
        return f"norm {min(norms):.3g} to {max(norms):.3g}", min(norms) > 0

    def _memory(self) -> tuple[str, bool]:
        self._metrics()
        peak, before = _peak_gib(), self._peak_before
        if peak is None or before is None:
            raise Skipped("these devices tell no peak of memory")
        limit = min((device.memory_stats() or {})["bytes_limit"] for device in jax.local_devices()) / GIB
        figure, goes = f"peak {peak:.2f} of {limit:.2f} GiB", peak < limit
        if self._planned is None:
            return f"{figure}; no plan was given", goes
        planned = self._planned["peak_gib"]
        beyond = peak > PLAN_TOLERANCE * planned
        if beyond and peak <= before:  # a process's peak never falls: what the updates took is not known
            said = f"reached by the checks before the updates; the plan's {planned:.2f} can't be compared"
            return f"{figure}, {said}", goes
        return f"{figure}, plan {planned:.2f}", goes and not beyond

    def _resume(self) -> tuple[str, bool]:
        self._metrics()
        self._train(self.updates + RESUMED)
        steps = [line["step"] for line in self._metrics()]
        return f"updates {steps[0]} to {steps[-1]}", steps == list(range(1, self.updates + RESUMED + 1))

    def _evaluation(self) -> tuple[str, bool]:
        found = {name: v for line in self._metrics() for name, v in line.items() if name.startswith("evaluation/")}
        if not found:
            raise Skipped("the source has no held-out samples")
        shown = lambda value: f"{value:.4f}" if _is_finite(value) else "NaN"
        figures = [f"{name.removeprefix('evaluation/')} {shown(value)}" for name, value in sorted(found.items())]
        return ", ".join(figures), all(map(_is_finite, found.values()))

    def _of(self, part: str) -> Answers:
        """The answers of one part, without its name."""
        if self._answers is None:
            raise Skipped("give --answers, a file of `python -m benchmarks.official_answers`")
        prefix = f"{part}/"
        given = {name.removeprefix(prefix): x for name, x in self._answers.items() if name.startswith(prefix)}
        if not given:
            raise Skipped(f"{self.answers} has no answers of this part")
        return given


def _peak_gib() -> float | None:
    """The most that a device of this process has held since its start; None where they don't tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    return max(of["peak_bytes_in_use"] for of in stats) / GIB if all(stats) else None


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)  # the file has null for what is not


def _found(name: str, expected: str, check: Callable[[], tuple[str, bool]]) -> Finding:
    try:
        with in_memory("this check", "take more devices, or what `onereward plan` advises"):
            figure, go = check()
        return Finding(name, figure, expected, go)
    except Skipped as reason:
        return Finding(name, str(reason), expected, None)
    except (UserError, Fault, OSError) as error:
        return Finding(name, one_line(str(error)), expected, False)


def _nearness(ours: np.ndarray, float32: np.ndarray, theirs: np.ndarray, least: float, unit: str) -> tuple[str, bool]:
    """How far ours is from the official answer in float32, and the official one in our dtype, on average."""
    if ours.shape != float32.shape:
        raise UserError(f"the answers have the shape {float32.shape}, ours {ours.shape}: make them with this model")
    mine, rounding = float(np.abs(ours - float32).mean()), float(np.abs(theirs - float32).mean())
    limit = FARTHER * rounding + least
    return f"{mine:.4f} {unit}; theirs by rounding {rounding:.4f}, limit {limit:.4f}", mine <= limit


def read_answers(file: Path) -> Answers:
    """Read what `benchmarks/official_answers.py` wrote.

    Raises:
      UserError: it is no such file.
    """
    try:
        with np.load(io.BytesIO(read_bytes(file)), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise UserError(f"{file} has no answers: make it anew by `python -m benchmarks.official_answers`") from None


def _read_plan(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not (isinstance(found, dict) and isinstance(found.get("peak_gib"), int | float) and "seconds" in found):
        raise UserError(f"{file} is no plan with a peak of memory: make it by `onereward plan --json {file}`")
    return found
