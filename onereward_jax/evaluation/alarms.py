"""When what is measured of reward hacking is an alarm: limits, evaluations in a row, and where a run was still good.

All is computed from the lines of metrics.jsonl and the settings: a run that is killed, resumed or given other limits
comes to what an undisturbed one does.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onereward_jax.config.schema import Alarms, PolicyTraining
from onereward_jax.parallel import hosts
from onereward_jax.tasks import TASKS
from onereward_jax.training.early_stop import Stop
from onereward_jax.training.metrics import read_metrics

Line = Mapping[str, Any]
PREFIX = "alarms/"  # of the metrics that count evaluations in a row
GAIN = "evaluation/gain"
GRADIENTS = "gradients/"
_PAGE = "docs/how-to/is_it_hacking.md"


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A limit of something that is measured.

    Attributes:
      name: of the setting in `alarms`, of the metric evaluation/<task>/<name>, and of the metric alarms/<name>.
      words: what is measured.
      below: whether the limit is the least good value, not the largest.
      where: (metric, value): it counts only where evaluation/<task>/<metric> is above the value.
    """

    name: str
    words: str
    below: bool = False
    where: tuple[str, float] | None = None

    def worst(self, line: Line) -> tuple[str, float] | None:
        """The task, or the pair of gradients, that is nearest the limit or farthest beyond it, and its value."""
        if self.name == "gradient_cosine":
            found = {name.removeprefix(GRADIENTS): line[name] for name in line if name.startswith(GRADIENTS)}
        else:
            found = {task: line.get(f"evaluation/{task}/{self.name}") for task in TASKS if self._counts(line, task)}
        known = {of: float(value) for of, value in found.items() if value is not None and math.isfinite(value)}
        if not known:
            return None
        worst = (min if self.below else max)(known, key=lambda of: known[of])
        return worst, known[worst]

    def _counts(self, line: Line, task: str) -> bool:
        return self.where is None or (line.get(f"evaluation/{task}/{self.where[0]}") or 0) > self.where[1]

    def crossed(self, line: Line, limits: Alarms) -> bool:
        """Whether an evaluation's worst value is beyond the limit."""
        limit, worst = limits[self.name], self.worst(line)
        if limit is None or worst is None:
            return False
        return worst[1] < limit if self.below else worst[1] > limit


ALARMS = (
    Alarm("sure", "share of P(policy better than base) above .95"),
    Alarm(
        "deviation",
        "standard deviation of P(policy better than base) where its mean is above .75",
        below=True,
        where=("preference", 0.75),
    ),
    Alarm("judge_gap", "P(better) of the training judge above that of a judge it never sees"),
    Alarm("disagreement", "standard deviation over the judges of the ensemble"),
    Alarm("lost_to_jpeg", "P(better) lost when both images are JPEG files of quality 75"),
    Alarm("lost_to_shift", "P(better) lost when both images are shifted by half a patch"),
    Alarm("lost_to_noise", "P(better) lost under noise"),
    Alarm("judge_grid", "edges with the period of the judge’s patches, above the base’s"),
    Alarm("latent_grid", "edges with the period of the latents, above the base’s"),
    Alarm("saturation", "saturation inside the mask against the base’s, |log of the ratio|"),
    Alarm("contrast", "contrast inside the mask against the base’s, |log of the ratio|"),
    Alarm("drift_gain", "change outside the mask, above the base’s"),
    Alarm("diversity", "distance between answers from other noise, as a share of the base’s", below=True),
    Alarm("gradient_cosine", "least cosine between gradients of dimensions or tasks", below=True),
)


def evaluations(lines: Sequence[Line]) -> list[Line]:
    """The lines that have an evaluation of reward hacking; one whose gain is no number measured nothing."""
    return [line for line in lines if line.get(GAIN) is not None and math.isfinite(line[GAIN])]


def in_a_row(lines: Sequence[Line], limits: Alarms) -> dict[str, int]:
    """{alarm: the newest evaluations in a row that are beyond its limit}, of those that were measured.

    Args:
      lines: of `evaluations`.
    """
    found = {}
    for alarm in ALARMS:
        if limits[alarm.name] is None or not any(alarm.worst(line) for line in lines):
            continue
        crossed = [alarm.crossed(line, limits) for line in lines]
        found[alarm.name] = len(crossed) - max((n + 1 for n, beyond in enumerate(crossed) if not beyond), default=0)
    return found


def first_raised(lines: Sequence[Line], limits: Alarms) -> dict[str, int]:
    """{alarm: the step at which it was first raised}."""
    found: dict[str, int] = {}
    for number in range(len(lines)):
        for name, count in in_a_row(lines[: number + 1], limits).items():
            if count >= limits.in_a_row:
                found.setdefault(name, lines[number]["step"])
    return found


