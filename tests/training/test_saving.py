"""When a checkpoint is due by time."""

from types import SimpleNamespace

import pytest

from onereward_jax.training.saving import ByTime


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


@pytest.mark.parametrize(
    "pace", [lambda step: 0.25, lambda step: 60.0 if step == 1 else 0.25, lambda step: 1 / (1 + step // 40)]
)
def test_due_with_the_step_in_which_the_time_is_over(pace):
    """Whatever the first step, which compiles, or a training that becomes faster."""
    clock, checkpointer = Clock(), SimpleNamespace(saving=False)
    by_time = ByTime(120.0, 0, checkpointer, clock)
    began, step, intervals = clock.now, 0, []
    while len(intervals) < 3:
        step += 1
        clock.now += pace(step)
        if by_time.due(step):
            intervals.append((clock.now - began, pace(step)))
            began = clock.now
            by_time.restart(step)
    assert all(120 <= seconds < 120 + 2 * late for seconds, late in intervals)
    assert clock.asked < step / 4 + 4  # the processes wait for each other at few steps


def test_not_due_while_a_save_is_running_nor_without_a_time():
    clock, checkpointer = Clock(), SimpleNamespace(saving=True)
    by_time = ByTime(10.0, 5, checkpointer, clock)
    clock.now += 11
    assert not by_time.due(6)
    checkpointer.saving = False
    assert by_time.due(7)
    assert not ByTime(0.0, 5, checkpointer, clock).due(6)
