"""From numbers to alarms, and to where a run ends."""

import dataclasses
import json
import math

import pytest

from onereward_jax.config.schema import Alarms, PolicyTraining
from onereward_jax.evaluation import alarms
from onereward_jax.evaluation.alarms import ALARMS, GAIN, AlarmWatch, verdict

LIMITS = Alarms()


def line(step: int, gain: float = 0.0, **values: float) -> dict[str, float]:
    """An evaluation, of one task."""
    found = {f"evaluation/image_fill/{name}": value for name, value in values.items()}
    return {"step": step, GAIN: gain, **found}


def test_every_alarm_has_a_limit_and_every_limit_an_alarm():
    limits = {field.name for field in dataclasses.fields(Alarms) if isinstance(getattr(LIMITS, field.name), float)}
    assert {alarm.name for alarm in ALARMS} == limits - {"least_gain"}


def test_an_alarm_needs_several_evaluations_in_a_row():
    lines = [line(step, drift_gain=value) for step, value in ((1, 0.1), (2, 0.0), (3, 0.1), (4, 0.1), (5, 0.1))]
    counts = [alarms.in_a_row(lines[:n], LIMITS)["drift_gain"] for n in range(1, 6)]
    assert counts == [1, 0, 1, 2, 3]
    assert alarms.first_raised(lines, LIMITS) == {"drift_gain": 4}
    assert alarms.last_good(lines, LIMITS) == 2
    assert alarms.last_good(lines[:1], LIMITS) == 0
    assert alarms.in_a_row(lines, dataclasses.replace(LIMITS, drift_gain=None)) == {}


def test_the_worst_task_counts_and_least_values_are_limits_too():
    two = line(1, sure=0.1) | {"evaluation/object_removal/sure": 0.9}
    sure, diversity, deviation, cosine = (
        next(alarm for alarm in ALARMS if alarm.name == name)
        for name in ("sure", "diversity", "deviation", "gradient_cosine")
    )
    assert sure.worst(two) == ("object_removal", 0.9)
    assert sure.crossed(two, LIMITS)
    assert diversity.crossed(line(1, diversity=0.3), LIMITS)
    assert not diversity.crossed(line(1, diversity=0.8), LIMITS)
    # At the start both models' images are alike, and so are the answers.
    assert not deviation.crossed(line(1, deviation=0.001, preference=0.5), LIMITS)
    assert deviation.crossed(line(1, deviation=0.001, preference=0.9), LIMITS)
    assert cosine.worst({"gradients/structure/aesthetics": -0.7, "gradients/a/b": None}) == (
        "structure/aesthetics",
        -0.7,
    )


def test_the_gain_is_by_the_judge_that_training_never_sees():
    found = {f"evaluation/{task}/preference": p for task, p in (("image_fill", 0.9), ("object_removal", 0.7))}
    assert alarms.mean_gain(found) == pytest.approx(0.3)
    assert alarms.mean_gain(found | {"evaluation/image_fill/other_preference": 0.4}) == pytest.approx(-0.1)


def test_where_a_run_ends():
    stopping = PolicyTraining(stop_on_alarm=True)
    good, bad = line(10, 0.1, judge_gap=0.0), [line(step, 0.2, judge_gap=0.5) for step in (20, 30)]
    assert verdict([good, bad[0]], LIMITS, stopping) is None
    assert verdict([good, *bad], LIMITS, PolicyTraining()) is None
    stop = verdict([good, *bad], LIMITS, stopping)
    assert (stop.step, stop.at, stop.is_alarm) == (10, 30, True)
    assert "judge_gap" in str(stop)
    assert "base" in str(verdict(bad, LIMITS, stopping))

    patient = PolicyTraining(stop_without_gain=2)
    lines = [line(step, gain) for step, gain in ((1, 0.1), (2, 0.2), (3, 0.2), (4, 0.203))]
    assert verdict(lines[:3], LIMITS, patient) is None
    stop = verdict(lines, LIMITS, patient)
    assert (stop.step, stop.at, stop.is_alarm) == (2, 4, False)
    assert verdict([line(1, -0.1), line(2, -0.1)], LIMITS, patient).step == 0
    assert verdict([], LIMITS, patient) is None


def test_a_watch_takes_up_what_was_measured(tmp_path, capsys):
    lines = [line(1, judge_gap=0.0), line(2, judge_gap=0.5)]
    later, training = line(3, judge_gap=0.5), {"perf/step_time_seconds": 1.0, "step": 4}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (*lines, later, training)))
    watch = AlarmWatch(LIMITS, PolicyTraining(stop_on_alarm=True), tmp_path, every=1)
    assert watch.begin(2) is None
    assert watch.kept == {1}
    found = {name: value for name, value in later.items() if name != "step"}
    assert watch.add(3, found) == {"alarms/judge_gap": 2.0}
    assert (watch.stop.step, watch.stop.at) == (1, 3)
    assert "judge_gap" in capsys.readouterr().err
    # Another limit, and what was an alarm is none.
    assert watch.begin(4).at == 3
    other = AlarmWatch(
        dataclasses.replace(LIMITS, judge_gap=0.6), PolicyTraining(stop_on_alarm=True), tmp_path, every=1
    )
    assert other.begin(4) is None
    assert other.kept == {3}
    assert watch.begin(0) is None
    assert watch.add(1, {}) == {}  # an evaluation that could not be written


def test_what_is_no_number_is_not_good():
    assert alarms.last_good([line(1, math.nan, sure=math.nan)], LIMITS) == 0
    assert alarms.last_good([line(1), line(2, math.nan)], LIMITS) == 1


def test_an_evaluation_at_the_last_step_counts_until_the_run_is_longer(tmp_path):
    lines = [line(2, judge_gap=0.0), line(3, judge_gap=0.5), line(4, judge_gap=0.5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    stops = {}
    for num_steps, step in ((3, 3), (4, 4), (6, 4)):
        training = PolicyTraining(stop_on_alarm=True, num_steps=num_steps)
        watch = AlarmWatch(dataclasses.replace(LIMITS, in_a_row=1), training, tmp_path, every=2)
        watch.begin(step)
        stops[num_steps] = watch.stop.at
        assert watch.kept == {2}
    assert stops == {3: 3, 4: 4, 6: 4}
    longer = AlarmWatch(LIMITS, PolicyTraining(stop_on_alarm=True, num_steps=6), tmp_path, every=2)
    assert longer.begin(4) is None