def last_good(lines: Sequence[Line], limits: Alarms) -> int:
    """The step of the newest evaluation with nothing beyond a limit; 0, the base, if there is none."""
    clean = [line["step"] for line in evaluations(lines) if not any(alarm.crossed(line, limits) for alarm in ALARMS)]
    return clean[-1] if clean else 0


def gains(lines: Sequence[Line], least: float) -> list[int]:
    """Indices of the evaluations that were better by `least` than the best gain before; the base has 0."""
    best = 0.0
    found: list[int] = []
    for number, line in enumerate(lines):
        if line[GAIN] > best + least:
            best, found = line[GAIN], [*found, number]
    return found


def verdict(lines: Sequence[Line], limits: Alarms, training: PolicyTraining) -> Stop | None:
    """Whether the newest evaluation ends the run."""
    if not lines:
        return None
    at = lines[-1]["step"]
    raised = [name for name, count in in_a_row(lines, limits).items() if count >= limits.in_a_row]
    if training.stop_on_alarm and raised:
        return Stop(last_good(lines, limits), at, f"alarm {', '.join(raised)} (see {_PAGE})", is_alarm=True)
    gained = gains(lines, limits.least_gain)
    patience = training.stop_without_gain
    if patience and len(lines) - 1 - (gained[-1] if gained else -1) >= patience:
        step = lines[gained[-1]]["step"] if gained else 0
        return Stop(step, at, f"nothing was gained in {patience} evaluations", is_alarm=False)
    return None


class AlarmWatch:
    """Raises alarms and ends a run, as `training.early_stop.Watch`.

    Args:
      every: updates between evaluations.
    """

    def __init__(self, limits: Alarms, training: PolicyTraining, workdir: Path, every: int):
        self._limits, self._training, self._file = limits, training, workdir / "metrics.jsonl"
        self._every = every
        self._lines: list[Line] = []
        self.kept: frozenset[int] = frozenset()
        self.stop: Stop | None = None

    def begin(self, step: int) -> Stop | None:
        """Take up the evaluations up to the step from which a run resumes."""

        def read() -> list[Line]:
            lines = read_metrics(self._file) if step and self._file.exists() else []
            return [dict(line) for line in evaluations(lines) if line["step"] <= step and self._counts(line["step"])]

        self._lines = list(hosts.on_primary(read))
        self._decide()
        return self.stop

    def add(self, step: int, found: Mapping[str, float]) -> dict[str, float]:
        """Join an evaluation; returns the metrics alarms/<name>, and says which alarms are raised."""
        line = {"step": step, **{name: float(value) for name, value in found.items()}}
        if not evaluations([line]):  # it could not be measured
            return {}
        self._lines.append(line)
        counts = in_a_row(self._lines, self._limits)
        if hosts.is_primary():
            for alarm in ALARMS:
                if counts.get(alarm.name) == self._limits.in_a_row:
                    print(_sentence(alarm, line, self._limits), file=sys.stderr)
        self._decide()
        return {f"{PREFIX}{name}": float(count) for name, count in counts.items()}

    def _counts(self, step: int) -> bool:
        # The one more at the last step of a run that was made longer is none that an undisturbed run has.
        return step % self._every == 0 or step == self._training.num_steps

    def _decide(self) -> None:
        # By the primary's numbers: those of other hosts may differ in their last digits.
        found = hosts.on_primary(self._decided)
        self.stop = None if found[0] is None else Stop(*found[0])
        self.kept = frozenset(found[1])

    def _decided(self) -> list[Any]:
        lines, limits, training = self._lines, self._limits, self._training
        stop, kept = verdict(lines, limits, training), set()
        if training.stop_on_alarm:
            kept.add(last_good(lines, limits))
        if training.stop_without_gain and (gained := gains(lines, limits.least_gain)):
            kept.add(lines[gained[-1]]["step"])
        return [None if stop is None else dataclasses.astuple(stop), sorted(kept - {0})]


def _sentence(alarm: Alarm, line: Line, limits: Alarms) -> str:
    worst = alarm.worst(line)
    assert worst is not None, "nothing that was not measured is raised"
    of, value = worst
    return (
        f"alarm: {alarm.name} is {value:.3g} in {of} at step {line['step']}, {'below' if alarm.below else 'above'}"
        f" alarms.{alarm.name} ({limits[alarm.name]:g}): {alarm.words}; see {_PAGE}"
    )


def mean_gain(found: Mapping[str, float]) -> float:
    """Mean over tasks of P(policy better than base) − ½: by the judge that training never sees, if there is one."""
    of = lambda name: [found[key] for key in found if key.startswith("evaluation/") and key.endswith(f"/{name}")]
    return float(np.mean(of("other_preference") or of("preference"))) - 0.5
