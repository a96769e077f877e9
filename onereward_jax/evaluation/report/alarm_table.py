"""What a run's evaluations measured of reward hacking, beside the limits: the rows of the report."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from onereward_jax.config.schema import Alarms
from onereward_jax.evaluation.alarms import ALARMS, GAIN, GRADIENTS, Line, evaluations, first_raised
from onereward_jax.evaluation.report.plots import Curves, label


def rows(curves: Curves, config: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each alarm that could be raised in a run.

    Args:
      curves: of the run's metrics.
      config: its settings, nested; those it lacks have their defaults.
    """
    limits, lines = _limits(config), evaluations_of(curves)
    raised, found = first_raised(lines, limits), []
    for alarm in ALARMS:
        limit, values = limits[alarm.name], [(line["step"], worst) for line in lines if (worst := alarm.worst(line))]
        if limit is None or not values:
            continue
        (_, (last_of, last)), extreme = values[-1], min if alarm.below else max
        step, (of, value) = extreme(values, key=lambda item: item[1][1])
        found.append(
            {
                "name": alarm.words,
                "setting": f"alarms.{alarm.name}",
                "limit": f"{'least' if alarm.below else 'most'} {limit:.3g}",
                "last": f"{last:.3g}",
                "last_of": label(last_of),
                "farthest": f"{value:.3g}",
                "farthest_of": f"{label(of)}, step {step:,}",
                "raised": f"step {raised[alarm.name]:,}" if alarm.name in raised else "never",
                "mark": "down" if alarm.name in raised else "",
            }
        )
    return found


def evaluations_of(curves: Curves) -> list[Line]:
    """The evaluations of reward hacking among a run's metrics, as lines."""
    lines: dict[int, dict[str, Any]] = {}
    for name, (steps, values) in curves.items():
        if name == GAIN or name.startswith(("evaluation/", GRADIENTS)):
            for step, value in zip(steps, values, strict=True):
                lines.setdefault(int(step), {"step": int(step)})[name] = float(value)
    return evaluations([lines[step] for step in sorted(lines)])


def _limits(config: Mapping[str, Any]) -> Alarms:
    known = {field.name for field in dataclasses.fields(Alarms)}
    given = config.get("alarms") or {}
    return Alarms(**{name: given[name] for name in given if name in known})
